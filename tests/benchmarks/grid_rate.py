"""Training steps per second of a PosGen ablation that runs several trainings at a time."""

import concurrent.futures
import dataclasses
import multiprocessing
import statistics
import threading
import time
from collections.abc import Sequence

import jax

from rrope_jax.jobs import posgen
from rrope_jax.posgen import ablation
from rrope_jax.posgen.ablation import TrainingProgress
from rrope_jax.posgen.grid import Training
from rrope_jax.posgen.training import PosgenProgram, PosgenState

_CALLS = 3  # after the one that compiles


class Stopwatch:
    """An `ablation.Store` that keeps nothing but the times at which calls of the program ended."""

    def __init__(self, calls: int):
        """Sets `stop` after so many calls, beside the first one, which compiles."""
        self.stop = threading.Event()
        self._calls = calls
        self._ends: list[float] = []
        self._step = 0

    def finished(self, training: Training) -> bool:
        """None is: all are to be measured."""
        return False

    def finish(self, training: Training, cells: list[ablation.Cell]) -> None:
        """Not reached: `stop` comes before the end of a training."""
        raise RuntimeError(f"{training.name} ended before it was measured")

    def restore(self, training: Training, like: PosgenState) -> None:
        """Nothing was saved."""

    def save(self, training: Training, state: PosgenState, progress: TrainingProgress) -> None:
        """Notes the time of a call, once for all the trainings that it advanced."""
        if progress.step == self._step:
            return
        self._step = progress.step
        self._ends.append(time.perf_counter())
        if len(self._ends) > self._calls:
            self.stop.set()

    def calls_per_second(self) -> float:
        """Of those after the first."""
        return (len(self._ends) - 1) / (self._ends[-1] - self._ends[0])


def _rate(program: PosgenProgram, trainings: tuple[Training, ...], steps_per_call: int) -> float:
    """Steps per second; in a process of its own, since the devices follow from the trainings."""
    jax.config.update("jax_platforms", "cpu")
    posgen.use_cpu_devices(len(trainings))
    steps = 10_000 * steps_per_call  # more than will be done
    train = dataclasses.replace(
        program.train, steps=steps, validate_every=steps, steps_per_call=steps_per_call
    )
    stopwatch = Stopwatch(_CALLS)
    ablation.run(
        dataclasses.replace(program, train=train),
        trainings,
        stopwatch,
        save_every_seconds=0.0,
        stop=stopwatch.stop,
    )
    return len(trainings) * steps_per_call * stopwatch.calls_per_second()


def rates(
    program: PosgenProgram,
    planned: Sequence[Training],
    *,
    at_a_time: Sequence[int],
    steps_per_call: int,
    repeats: int,
) -> dict[int, float]:
    """Median training steps per second of all trainings together, by how many run at a time.

    Args:
      program, planned: of `rrope posgen`; the first trainings of the plan are run.
      at_a_time: numbers of trainings, measured in turns.
      steps_per_call: training steps between two looks at the clock.
      repeats: measurements of each.
    """
    measured: dict[int, list[float]] = {number: [] for number in at_a_time}
    spawn = multiprocessing.get_context("spawn")
    for _ in range(repeats):
        for number in at_a_time:
            with concurrent.futures.ProcessPoolExecutor(1, mp_context=spawn) as process:
                rate = process.submit(_rate, program, tuple(planned[:number]), steps_per_call)
                measured[number].append(rate.result())
    return {number: statistics.median(values) for number, values in measured.items()}
