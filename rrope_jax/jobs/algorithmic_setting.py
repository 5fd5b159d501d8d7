"""The setting, programs and trainings that a config of `rrope algorithmic` describes."""

import dataclasses
from typing import Annotated

from rrope_jax.algorithmic.config import SweepConfig, SweepTask, check_algorithmic_tasks
from rrope_jax.algorithmic.program import AlgorithmicProgram
from rrope_jax.cli.errors import refusing
from rrope_jax.cli.settings import INLINE
from rrope_jax.jobs.posgen_setting import AblationSetting, Grid
from rrope_jax.posgen.grid import Training


@dataclasses.dataclass(frozen=True, kw_only=True)
class AlgorithmicGrid(Grid):
    """The trainings of a length sweep; `tasks` are keys of `algorithmic.TASKS`."""

    def _check_tasks(self) -> None:
        check_algorithmic_tasks(self.tasks)


@dataclasses.dataclass(frozen=True, kw_only=True)
class AlgorithmicSetting(AblationSetting):
    """A config of `rrope algorithmic`; the fields of `sweep` and `grid` are at its top level.

    Attributes:
      sweep: The lengths.
      grid: The trainings.
    """

    sweep: Annotated[SweepConfig, INLINE]
    grid: Annotated[AlgorithmicGrid, INLINE]

    def parts(self) -> list[tuple[AlgorithmicProgram, tuple[Training, ...]]]:
        """Returns the program and the trainings of each task.

        Raises:
          UsageError: The groups contradict each other, or a task has no question of some length.
        """
        parts = []
        for task in self.grid.tasks:
            with refusing("config"):
                sweep_task = SweepTask(task, self.sweep)
            program = self.program_of(AlgorithmicProgram, sweep_task)
            of_task = [each for each in self.trainings(program) if each.task == task]
            parts.append((program, tuple(of_task)))
        return parts
