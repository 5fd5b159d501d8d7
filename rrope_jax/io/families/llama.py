"""LLaMA 1, 2 and 3.x, and all models that are stored as one (SmolLM 1 and 2, ...)."""

from collections.abc import Collection
from typing import Any

from rrope_jax.io.families.family import NO_BIASES, ONE_LIST, SILU, Family, Gguf, Keys
from rrope_jax.model import ModelConfig


def _write(_: ModelConfig) -> dict[str, Any]:
    return {"hidden_act": "silu", "attention_bias": False, "mlp_bias": False}


def _read_gguf(_: Keys, tensors: Collection[str]) -> dict[str, Any]:
    return {"qkv_bias": "blk.0.attn_q.bias" in tensors}  # optional in llama.cpp


LLAMA = Family(
    name="llama",
    architecture="LlamaForCausalLM",
    defaults={"max_position_embeddings": 2048, "rms_norm_eps": 1e-6},
    refused=SILU | NO_BIASES | {"sliding_window": (None,)},
    mends={
        "sliding_window": ". Programs that read this model_type take no notice of the key: set the "
        "key to null, or model_type to one with windows, such as mistral"
    },
    write=_write,
    # llama.cpp's conversion reorders q_proj and k_proj (LlamaModel.permute).
    gguf=Gguf(
        "llama",
        adjacent_pairs=True,
        frequency_factors=ONE_LIST,
        refused={"attention.sliding_window": 0},
        read=_read_gguf,
    ),
)
