"""The paper's PosGen protocol at a width that a laptop finishes.

    rrope posgen --config=configs/posgen_small.py --workdir=runs/posgen_small

Data, splits, epochs, batch and the size of a head are the paper's (see posgen_paper.py); the model
has one head and d_model 64 instead of eight and 512, with a learning rate to match and no dropout.

Cost: 12 trainings of 11,700 steps, 130 to 180 ms each on one CPU core, validation included: about
three hours on two idle cores. The tasks come in the order of how much they tell, since a run may be
stopped and reported at any time.
"""

import runpy
from pathlib import Path

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """The config of `rrope posgen`."""
    paper = runpy.run_path(str(Path(__file__).with_name("posgen_paper.py")))
    config: ConfigDict = paper["get_config"]()
    config.name = "posgen_small"
    config.tasks = ("cot", "recursive", "semi_recursive")
    config.num_seeds = 1
    config.save_every_seconds = 60.0

    config.model.d_model = 64
    config.model.num_heads = 1
    config.model.d_ff = 256
    config.model.logit_scale = 64**-0.5
    config.model.dropout = 0.0

    config.train.learning_rate = 1e-3
    config.train.gradient_clip = 1.0
    config.train.steps_per_call = 39
    return config
