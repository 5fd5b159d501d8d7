"""OLMo 2 and 3, Phi-4-mini, and Granite 3."""

from typing import Any

from rrope_jax.model.config import ModelConfig
from rrope_jax.model.presets.preset import Preset
from rrope_jax.rope import RopeSpec


def _olmo(vocab_size: int, rope: RopeSpec, context: int, **fields: Any) -> Preset:
    return Preset(
        ModelConfig(
            vocab_size=vocab_size,
            d_model=4096,
            num_layers=32,
            num_heads=32,
            d_ff=11_008,
            rms_norm_eps=1e-6,
            qk_norm="all_heads",
            norm_placement="after",
            **fields,
        ),
        rope,
        context,
    )


def _granite(**fields: Any) -> Preset:
    """ibm-granite/granite-3.3-*-base."""
    model = ModelConfig(
        vocab_size=49_159,
        num_layers=40,
        num_heads=32,
        num_kv_heads=8,
        tie_embeddings=True,
        embedding_scale=12.0,
        residual_scale=0.22,
        **fields,
    )
    return Preset(model, RopeSpec(head_dim=model.head_size, theta=10_000_000.0), context=131_072)


_OLMO = RopeSpec(head_dim=128, theta=500_000.0)
# microsoft/Phi-4-mini-instruct
_PHI_LONG = (
    *(1.0, 1.118320672, 1.250641126, 1.398617824, 1.564103225, 1.74916897, 1.956131817),
    *(2.187582649, 2.446418898, 2.735880826, 3.059592084, 3.421605075, 3.826451687),
    *(4.279200023, 4.785517845, 5.351743533, 5.984965424, 6.693110555, 7.485043894),
    *(8.370679318, 9.36110372, 10.4687158, 11.70738129, 13.09260651, 14.64173252),
    *(16.37415215, 18.31155283, 20.47818807, 22.90118105, 25.61086418, 28.64115884),
    *(32.03, 32.1, 32.13, 32.23, 32.6, 32.61, 32.64, 32.66, 32.7, 32.71, 32.93, 32.97),
    *(33.28, 33.49, 33.5, 44.16, 47.77),
)

OTHERS: dict[str, Preset] = {
    # allenai/OLMo-2-1124-7B
    "olmo2_7b": _olmo(100_352, _OLMO, context=4096),
    # allenai/Olmo-3-1025-7B: only the layers that see everything are extended
    "olmo3_7b": _olmo(
        100_278,
        RopeSpec(
            head_dim=128,
            theta=500_000.0,
            scaling="yarn",
            factor=8.0,
            original_context=8192,
            sliding_attention=_OLMO,
        ),
        context=65_536,
        layer_types=(*("sliding_attention",) * 3, "full_attention"),
        sliding_window=4096,
    ),
    # its window is longer than its context
    "phi4_mini": Preset(
        ModelConfig(
            vocab_size=200_064,
            d_model=3072,
            num_layers=32,
            num_heads=24,
            num_kv_heads=8,
            d_ff=8192,
            tie_embeddings=True,
            layer_types=("sliding_attention",),
            sliding_window=262_144,
        ),
        RopeSpec(
            head_dim=128,
            scaling="longrope",
            factor=32.0,
            original_context=4096,
            partial_rotary_factor=0.75,
            short_factor=(1.0,) * 48,
            long_factor=_PHI_LONG,
        ),
        context=131_072,
    ),
    "granite3_2b": _granite(d_model=2048, d_ff=8192, attention_scale=2**-6, logit_scale=2**-3),
    "granite3_8b": _granite(d_model=4096, d_ff=12_800, attention_scale=2**-7, logit_scale=2**-4),
}
