"""Reads a `RopeSpec` from the RoPE keys of a Hugging Face config.json."""

from collections.abc import Mapping
from typing import Any

from rrope_jax.rope.fields import is_int
from rrope_jax.rope.huggingface.keys import in_terms_of_transformers
from rrope_jax.rope.huggingface.layers import FULL, advice, read_layers
from rrope_jax.rope.huggingface.model_types import SCALED, obstacle
from rrope_jax.rope.huggingface.rope_types import DIALECTS, MAXIMUM, ORIGINAL
from rrope_jax.rope.spec import RopeSpec


def from_hf(config: Mapping[str, Any]) -> RopeSpec:
    """Reads the RoPE keys of a model's config.json.

    Besides transformers' own keys, it accepts the names that other models use (`rotary_pct`,
    `rotary_emb_base`, `rotary_dim`, `kv_channels`, `rope_ratio` and more, see `keys`), and
    `resonance: true` at the top level or next to the scaling's keys. A missing key takes the
    default of the `model_type` (see `model_types`), or LLaMA's if there is no type. The original
    context is `original_max_position_embeddings`, first from the top level, then from the scaling's
    keys, and otherwise `max_position_embeddings`; for `dynamic` it is always the latter. Keys of
    another `rope_type` are ignored with a log warning, as in transformers.

    Where layers with a sliding window have an embedding of their own (Gemma 3, OLMo 3), it becomes
    the spec's `sliding_attention`; both transformers 4's keys and `rope_parameters` by layer type
    are read (see `layers`). For SmolLM3, the spec is that of the rotated layers. Neither says which
    layers are of which type: that is in `layer_types` and `no_rope_layers`.

    A RopeSpec describes the embedding of text. It does not say which dimensions form pairs: GPT-J,
    GLM, Cohere and DeepSeek pair (2i, 2i + 1), while LLaMA pairs (i, i + d/2).

    Args:
      config: the parsed config.json; keys unrelated to the embedding are ignored.

    Raises:
      ValueError: a key is missing, unsupported or out of range, two keys contradict each other, the
        layers differ in ways that a RopeSpec cannot express, or it cannot describe the type's
        embedding. The message names the key as in the config.
    """
    model_type = config.get("model_type")
    if model_type is not None and not isinstance(model_type, str):
        raise ValueError(f"model_type={model_type!r} must be a string, such as 'llama'")
    hf = in_terms_of_transformers(config)
    if (reason := obstacle(config)) is not None:
        mend = "no RopeSpec is its embedding"
        if hf.model_type is not None:
            mend = f"read that of its rotated layers with {advice(hf)}"
        raise ValueError(f"model_type={model_type!r} {reason}; {mend}")
    if model_type in SCALED and not any(config.get(dialect) for dialect in DIALECTS):
        raise ValueError(
            f"rope_parameters is missing and model_type={model_type!r} is extended without it; "
            "add it"
        )
    return read_layers(hf)


def original_context(config: Mapping[str, Any]) -> int | None:
    """The context before any extension, in tokens, as stated in a config.json.

    This is `original_max_position_embeddings`, or `max_position_embeddings` if a larger
    `max_sequence_length` holds the extended length (Vicuna).

    Returns:
      A positive integer; None if the config does not state it.
    """
    nested = [each for key in DIALECTS if isinstance(each := config.get(key), Mapping)]
    nested += [each[FULL] for each in nested if isinstance(each.get(FULL), Mapping)]
    for holder in (config, *nested):
        value: Any = holder.get(ORIGINAL)
        if is_int(value) and value > 0:
            return int(value)
    maximum: Any = config.get(MAXIMUM)
    extended: Any = config.get("max_sequence_length")
    if is_int(maximum) and is_int(extended) and 0 < maximum < extended:
        return int(maximum)
    return None
