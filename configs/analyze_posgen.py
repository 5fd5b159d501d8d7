"""The features of the paper's PosGen model: trained at 64 tokens, tested at 256.

rrope analyze --config=configs/analyze_posgen.py --workdir=runs/analyze_posgen

Takes a few seconds. Expected: 9 of 32 features pre-critical, whose gap is 0 under resonance.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder


def get_config() -> ConfigDict:
    """The config of `rrope analyze`; `rope` also serves the methods that are compared."""
    config = ConfigDict()
    config.train_length = 64
    config.test_length = 256
    config.methods = ("rope", "resonance_rope", "yarn", "resonance_yarn")
    config.feature = placeholder(int)  # drawn in angles.png; None chooses
    config.near = 1

    config.rope = ConfigDict()
    config.rope.head_dim = 64
    config.rope.theta = 10000.0
    config.rope.scaling = "none"
    config.rope.resonance = True
    config.rope.factor = 4.0
    config.rope.original_context = 64
    config.rope.beta_fast = 2.0
    config.rope.beta_slow = 1.0
    return config
