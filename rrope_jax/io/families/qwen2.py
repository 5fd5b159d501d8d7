"""Qwen2 and Qwen2.5: LLaMA with biases of queries, keys and values."""

from collections.abc import Collection
from typing import Any

from rrope_jax.io.families import layer_keys
from rrope_jax.io.families.family import SILU, Family, Gguf, Keys, check_head_dim
from rrope_jax.model import ModelConfig


def _read(keys: Keys) -> dict[str, Any]:
    return {"qkv_bias": True, **layer_keys.read_qwen(keys)}


def _write(model: ModelConfig) -> dict[str, Any]:
    return {"hidden_act": "silu", **layer_keys.write_qwen(model)}


def _write_gguf(model: ModelConfig) -> dict[str, Any]:
    check_head_dim(model)
    return {}


def _read_gguf(_: Keys, tensors: Collection[str]) -> dict[str, Any]:
    return {"qkv_bias": True}


QWEN2 = Family(
    name="qwen2",
    architecture="Qwen2ForCausalLM",
    defaults={
        "max_position_embeddings": 32768,
        "num_key_value_heads": 32,
        "rms_norm_eps": 1e-6,
        **layer_keys.QWEN_DEFAULTS,
    },
    refused=SILU,
    read=_read,
    write=_write,
    gguf=Gguf("qwen2", refused={"attention.sliding_window": 0}, read=_read_gguf, write=_write_gguf),
)
