"""Inputs that once went wrong: what was changed in which valid input."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from tests.fuzz.encoding import Files, encode
from tests.fuzz.targets import TARGETS


class Kept(NamedTuple):
    """One input.

    Attributes:
      target: key of `TARGETS`.
      seed: number of the valid input that was changed.
      path: keys down to what was changed.
      value: what is there instead.
    """

    target: str
    seed: int
    path: tuple[str | int, ...]
    value: Any

    def files(self) -> Files:
        """The input."""
        return encode(_replaced(TARGETS[self.target].seeds()[self.seed], self.path, self.value))


def _replaced(tree: Any, path: Sequence[str | int], value: Any) -> Any:
    if not path:
        return value
    copy = tree.copy() if isinstance(tree, dict | list) else {}
    below = tree.get(path[0]) if isinstance(tree, dict) else tree[path[0]]
    copy[path[0]] = _replaced(below, path[1:], value)
    return copy


def _number(key: str) -> list[Any]:
    """A row of GGUF metadata that is a uint32, whatever it should be."""
    return [f"tokenizer.ggml.{key}", 4, 7]


_CONFIG, _INDEX = "config.json", "model.safetensors.index.json"
_TOKENIZER, _SETTINGS = "tokenizer.json", "tokenizer_config.json"
_BYTE_LEVEL = {
    "type": "ByteLevel",
    "add_prefix_space": False,
    "trim_offsets": True,
    "use_regex": True,
}
_HUGE = 10**400  # more than a float can be
_DEEP = b"[" * 100_000
_WORDS = ("words.json", "words", 5)
_STEP = "model/checkpoints/2/_CHECKPOINT_METADATA"

KEPT: dict[str, Kept] = {
    "head_dim_beyond_memory": Kept("rope_keys", 11, (_CONFIG, "qk_rope_head_dim"), 2**31),
    "hidden_size_beyond_memory": Kept("rope_keys", 0, (_CONFIG, "hidden_size"), 2**62),
    "theta_that_no_float_holds": Kept("rope_keys", 0, (_CONFIG, "rope_theta"), _HUGE),
    "factor_that_no_float_holds": Kept("rope_keys", 1, (_CONFIG, "rope_scaling", "factor"), _HUGE),
    "factor_that_ends_in_zeros": Kept("rope_keys", 2, (_CONFIG, "rope_scaling", "factor"), 1.7e308),
    "ramp_from_almost_nothing": Kept(
        "rope_keys", 4, (_CONFIG, "rope_scaling", "beta_slow"), 5e-324
    ),
    "source_with_nul": Kept("texts", 0, ("asked.json", "source"), "texts/\0*"),
    "text_key_of_half_a_character": Kept("texts", 5, ("asked.json", "text_key"), "\ud800"),
    "jsonl_nested_too_deeply": Kept("texts", 0, ("texts/b.jsonl",), _DEEP),
    "instructions_that_are_a_number": Kept("questions", 0, ("task.jsonl", 0, "instructions"), 1.5),
    "question_nested_too_deeply": Kept("questions", 0, ("task.jsonl",), _DEEP),
    "settings_nested_too_deeply": Kept("tokenizers", 0, (_SETTINGS,), _DEEP),
    "unknown_token_that_is_none": Kept("tokenizers", 2, (_TOKENIZER, "model", "unk_token"), "none"),
    "pre_tokenizers_that_double_a_text": Kept(
        "tokenizers",
        0,
        (_TOKENIZER, "pre_tokenizer", "pretokenizers"),
        [_BYTE_LEVEL] * 100,
    ),
    "special_token_that_is_none": Kept(
        "tokenizers",
        1,
        (_TOKENIZER, "post_processor", "special_tokens"),
        {"other": {"id": "other", "ids": [1], "tokens": ["other"]}},
    ),
    "bos_token_of_half_a_character": Kept("tokenizers", 0, (_SETTINGS, "bos_token"), "\ud800"),
    "template_that_is_not_text": Kept(
        "tokenizer_exports", 1, ("chat_template.jinja",), b"\xfb\xff"
    ),
    "template_named_by_a_group": Kept(
        "tokenizer_exports", 0, (_SETTINGS, "chat_template", 0, "name"), {}
    ),
    "settings_that_are_text": Kept("tokenizer_exports", 0, (_SETTINGS,), '"text"'),
    "merges_that_are_a_number": Kept("gguf", 1, ("model.gguf", "metadata", 17), _number("merges")),
    "token_types_that_are_a_number": Kept(
        "gguf", 1, ("model.gguf", "metadata", 16), _number("token_type")
    ),
    "scores_that_are_a_number": Kept("gguf", 0, ("model.gguf", "metadata", 19), _number("scores")),
    "tensor_of_unknown_type_and_name": Kept(
        "gguf", 0, ("model.gguf", "tensors", 0), ["a\nb", [8, 10], 811_008, 0]
    ),
    "model_type_that_is_a_list": Kept("folders", 0, (_CONFIG, "model_type"), ["llama"]),
    "weight_map_of_lists": Kept("folders", 2, (_INDEX, "weight_map", "lm_head.weight"), []),
    "weight_map_of_two_lines": Kept("folders", 2, (_INDEX, "weight_map", "lm_head.weight"), "\n"),
    "config_nested_too_deeply": Kept("folders", 0, (_CONFIG,), _DEEP),
    "dtype_of_two_lines": Kept(
        "folders", 0, ("model.safetensors", "header", "lm_head.weight", "dtype"), "\n"
    ),
    "initializer_range_beyond_float32": Kept("folders", 0, (_CONFIG, "initializer_range"), 1e300),
    "initializer_range_beyond_int32": Kept("folders", 0, (_CONFIG, "initializer_range"), 2**53),
    "flag_of_many_letters": Kept("flags", 0, _WORDS, ["--" + "max_tokens" * 400, 1]),
    "switch_with_a_value": Kept("flags", 0, _WORDS, ["--nooverwrite", "no"]),
    "length_beyond_int64": Kept("flags", 0, _WORDS, ["--config.train.length", 2**63]),
    "layers_beyond_int64": Kept("flags", 0, _WORDS, ["--config.model.num_layers", 2**63]),
    "trainings_beyond_memory": Kept(
        "flags", 4, ("words.json", "words", 7), ["--config.num_seeds", 2**31]
    ),
    "factors_that_no_float_holds": Kept(
        "flags", 12, ("words.json", "words", 6), ["--config.rope.short_factor", f"({_HUGE},)"]
    ),
    "value_of_two_lines": Kept("flags", 8, _WORDS, ["--config.eval.passkey.digits", "\n"]),
    "description_that_is_a_number": Kept("own_folders", 3, ("model/model.json",), 1.5),
    "extras_that_are_a_number": Kept("own_folders", 3, ("model/model.json", "extras"), 1.5),
    "metadata_that_are_a_list": Kept(
        "own_folders", 2, ("model/checkpoints/2/metadata/metadata",), []
    ),
    "step_that_says_nothing_of_itself": Kept("own_folders", 2, (_STEP,), 1.5),
    "step_whose_metadata_are_a_list": Kept("own_folders", 2, (_STEP, "item_handlers"), []),
    "special_id_that_is_a_list": Kept("conversions", 0, ("model/config.json", "bos_token_id"), []),
    "weights_that_are_not_finite": Kept(
        "conversions", 9, ("model.gguf", "data"), b"\xff\xff\xff\x7f" * 2_000
    ),
}
