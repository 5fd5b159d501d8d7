"""Phi-3 and Phi-4-mini: queries, keys and values in one matrix, gate and up in another."""

from collections.abc import Collection
from typing import Any

from rrope_jax.io.families.family import SILU, Family, Gguf, Keys, check_head_dim
from rrope_jax.io.families.mistral import MISTRAL
from rrope_jax.model import ModelConfig

_QKV = "model.layers.{layer}.self_attn.qkv_proj.weight"
_GATE_UP = "model.layers.{layer}.mlp.gate_up_proj.weight"
_GGUF_QKV = "blk.{layer}.attn_qkv.weight"
_GGUF_GATE_UP = "blk.{layer}.ffn_up.weight"


def _fused(qkv: str, gate_up: str) -> dict[str, str]:
    return {
        **{f"blocks.attention.{name}": qkv for name in ("query", "key", "value")},
        **{f"blocks.feed_forward.{name}": gate_up for name in ("gate", "up")},
    }


def _read_gguf(keys: Keys, _: Collection[str]) -> dict[str, Any]:
    # llama.cpp attends to the whole row, whatever the file says ("Phi SWA is currently disabled"):
    # a window at least as long as the context is none
    window = keys.get("attention.sliding_window", 0)
    if 0 < window < keys["context_length"]:
        raise ValueError(
            f"phi3.attention.sliding_window={window} is not read by llama.cpp, which answers "
            "wrongly beyond it; convert the Hugging Face folder instead"
        )
    return {}


def _write_gguf(model: ModelConfig) -> dict[str, Any]:
    check_head_dim(model)
    return {"attention.sliding_window": 0}


PHI3 = Family(
    name="phi3",
    architecture="Phi3ForCausalLM",
    defaults={"max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "sliding_window": None},
    refused=SILU,
    read=MISTRAL.read,
    write=MISTRAL.write,
    huggingface=_fused(_QKV, _GATE_UP),
    gguf=Gguf(
        "phi3",
        frequency_factors=("rope_factors_short.weight", "rope_factors_long.weight"),
        partial_rotary=True,
        names=_fused(_GGUF_QKV, _GGUF_GATE_UP),
        read=_read_gguf,
        write=_write_gguf,
    ),
)
