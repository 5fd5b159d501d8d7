"""`rrope algorithmic`: sweeps the lengths of algorithmic tasks and reports the results."""

from collections.abc import Mapping, Sequence
from typing import Any

from absl import flags

from rrope_jax.algorithmic.program import AlgorithmicProgram
from rrope_jax.algorithmic.results import LengthCell
from rrope_jax.cli import backend
from rrope_jax.cli.command_line import parse
from rrope_jax.cli.settings import from_config, unset_group
from rrope_jax.jobs import posgen
from rrope_jax.jobs.algorithmic_setting import AlgorithmicSetting
from rrope_jax.posgen.grid import Training
from rrope_jax.posgen.results import Results
from rrope_jax.reporting.writing import versions
from rrope_jax.run import distributed

SUMMARY = (
    "Trains models on short questions of algorithmic tasks and tests them on long ones, for a grid "
    "of tasks, RoPE methods and seeds."
)


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns its exit code."""
    values = parse(
        "algorithmic",
        SUMMARY,
        argv,
        _define,
        known=lambda config: unset_group(AlgorithmicSetting),
    )
    setting = from_config(AlgorithmicSetting, values.config, "config")
    parts = setting.parts()
    config = values.config.to_dict()
    return distributed.run(
        "algorithmic",
        lambda peers: posgen.run(
            values,
            setting,
            parts,
            lambda: _nothing_finished(setting, config, parts),
            peers,
            report_module="rrope_jax.algorithmic.report",
            cell_type=LengthCell,
        ),
        preemption=False,
    )


def _nothing_finished(
    setting: AlgorithmicSetting,
    config: Mapping[str, Any],
    parts: Sequence[tuple[AlgorithmicProgram, tuple[Training, ...]]],
) -> Results:
    """Returns the results of the grid without any cells."""
    model = parts[0][0].model.fields()
    del model["vocab_size"]  # each task has its own
    planned = [training for _, trainings in parts for training in trainings]
    return Results(
        name=setting.name,
        setting={**config, "seeds": setting.grid.seeds, "model": model},
        backend=backend.describe(),
        versions=versions("jax", "flax", "optax", "orbax-checkpoint"),
        cells_expected=sum(len(training.evaluations) for training in planned),
        complete=False,
        cells=(),
    )


def _define(values: flags.FlagValues) -> None:
    flags.DEFINE_string(
        "workdir",
        None,
        "folder of the results and checkpoints",
        flag_values=values,
        required=True,
    )
