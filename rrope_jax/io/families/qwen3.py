"""Qwen3, dense: LLaMA with norms of queries and keys, head by head."""

from collections.abc import Collection
from typing import Any

from rrope_jax.io.families import layer_keys
from rrope_jax.io.families.family import NO_BIASES, SILU, Family, Gguf, Keys
from rrope_jax.model import ModelConfig


def _read(keys: Keys) -> dict[str, Any]:
    return {"qk_norm": "head", **layer_keys.read_qwen(keys)}


def _write(model: ModelConfig) -> dict[str, Any]:
    return {"hidden_act": "silu", "attention_bias": False, **layer_keys.write_qwen(model)}


def _read_gguf(_: Keys, tensors: Collection[str]) -> dict[str, Any]:
    return {"qk_norm": "head"}


QWEN3 = Family(
    name="qwen3",
    architecture="Qwen3ForCausalLM",
    defaults={
        "max_position_embeddings": 32768,
        "num_key_value_heads": 32,
        "head_dim": 128,
        "rms_norm_eps": 1e-6,
        **layer_keys.QWEN_DEFAULTS,
    },
    refused=SILU | NO_BIASES,
    read=_read,
    write=_write,
    gguf=Gguf("qwen3", refused={"attention.sliding_window": 0}, read=_read_gguf),
)
