"""Mistral: LLaMA, with a sliding window in all layers of its first release."""

from typing import Any

from rrope_jax.io.families.family import NO_BIASES, SILU, Family, Keys
from rrope_jax.io.families.llama import LLAMA
from rrope_jax.model import ModelConfig


def _read(keys: Keys) -> dict[str, Any]:
    window = keys["sliding_window"]
    if window is None:
        return {}
    return {"layer_types": ("sliding_attention",), "sliding_window": window}


def _write(model: ModelConfig) -> dict[str, Any]:
    return {"hidden_act": "silu", "sliding_window": model.sliding_window}


MISTRAL = Family(
    name="mistral",
    architecture="MistralForCausalLM",
    defaults={
        "max_position_embeddings": 4096 * 32,
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-6,
        "sliding_window": 4096,
    },
    refused=SILU | NO_BIASES,
    read=_read,
    write=_write,
    gguf=LLAMA.gguf,
)
