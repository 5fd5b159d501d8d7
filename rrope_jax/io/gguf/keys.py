"""The keys of a GGUF file that describe the decoder, by architecture of llama.cpp."""

import math
from collections.abc import Collection
from types import MappingProxyType
from typing import Any

from rrope_jax.io.families.family import Family, Gguf, Keys, difference
from rrope_jax.io.weights import OUTPUT
from rrope_jax.model import ModelConfig
from rrope_jax.rope.fields import is_int

# Sizes: keys without their prefix and the corresponding fields of our ModelConfig.
_SIZES = MappingProxyType(
    {
        "block_count": "num_layers",
        "embedding_length": "d_model",
        "feed_forward_length": "d_ff",
        "attention.head_count": "num_heads",
        "attention.head_count_kv": "num_kv_heads",
        "attention.key_length": "head_dim",
        "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    }
)
_OPTIONAL = ("attention.head_count_kv", "attention.key_length")
# Features that our decoder lacks in every family, with the value that turns each off.
_REFUSED = {"expert_count": 0, "attention.causal": True}
_INTEGER = ("an integer", is_int)
NUMBER = (
    "a finite number",
    lambda value: is_int(value) or (isinstance(value, float) and math.isfinite(value)),
)
# Types of the keys that are read.
_TYPES = {
    "rope.scaling.type": ("a string", lambda value: isinstance(value, str)),
    "attention.causal": ("a bool", lambda value: isinstance(value, bool)),
    **dict.fromkeys(
        (
            "block_count",
            "context_length",
            "embedding_length",
            "feed_forward_length",
            "attention.head_count",
            "attention.head_count_kv",
            "attention.key_length",
            "attention.value_length",
            "attention.sliding_window",
            "expert_count",
            "rope.dimension_count",
            "rope.scaling.original_context_length",
        ),
        _INTEGER,
    ),
    **dict.fromkeys(
        (
            "attention.layer_norm_rms_epsilon",
            "attention.scale",
            "attention.temperature_scale",
            "embedding_scale",
            "residual_scale",
            "logit_scale",
            "rope.freq_base",
            "rope.freq_base_swa",
            "rope.scale_linear",
            "rope.scaling.factor",
            "rope.scaling.attn_factor",
            "rope.scaling.yarn_beta_fast",
            "rope.scaling.yarn_beta_slow",
            "rope.scaling.yarn_log_multiplier",
        ),
        NUMBER,
    ),
}


def check_keys(gguf: Gguf, keys: Keys) -> None:
    """Checks the types of keys, and that none describes a part that the decoder does not have.

    Args:
      gguf: the model's architecture.
      keys: the keys without their prefix.

    Raises:
      ValueError: a key has the wrong type, or a value that is not implemented.
    """
    for key, (kind, fits) in _TYPES.items():
        if key in keys and not fits(keys[key]):
            raise ValueError(f"{gguf.architecture}.{key}={str(keys[key])[:80]} must be {kind}")
    for key, absent in (_REFUSED | dict(gguf.refused)).items():
        if keys.get(key, absent) != absent:
            raise ValueError(
                f"{gguf.architecture}.{key}={keys[key]!r} is not implemented; only models with "
                f"{absent!r} are"
            )


def required(gguf: Gguf, keys: Keys, key: str) -> Any:
    """The value of a key; raises ValueError if it is missing."""
    if key not in keys:
        raise ValueError(f"it has no {gguf.architecture}.{key}, which a model needs")
    return keys[key]


def model_of(gguf: Gguf, keys: Keys, tensors: Collection[str], vocab_size: int) -> ModelConfig:
    """The decoder that a file describes.

    Args:
      gguf: its architecture.
      keys: its keys without their prefix.
      tensors: the names of its tensors.
      vocab_size: rows of its embedding.

    Raises:
      ValueError: a key is missing or out of range, or the model is not implemented.
    """
    sizes: dict[str, Any] = {
        field: keys.get(key) if key in _OPTIONAL else required(gguf, keys, key)
        for key, field in _SIZES.items()
    }
    tied = gguf.all_names[OUTPUT.path] not in tensors
    fields = {"vocab_size": vocab_size, "tie_embeddings": tied}
    model = ModelConfig(**sizes | fields | gguf.read(keys, tensors))
    length = "attention.value_length"
    if keys.get(length, model.head_size) != model.head_size:
        raise ValueError(
            f"{gguf.architecture}.{length}={keys[length]} differs from the head size "
            f"{model.head_size}, which is not implemented"
        )
    return model


def keys_of(gguf: Gguf, model: ModelConfig) -> dict[str, Any]:
    """The keys, without their prefix, that describe a decoder; the inverse of `model_of`."""
    return {
        **{key: getattr(model, field) for key, field in _SIZES.items()},
        "attention.value_length": model.head_size,
        "vocab_size": model.vocab_size,
        **gguf.write(model),
    }


def obstacle(family: Family, model: ModelConfig, tensors: Collection[str]) -> str | None:
    """Says why llama.cpp has no such model as one of a family; None if it has.

    Args:
      family: the family.
      model: the model to write.
      tensors: the names that its tensors would have.
    """
    gguf = family.gguf
    if gguf is None:
        return f"llama.cpp has no architecture for models of the family {family.name!r}"
    try:
        keys = keys_of(gguf, model)
        check_keys(gguf, keys)
        read_back = model_of(gguf, keys, tensors, model.vocab_size)
    except ValueError as error:
        return f"as a model of llama.cpp's architecture {gguf.architecture!r}: {error}"
    runtime = f"models of llama.cpp's architecture {gguf.architecture!r}"
    return difference(model, read_back, runtime)
