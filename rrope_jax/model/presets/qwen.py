"""Qwen 2.5 and Qwen 3."""

from typing import Any

from rrope_jax.model.config import ModelConfig
from rrope_jax.model.presets.preset import Preset
from rrope_jax.rope import RopeSpec


def _qwen(head_dim: int, **fields: Any) -> Preset:
    """Qwen/Qwen2.5-* and Qwen/Qwen3-*-Base, before their extension by YaRN."""
    return Preset(
        ModelConfig(head_dim=head_dim, rms_norm_eps=1e-6, **fields),
        RopeSpec(head_dim=head_dim, theta=1_000_000.0),
        context=32_768,
    )


QWEN: dict[str, Preset] = {
    "qwen2.5_0.5b": _qwen(
        64,
        vocab_size=151_936,
        d_model=896,
        num_layers=24,
        num_heads=14,
        num_kv_heads=2,
        d_ff=4864,
        qkv_bias=True,
        tie_embeddings=True,
    ),
    "qwen2.5_7b": _qwen(
        128,
        vocab_size=152_064,
        d_model=3584,
        num_layers=28,
        num_heads=28,
        num_kv_heads=4,
        d_ff=18_944,
        qkv_bias=True,
    ),
    "qwen3_0.6b": _qwen(
        128,
        vocab_size=151_936,
        d_model=1024,
        num_layers=28,
        num_heads=16,
        num_kv_heads=8,
        d_ff=3072,
        qk_norm="head",
        tie_embeddings=True,
    ),
    "qwen3_8b": _qwen(
        128,
        vocab_size=151_936,
        d_model=4096,
        num_layers=36,
        num_heads=32,
        num_kv_heads=8,
        d_ff=12_288,
        qk_norm="head",
    ),
}
