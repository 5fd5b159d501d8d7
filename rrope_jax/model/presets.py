"""Frozen configs of known models; tests check their parameter counts."""

import dataclasses

from rrope_jax.model.config import ModelConfig
from rrope_jax.rope import RopeSpec


@dataclasses.dataclass(frozen=True)
class Preset:
    """A model and the rotary embedding that it was trained with.

    Attributes:
      model: the decoder.
      rope: its embedding; `rope.with_method` returns a scaled or resonant one.
      context: the training length in tokens.
    """

    model: ModelConfig
    rope: RopeSpec
    context: int


PRESETS: dict[str, Preset] = {
    # for tests: grouped heads, untied output
    "tiny": Preset(
        ModelConfig(vocab_size=64, d_model=32, num_layers=2, num_heads=4, num_kv_heads=2, d_ff=64),
        RopeSpec(head_dim=8),
        context=64,
    ),
    # arXiv 2403.00071, section 6.1: two layers of T5-Small; 17 tokens plus the start token
    "posgen_paper": Preset(
        ModelConfig(
            vocab_size=18,
            d_model=512,
            num_layers=2,
            num_heads=8,
            head_dim=64,
            d_ff=2048,
            activation="relu",
            attention_scale=1.0,
            tie_embeddings=True,
            logit_scale=512**-0.5,
            initialization="t5",
            dropout=0.1,
            rms_norm_eps=1e-6,
        ),
        RopeSpec(head_dim=64),
        context=64,
    ),
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
}
