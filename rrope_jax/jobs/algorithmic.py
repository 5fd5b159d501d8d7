"""`rrope algorithmic`: sweeps the lengths of algorithmic tasks and reports the results."""

from collections.abc import Mapping, Sequence
from typing import Any

from absl import flags

from rrope_jax.algorithmic.program import AlgorithmicProgram
from rrope_jax.algorithmic.results import LengthCell
from rrope_jax.cli.command_line import parse
from rrope_jax.cli.settings import from_config, unset_group
from rrope_jax.jobs import posgen
from rrope_jax.jobs.algorithmic_setting import AlgorithmicSetting
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
            _described(setting, config, parts[0][0]),
            peers,
            report_module="rrope_jax.algorithmic.report",
            cell_type=LengthCell,
        ),
        preemption=False,
    )


def _described(
    setting: AlgorithmicSetting, config: Mapping[str, Any], program: AlgorithmicProgram
) -> dict[str, Any]:
    """Returns the `setting` of results.json."""
    model = program.model.fields()
    del model["vocab_size"]  # each task has its own
    return {**config, "seeds": setting.grid.seeds, "model": model}


def _define(values: flags.FlagValues) -> None:
    flags.DEFINE_string(
        "workdir",
        None,
        "folder of the results and checkpoints",
        flag_values=values,
        required=True,
    )
