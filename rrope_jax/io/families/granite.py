"""Granite 3, dense: LLaMA with four multipliers."""

from collections.abc import Collection
from typing import Any

import numpy as np

from rrope_jax.io.families.family import NO_BIASES, ONE_LIST, SILU, Family, Gguf, Keys
from rrope_jax.model import ModelConfig


def _read(keys: Keys) -> dict[str, Any]:
    return {
        "embedding_scale": keys["embedding_multiplier"],
        "residual_scale": keys["residual_multiplier"],
        "attention_scale": keys["attention_multiplier"],
        "logit_scale": 1 / keys["logits_scaling"],
    }


def _write(model: ModelConfig) -> dict[str, Any]:
    return {
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "embedding_multiplier": model.embedding_scale,
        "residual_multiplier": model.residual_scale,
        "attention_multiplier": model.scale,
        "logits_scaling": inverse(model.logit_scale),
    }


def inverse(number: float, dtype: Any = np.float64) -> float:
    """The shortest decimal of which a number is the inverse in a dtype."""
    for digits in range(1, 17):
        divisor = float(f"{1 / number:.{digits}g}")
        if dtype(1 / divisor) == dtype(number):
            return divisor
    return 1 / number


def scale_of(divisor: float) -> float:
    """The inverse of a divisor that was stored in float32: of it, or of what it is the inverse of.

    The shorter decimal of the two is the one that somebody chose: 7 and not 0.14285714, but 0.3 and
    not 3.3333333.
    """
    scale = inverse(divisor, np.float32)
    return 1 / divisor if len(repr(divisor)) <= len(repr(scale)) else scale


def _read_gguf(keys: Keys, _: Collection[str]) -> dict[str, Any]:
    fields = {
        "embedding_scale": keys.get("embedding_scale"),
        "residual_scale": keys.get("residual_scale"),
        "attention_scale": keys.get("attention.scale"),
    }
    scales = {name: value for name, value in fields.items() if value}  # 0 is none in llama.cpp
    if not keys.get("logit_scale"):
        raise ValueError("it has no granite.logit_scale, which a model needs")
    return {**scales, "logit_scale": scale_of(keys["logit_scale"])}


def _write_gguf(model: ModelConfig) -> dict[str, Any]:
    return {
        "embedding_scale": model.embedding_scale,
        "residual_scale": model.residual_scale,
        "attention.scale": model.scale,
        "logit_scale": inverse(model.logit_scale),
    }


GRANITE = Family(
    name="granite",
    architecture="GraniteForCausalLM",
    defaults={
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-6,
        "embedding_multiplier": 1.0,
        "residual_multiplier": 1.0,
        "attention_multiplier": 1.0,
        "logits_scaling": 1.0,
    },
    refused=SILU | NO_BIASES,
    read=_read,
    write=_write,
    gguf=Gguf(
        "granite",
        adjacent_pairs=True,
        frequency_factors=ONE_LIST,
        refused={"rope.scaling.finetuned": True},  # false turns the rotation off
        read=_read_gguf,
        write=_write_gguf,
    ),
)
