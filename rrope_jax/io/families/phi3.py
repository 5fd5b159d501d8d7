"""Phi-3 and Phi-4-mini: queries, keys and values in one matrix, gate and up in another."""

from collections.abc import Collection
from typing import Any

from rrope_jax.io.families.family import SILU, Family, Gguf, Keys
from rrope_jax.model import ModelConfig

_QKV = "model.layers.{layer}.self_attn.qkv_proj.weight"
_GATE_UP = "model.layers.{layer}.mlp.gate_up_proj.weight"
_GGUF_QKV = "blk.{layer}.attn_qkv.weight"
_GGUF_GATE_UP = "blk.{layer}.ffn_up.weight"


def _read(keys: Keys) -> dict[str, Any]:
    window = keys.get("sliding_window")
    if window is None:
        return {}
    return {"layer_types": ("sliding_attention",), "sliding_window": window}


def _write(model: ModelConfig) -> dict[str, Any]:
    return {"hidden_act": "silu", "sliding_window": model.sliding_window}


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
    if model.head_size * model.num_heads != model.d_model:
        raise ValueError(
            f"head_dim={model.head_size} is not d_model / num_heads, as llama.cpp has it there"
        )
    return {"attention.sliding_window": 0}


PHI3 = Family(
    name="phi3",
    architecture="Phi3ForCausalLM",
    defaults={"max_position_embeddings": 4096, "rms_norm_eps": 1e-5},
    refused=SILU,
    read=_read,
    write=_write,
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
