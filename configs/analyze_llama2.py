"""What training at 4096 tokens has shown LLaMA 2 of each rotary feature, for use at 32768.

rrope analyze --config=configs/analyze_llama2.py --workdir=runs/analyze_llama2

Takes a few seconds. Expected: 46 of 64 features pre-critical, which together repeat after 7.058e51
tokens; a feature gap of 0 for all of them under resonance, about 0.001 to 0.03 without.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder


def get_config() -> ConfigDict:
    """The config of `rrope analyze`; `rope` also serves the methods that are compared."""
    config = ConfigDict()
    config.train_length = 4096
    config.test_length = 32768
    config.methods = (
        "rope",
        "resonance_rope",
        "linear",
        "resonance_linear",
        "ntk",
        "resonance_ntk",
        "yarn",
        "resonance_yarn",
    )
    config.feature = placeholder(int)  # drawn in angles.png; None chooses
    config.near = 1

    config.rope = ConfigDict()
    config.rope.head_dim = 128
    config.rope.theta = 10000.0
    config.rope.scaling = "none"
    config.rope.resonance = True
    config.rope.factor = 8.0
    config.rope.original_context = 4096
    return config
