"""Small models: for tests, and the one of the PosGen experiments."""

from rrope_jax.model.config import ModelConfig
from rrope_jax.model.presets.preset import Preset
from rrope_jax.rope import RopeSpec

SMALL: dict[str, Preset] = {
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
}
