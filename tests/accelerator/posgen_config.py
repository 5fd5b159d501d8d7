"""`configs/posgen_paper.py` for `rrope posgen` on an accelerator: `--config=FILE:SIZE`.

The sizes are `paper`, of which nothing that the results depend on is changed, `cell`, one cell of
it in a training of its own, and the two for a CPU, `small` and `small_cell`.
"""

import runpy
from collections.abc import Callable
from pathlib import Path

from ml_collections import ConfigDict

_PAPER = Path(__file__).parents[2] / "configs" / "posgen_paper.py"


def get_config(size: str = "paper") -> ConfigDict:
    """The config of `rrope posgen`."""
    config: ConfigDict = runpy.run_path(str(_PAPER))["get_config"]()
    config.model.compute_dtype = "float32"  # the default, to be overridden
    # in every mode the same, which has dropout and so is that of training in any case
    config.model.attention = "xla"
    _SIZES[size](config)
    return config


def _paper(config: ConfigDict) -> None:
    """Ten validations rather than 150, which cost as much as half of the training."""
    config.train.validate_every = 1170
    config.save_every_seconds = 240.0


def _cell(config: ConfigDict) -> None:
    """Five seeds, so that it has a spread, and ten epochs on the schedule of ten."""
    config.tasks, config.methods = ("cot",), ("rope",)
    config.protocols = ("scaled_at_test",)
    config.train.steps = 780


def _small(config: ConfigDict) -> None:
    config.tasks, config.methods = ("recursive", "cot"), ("rope", "resonance_rope")
    config.num_seeds = 2
    config.lanes = 2  # side by side, as on an accelerator
    config.mesh.ablation = 1
    config.train_length = config.rope.original_context = 16
    config.test_length = 32
    config.train_sequences, config.validation_sequences, config.test_sequences = 64, 20, 20
    config.model.update(d_model=32, num_heads=2, head_dim=16, d_ff=64)
    config.train.update(
        steps=60, batch_size=16, validate_every=30, steps_per_call=10, eval_batch_size=20
    )
    config.save_every_seconds = 1.0


def _small_cell(config: ConfigDict) -> None:
    _small(config)
    _cell(config)
    config.num_seeds = 5
    config.train.steps = 60


_SIZES: dict[str, Callable[[ConfigDict], None]] = {
    "paper": _paper,
    "cell": _cell,
    "small": _small,
    "small_cell": _small_cell,
}
