"""OLMo 2: norms after each sublayer, and over all queries and all keys of a token."""

from collections.abc import Collection
from typing import Any

from rrope_jax.io.families import layer_keys
from rrope_jax.io.families.family import NO_BIASES, SILU, Family, Gguf, Keys, check_head_dim
from rrope_jax.model import ModelConfig

NORMS: Keys = {"qk_norm": "all_heads", "norm_placement": "after"}
DEFAULTS: Keys = {"max_position_embeddings": 2048, "rms_norm_eps": 1e-5}


def _read(_: Keys) -> dict[str, Any]:
    return dict(NORMS)


def _write(_: ModelConfig) -> dict[str, Any]:
    return {"hidden_act": "silu", "attention_bias": False}


def _read_gguf(keys: Keys, _: Collection[str]) -> dict[str, Any]:
    # every fourth layer is full where the file does not say (llama.cpp, src/models/olmo2.cpp)
    return {**NORMS, **layer_keys.read_gguf(keys, default_period=4)}


def _write_gguf(model: ModelConfig) -> dict[str, Any]:
    check_head_dim(model)
    if model.tie_embeddings:
        raise ValueError("tie_embeddings=True: llama.cpp wants an output matrix there; untie it")
    return layer_keys.write_gguf(model)


# llama.cpp has OLMo 3 under the same name (conversion/olmo.py).
GGUF = Gguf(
    "olmo2",
    sliding_rope="plain",
    read=_read_gguf,
    write=_write_gguf,
)
OLMO2 = Family(
    name="olmo2",
    architecture="Olmo2ForCausalLM",
    defaults=DEFAULTS,
    refused=SILU | NO_BIASES,
    read=_read,
    write=_write,
    gguf=GGUF,
)
