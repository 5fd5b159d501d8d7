"""The names that config.json files use for the parts of a rotary embedding."""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from rrope_jax.rope.huggingface.model_types import LLAMA, SLIDING_KEYS, ModelType, model_type_of
from rrope_jax.rope.huggingface.rope_types import BETA


def _split(names: str) -> tuple[str, ...]:
    return tuple(names.split())


# transformers' name of each key -> other names that models use.
_ONE_MEANING = {
    "rope_theta": _split(
        "global_rope_theta rotary_emb_base rotary_embedding_base rotary_base rotary_theta "
        "rope_base rope_freq_base rope_freq_constant"
    ),
    "partial_rotary_factor": _split(
        "rotary_pct rotary_percent rotary_percentage rotary_fraction rotary_emb_fraction "
        "rope_pct rope_percent rope_percentage"
    ),
    "rotary_dim": _split("rotary_dims rotary_ndims rope_dim rope_dims n_rot attn_rotary_emb"),
}
# The same for sizes. A config may have several of these; the first one counts.
_FIRST_COUNTS = {
    "head_dim": _split("attention_head_dim kv_channels"),
    "hidden_size": _split("n_embd d_model"),
    "num_attention_heads": _split("n_head n_heads"),
    "max_position_embeddings": _split("n_positions n_ctx max_seq_len seq_length"),
}
# Keys that scale queries by a factor that grows with their position.
_POSITION_TEMPERATURES = _split(
    f"{BETA} llama_4_scaling use_logn_attn log_scaling_n_floor attn_temperature_tuning"
)
# Keys that turn the rotation on or off.
_SWITCHES = _split(
    "rope rotary use_rope use_rotary use_rotary_emb use_rotary_embedding use_rotary_embeddings "
    "use_rotary_pos_emb use_rotary_position_embedding use_rotary_position_embeddings use_mem_rope"
)
_KINDS = re.compile(r"pos(ition|itional)?_(emb|embedding|embeddings|encoding|encodings)(_type)?")
_ROTARY = _split("rope rotary rotary_embedding rotary_embeddings mrope")
# Keys that do not change frequencies: pairing of dimensions, sizes of other parts, precision.
_HARMLESS = _split(
    "original_rope rope_full_precision rotary_emb_dtype rope_interleave rope_interleaved "
    "indexer_rope_interleave rotary_interleaved rotary_emb_interleaved qk_rope_head_dim "
    "qk_nope_head_dim"
)
# Keys that `from_hf` reads.
_READ = _split(
    "rope_scaling rope_parameters rope_ratio layer_rope_theta no_rope_layers no_rope_layer_interval"
)
_UNDERSTOOD = frozenset().union(
    _HARMLESS, _READ, SLIDING_KEYS, _ONE_MEANING, *_ONE_MEANING.values()
)
# A key that contains one of these words concerns the rotation.
_WORDS = frozenset(_split("alibi logn longrope mscale nope ntk rope rotary theta thetas xpos yarn"))
# The same for keys inside `rope_scaling` and `rope_parameters`.
_NESTED_WORDS = _WORDS.union(
    _split(
        "alpha attn attention base beta context dim dims factor factors fraction freq freqs "
        "frequency layers length pct percent ratio scale scaling temperature"
    )
)


@dataclasses.dataclass(frozen=True)
class HfConfig:
    """A config.json whose RoPE keys have been given transformers' names.

    Attributes:
      keys: the config, with the renamed keys.
      names: transformers' name -> the name in the file, for renamed keys.
      model_type: the defaults of its `model_type`; None if they are not known.
      one_layer_type: whether this is the embedding of the layers of one type, for which
        transformers reads the original context beside the scaling's keys only.
    """

    keys: Mapping[str, Any]
    names: Mapping[str, str]
    model_type: ModelType | None
    one_layer_type: bool = False

    @property
    def defaults(self) -> ModelType:
        """The defaults of missing keys; LLaMA's if the type is not known."""
        return self.model_type or LLAMA

    def replace(self, **keys: Any) -> "HfConfig":
        """Returns the config with some values replaced."""
        return dataclasses.replace(self, keys={**self.keys, **keys})


def in_terms_of_transformers(config: Mapping[str, Any]) -> HfConfig:
    """Gives the RoPE keys of a config transformers' names.

    Raises:
      ValueError: two names of one key contradict each other, or an unsupported key would change the
        embedding.
    """
    keys = dict(config)
    names: dict[str, str] = {}
    for name, others in {**_ONE_MEANING, **_FIRST_COUNTS}.items():
        present = [key for key in (name, *others) if config.get(key) is not None]
        if not present:
            continue
        for key in present[1:]:
            if name in _ONE_MEANING and config[key] != config[present[0]]:
                raise ValueError(
                    f"{present[0]}={config[present[0]]!r} and {key}={config[key]!r} are names of "
                    "one thing; remove the wrong one"
                )
        keys[name] = config[present[0]]
        names[name] = present[0]
    for key, value in config.items():
        # Llama 4 has this temperature only in the layers that are not rotated.
        if (key, config.get("model_type")) != ("attn_temperature_tuning", "llama4_text"):
            _check(key, value)
    return HfConfig(keys, names, model_type_of(config.get("model_type")))


def _check(key: Any, value: Any) -> None:
    """Raises ValueError for an unsupported key that would change the embedding."""
    if not isinstance(key, str) or value is None:
        return
    if key in _SWITCHES and isinstance(value, bool):
        if not value:
            raise ValueError(f"{key}=False: this model has no rotary embedding")
        return
    if _KINDS.fullmatch(key) and isinstance(value, str):
        if value.lower() not in _ROTARY:
            raise ValueError(
                f"{key}={value!r} is no rotary embedding; only {', '.join(_ROTARY[:2])} is read"
            )
        return
    if not value and not isinstance(value, str):  # switched off
        return
    if key in _POSITION_TEMPERATURES:
        raise ValueError(
            f"{key}={value!r} multiplies queries by a factor that grows with the position, of "
            f"which only {BETA} beside rope_type in rope_parameters is read (Ministral 3); set it "
            "to null for the rotation alone"
        )
    if key not in _UNDERSTOOD and _is_about_rotation(key):
        raise ValueError(
            f"{key}={value!r} is not read, and may change the embedding; say the same with "
            "rope_theta, partial_rotary_factor and rope_parameters and set it to null"
        )
    if isinstance(value, Mapping) and re.search("attn|attention", key):
        for inner, content in value.items():
            if content and (inner in _UNDERSTOOD or _is_about_rotation(str(inner))):
                raise ValueError(
                    f"{key}.{inner}={content!r} is not read there; give it under transformers' "
                    f"name at the top level and set {key} to null"
                )


def _is_about_rotation(key: str, words: frozenset[str] = _WORDS) -> bool:
    """Whether a key's name suggests that it changes the rotation."""
    return not words.isdisjoint(re.split(r"[^a-z]+", key.lower()))


def check_nested(parameters: Mapping[str, Any], dialect: str, known: frozenset[str]) -> None:
    """Raises ValueError for unsupported keys that may change the embedding."""
    for key, value in parameters.items():
        if key in _POSITION_TEMPERATURES and key not in known and value:
            _check(key, value)
        is_harmless = key in known or value is None or value is False
        if not is_harmless and _is_about_rotation(str(key), _NESTED_WORDS):
            raise ValueError(
                f"{dialect} has {key}={value!r}, which is not read and may change the embedding; "
                f"remove it from {dialect}, or say the same with other keys"
            )
