"""Gemma 3."""

from typing import Any

from rrope_jax.model.config import ModelConfig
from rrope_jax.model.presets.preset import Preset
from rrope_jax.rope import RopeSpec


def _gemma3(*, d_model: int, context: int, head_dim: int, factor: float, **fields: Any) -> Preset:
    """The text model of google/gemma-3-*-pt."""
    return Preset(
        ModelConfig(
            d_model=d_model,
            head_dim=head_dim,
            activation="geglu",
            tie_embeddings=True,
            rms_norm_eps=1e-6,
            layer_types=(*("sliding_attention",) * 5, "full_attention"),
            qk_norm="head",
            norm_placement="both",
            norm_offset=True,
            embedding_scale=d_model**0.5,
            **fields,
        ),
        RopeSpec(
            head_dim=head_dim,
            theta=1_000_000.0,
            scaling="none" if factor == 1 else "linear",
            factor=factor,
            sliding_attention=RopeSpec(head_dim=head_dim, theta=10_000.0),
        ),
        context=context,
    )


GEMMA: dict[str, Preset] = {
    "gemma3_270m": _gemma3(
        vocab_size=262_144,
        d_model=640,
        num_layers=18,
        num_heads=4,
        num_kv_heads=1,
        head_dim=256,
        d_ff=2048,
        sliding_window=512,
        factor=1.0,
        context=32_768,
    ),
    "gemma3_1b": _gemma3(
        vocab_size=262_144,
        d_model=1152,
        num_layers=26,
        num_heads=4,
        num_kv_heads=1,
        head_dim=256,
        d_ff=6912,
        sliding_window=512,
        factor=1.0,
        context=32_768,
    ),
    "gemma3_27b": _gemma3(
        vocab_size=262_208,
        d_model=5376,
        num_layers=62,
        num_heads=32,
        num_kv_heads=16,
        head_dim=128,
        d_ff=21_504,
        sliding_window=1024,
        attention_scale=168**-0.5,
        factor=8.0,
        context=131_072,
    ),
}
