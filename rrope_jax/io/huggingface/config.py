"""The keys of config.json that describe the decoder, by family."""

from types import MappingProxyType
from typing import Any

from rrope_jax.io.families.family import Family, Keys, difference
from rrope_jax.model import ModelConfig

# Sizes: fields of our ModelConfig and the corresponding keys of config.json, in all families.
SIZES = MappingProxyType(
    {
        "vocab_size": "vocab_size",
        "d_model": "hidden_size",
        "d_ff": "intermediate_size",
        "num_layers": "num_hidden_layers",
        "num_heads": "num_attention_heads",
        "num_kv_heads": "num_key_value_heads",
        "head_dim": "head_dim",
        "rms_norm_eps": "rms_norm_eps",
        "tie_embeddings": "tie_word_embeddings",
        "initializer_range": "initializer_range",
    }
)
_REQUIRED = ("vocab_size", "d_model", "d_ff", "num_layers", "num_heads")
# Features that our decoder lacks in every family, with the values that turn each off.
_REFUSED: dict[str, tuple[Any, ...]] = {
    "num_local_experts": (None, 0),
    "quantization_config": (None,),
}
_MENDS = {"quantization_config": "; convert the weights to bfloat16 or float32 first"}


def check_keys(family: Family, keys: Keys) -> None:
    """Checks that no key describes a part that the decoder does not have.

    Args:
      family: the model's family.
      keys: those of config.json, with the family's defaults.

    Raises:
      ValueError: a key has a value that is not implemented, or a size is missing.
    """
    mends = _MENDS | dict(family.mends)
    for key, allowed in (dict(family.refused) | _REFUSED).items():
        if keys.get(key) not in allowed:
            raise ValueError(
                f"{key}={keys[key]!r} is not implemented; only {allowed[-1]!r} is"
                + mends.get(key, "")
            )
    for name in _REQUIRED:
        if keys.get(SIZES[name]) is None:
            raise ValueError(f"it has no {SIZES[name]}, which a model needs")


def model_of(family: Family, keys: Keys) -> ModelConfig:
    """The decoder that config.json describes; `keys` as for `check_keys`.

    Raises:
      ValueError: a size is out of range, or the family does not have such a model.
    """
    fields = {ours: keys[key] for ours, key in SIZES.items() if keys.get(key) is not None}
    return ModelConfig(**fields | family.read(keys))


def keys_of(family: Family, model: ModelConfig) -> dict[str, Any]:
    """The keys that describe a decoder as one of this family; the inverse of `model_of`."""
    sizes = {theirs: getattr(model, ours) for ours, theirs in SIZES.items()}
    return sizes | family.write(model)


def obstacle(family: Family, model: ModelConfig) -> str | None:
    """Says why a family has no such model; None if it has."""
    keys = dict(family.defaults) | keys_of(family, model)
    try:
        check_keys(family, keys)
        read_back = model_of(family, keys)
    except ValueError as error:
        return f"as a model of the family {family.name!r}: {error}"
    return difference(model, read_back, f"{family.name} models of other runtimes")
