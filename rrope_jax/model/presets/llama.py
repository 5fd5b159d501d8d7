"""LLaMA and models with its layers."""

from typing import Any

from rrope_jax.model.config import ModelConfig
from rrope_jax.model.presets.preset import Preset
from rrope_jax.rope import RopeSpec


def _ministral3(**sizes: Any) -> Preset:
    """The text model of mistralai/Ministral-3-*-Base-2512."""
    return Preset(
        ModelConfig(vocab_size=131_072, num_heads=32, num_kv_heads=8, head_dim=128, **sizes),
        RopeSpec(
            head_dim=128,
            theta=1_000_000.0,
            scaling="yarn",
            factor=16.0,
            original_context=16_384,
            mscale=1.0,
            mscale_all_dim=1.0,
            llama_4_scaling_beta=0.1,
        ),
        context=262_144,
    )


LLAMA: dict[str, Preset] = {
    # HuggingFaceTB/SmolLM2-135M
    "smollm2_135m": Preset(
        ModelConfig(
            vocab_size=49_152,
            d_model=576,
            num_layers=30,
            num_heads=9,
            num_kv_heads=3,
            d_ff=1536,
            tie_embeddings=True,
        ),
        RopeSpec(head_dim=64, theta=100_000.0),
        context=8192,
    ),
    # arXiv 2307.09288
    "llama2_7b": Preset(
        ModelConfig(vocab_size=32_000, d_model=4096, num_layers=32, num_heads=32, d_ff=11_008),
        RopeSpec(head_dim=128),
        context=4096,
    ),
    "llama2_13b": Preset(
        ModelConfig(vocab_size=32_000, d_model=5120, num_layers=40, num_heads=40, d_ff=13_824),
        RopeSpec(head_dim=128),
        context=4096,
    ),
    # arXiv 2407.21783
    "llama3_8b": Preset(
        ModelConfig(
            vocab_size=128_256,
            d_model=4096,
            num_layers=32,
            num_heads=32,
            num_kv_heads=8,
            d_ff=14_336,
        ),
        RopeSpec(head_dim=128, theta=500_000.0),
        context=8192,
    ),
    # meta-llama/Llama-3.2-1B
    "llama3.2_1b": Preset(
        ModelConfig(
            vocab_size=128_256,
            d_model=2048,
            num_layers=16,
            num_heads=32,
            num_kv_heads=8,
            d_ff=8192,
            tie_embeddings=True,
        ),
        RopeSpec(
            head_dim=64,
            theta=500_000.0,
            scaling="llama3",
            factor=32.0,
            original_context=8192,
        ),
        context=131_072,
    ),
    # mistralai/Mistral-7B-v0.1: every layer has a window
    "mistral_7b": Preset(
        ModelConfig(
            vocab_size=32_000,
            d_model=4096,
            num_layers=32,
            num_heads=32,
            num_kv_heads=8,
            d_ff=14_336,
            layer_types=("sliding_attention",),
            sliding_window=4096,
        ),
        RopeSpec(head_dim=128),
        context=32_768,
    ),
    "ministral3_3b": _ministral3(d_model=3072, num_layers=26, d_ff=9216, tie_embeddings=True),
    "ministral3_8b": _ministral3(d_model=4096, num_layers=34, d_ff=14_336),
    # HuggingFaceTB/SmolLM3-3B: every fourth layer has no rotation
    "smollm3_3b": Preset(
        ModelConfig(
            vocab_size=128_256,
            d_model=2048,
            num_layers=36,
            num_heads=16,
            num_kv_heads=4,
            d_ff=11_008,
            tie_embeddings=True,
            rms_norm_eps=1e-6,
            layer_types=(*("full_attention",) * 3, "nope"),
        ),
        RopeSpec(head_dim=128, theta=5_000_000.0),
        context=65_536,
    ),
}
