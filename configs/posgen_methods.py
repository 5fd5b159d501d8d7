"""PosGen in miniature for the method table: posgen_quick.py, every scaling by name, three seeds.

    rrope posgen --config=configs/posgen_methods.py --workdir=runs/methods_posgen \
        --config.methods=rope,yarn,nope,abf

Scalings are switched on for the test, so 18 trainings serve all methods: three tasks, three seeds,
with and without Resonance. They validate once, at their end, since every validation is one of every
method. launch/method_table.sh runs it; docs/method_table.md has what came out.

Cost: some 50 seconds of one core a training, and a second for each method.
"""

import runpy
from pathlib import Path

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """The config of `rrope posgen`."""
    quick = runpy.run_path(str(Path(__file__).with_name("posgen_quick.py")))
    config: ConfigDict = quick["get_config"]()
    config.name = "posgen_methods"
    config.num_seeds = 3
    config.first_seed = 20
    config.train.validate_every = config.train.steps

    config.rope.abf_theta = 500_000.0
    config.rope.clipped_features = 5
    config.rope.shortest_wavelength = 6.0
    return config
