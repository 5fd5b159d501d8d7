"""Runs the trainings of an ablation on all devices, resumably.

Rounds of trainings run as one program over the mesh (`layout`, `lanes`), one round after another;
with several processes, each has the slots of its own devices and needs nothing of the others. What
is in a round depends on the ablation and the mesh alone, never on what is already done, so that a
resumed run computes what the unbroken one would have. Checkpoints are those of single trainings,
so that a run can also go on on another mesh.
"""

import collections
import dataclasses
import logging
import threading
import time
from collections.abc import Sequence
from concurrent import futures
from typing import Any, Protocol

import jax
import numpy as np
import numpy.typing as npt
from jax.sharding import Mesh

from rrope_jax.posgen.cells import read_cells
from rrope_jax.posgen.grid import Training
from rrope_jax.posgen.lanes import Lanes, default_lanes, inputs
from rrope_jax.posgen.layout import (
    MeshConfig,
    Round,
    make_mesh,
    mesh_here,
    rounds,
    slots_here,
    trainings_in,
)
from rrope_jax.posgen.training import Program, State

_LOG = logging.getLogger(__name__)

_Float64 = npt.NDArray[np.float64]

Cell = dict[str, Any]
"""One entry of results.json's `cells`: see the contract in docs/posgen.md."""


@dataclasses.dataclass
class Progress:
    """How far a training is; saved with its checkpoint.

    Attributes:
      step: optimizer steps done.
      validation_step: optimizer steps at which validation was done.
      validation_loss: [validations][evaluations], mean over rows and positions.
      train_loss: [validations], mean over the steps since the last validation.
      seconds: time of a device spent so far, over all the processes that worked on it.
      pending_loss: [steps since the last validation], for the next `train_loss`.
    """

    step: int = 0
    validation_step: list[int] = dataclasses.field(default_factory=list)
    validation_loss: list[list[float]] = dataclasses.field(default_factory=list)
    train_loss: list[float] = dataclasses.field(default_factory=list)
    seconds: float = 0.0
    pending_loss: list[float] = dataclasses.field(default_factory=list)


class Store(Protocol):
    """Where an ablation keeps what must survive the process."""

    def finished(self, training: Training) -> bool:
        """Whether `finish` was called for the training, in this process or an earlier one."""

    def finish(self, training: Training, cells: list[Cell]) -> None:
        """Keeps the results of a training."""

    def restore(self, training: Training, like: State) -> tuple[State, Progress] | None:
        """The newest saved state of a training, numpy arrays as in `like`."""

    def save(self, training: Training, state: State, progress: Progress) -> None:
        """Keeps the state of a training, numpy arrays, replacing the one before."""


@dataclasses.dataclass
class _Lane:
    """An unfinished training, and its slot in the round."""

    slot: int
    training: Training
    progress: Progress


class _RoundRun:
    """The slots of one round on the devices of this process."""

    def __init__(self, program: Program, functions: Lanes, slots: Round, store: Store):
        self._program, self._functions, self._store = program, functions, store
        given = inputs(program, slots)
        task = trainings_in(slots)[0].task
        self.data = functions.data(task, functions.place(given.data_key_S))
        self._train_key_S = functions.place(given.train_key_S)
        self._table_S, self._tables_SE = functions.place((given.table_S, given.tables_SE))
        self._state: State = functions.init(functions.place(given.init_key_S))
        self._slots = len(slots)
        self._lanes = [
            _Lane(slot, training, Progress())
            for slot, training in enumerate(slots)
            if training is not None and not store.finished(training)
        ]
        self._restore()

    @property
    def steps_done(self) -> int:
        """Of all unfinished trainings."""
        return sum(lane.progress.step for lane in self._lanes)

    @property
    def done(self) -> bool:
        """Whether only the test is left to do."""
        return not self._behind()

    def advance(self) -> tuple[int, str]:
        """Trains for one call of the program, or validates.

        Those furthest behind go first, until all are at the same step: a kill between the saves of
        two of them, or another mesh, may have left them at different ones.

        Returns:
          The training steps done, and a few words on where they led.
        """
        behind = self._behind()
        progress, every = behind[0].progress, self._program.train.validate_every
        if len(progress.validation_step) < progress.step // every:
            self._validate(behind)
            return 0, ""
        return self._train(behind)

    def save(self) -> None:
        """Hands every unfinished training's state to the store."""
        state = jax.device_get(self._state)
        for lane in self._lanes:
            own = jax.tree.map(lambda x, slot=lane.slot: np.asarray(x[slot]), state)
            self._store.save(lane.training, own, lane.progress)

    def finish(self) -> None:
        """Tests, and hands every training's cells to the store."""
        accuracy_SEP, loss_SEP = self._evaluate(self.data.test_NT)
        for lane in self._lanes:
            cells = _cells(self._program, lane, accuracy_SEP[lane.slot], loss_SEP[lane.slot])
            self._store.finish(lane.training, cells)

    def _restore(self) -> None:
        like = jax.tree.map(lambda x: np.empty(x.shape[1:], x.dtype), self._state)
        found = [(lane, self._store.restore(lane.training, like)) for lane in self._lanes]
        if not any(kept for _, kept in found):
            return
        whole = jax.tree.map(np.array, jax.device_get(self._state))
        for lane, kept in found:
            if kept is not None:
                own, lane.progress = kept
                jax.tree.map(lambda x_S, x, slot=lane.slot: x_S.__setitem__(slot, x), whole, own)
        self._state = self._functions.place(whole)

    def _behind(self) -> list[_Lane]:
        """The trainings that have done the least and have something left to do."""
        train = self._program.train

        def place(lane: _Lane) -> tuple[int, int]:
            return lane.progress.step, len(lane.progress.validation_step)

        end = (train.steps, train.steps // train.validate_every)
        least = min(map(place, self._lanes), default=end)
        return [lane for lane in self._lanes if place(lane) == least != end]

    def _train(self, behind: list[_Lane]) -> tuple[int, str]:
        began = time.perf_counter()
        active_S = np.zeros(self._slots, bool)
        active_S[[lane.slot for lane in behind]] = True
        self._state, losses = self._functions.train(
            self._state,
            self._functions.place(active_S),
            self.data.train_NT,
            self._table_S,
            self._train_key_S,
        )
        losses_SK = np.asarray(losses, np.float64)
        for lane in behind:
            lane.progress.step += losses_SK.shape[1]
            lane.progress.pending_loss += losses_SK[lane.slot].tolist()
        self._count_seconds(behind, began)
        step = behind[0].progress.step
        diverged = [lane for lane in behind if not np.isfinite(losses_SK[lane.slot]).all()]
        if diverged:
            names = ", ".join(lane.training.name for lane in diverged)
            raise FloatingPointError(
                f"the training loss of {names} is no longer finite at step {step}; lower "
                "train.learning_rate or set train.gradient_clip"
            )
        more = f" and {len(behind) - 1} more" if len(behind) > 1 else ""
        loss = np.mean([lane.progress.pending_loss for lane in behind])
        where = f"{behind[0].training.name}{more} step {step}/{self._program.train.steps}"
        return len(behind) * losses_SK.shape[1], f"{where}  loss {loss:.4f}"

    def _validate(self, behind: list[_Lane]) -> None:
        began = time.perf_counter()
        _, loss_SEP = self._evaluate(self.data.validation_NT)
        for lane in behind:
            progress, evaluations = lane.progress, len(lane.training.evaluations)
            progress.validation_step.append(progress.step)
            progress.validation_loss.append(loss_SEP[lane.slot, :evaluations].mean(-1).tolist())
            progress.train_loss.append(float(np.mean(progress.pending_loss)))
            progress.pending_loss = []
        self._count_seconds(behind, began)

    def _evaluate(self, rows_SNT: jax.Array) -> tuple[_Float64, _Float64]:
        """`Measures` of all slots, on the host."""
        measures = self._functions.evaluate(self._state.params, rows_SNT, self._tables_SE)
        return np.asarray(measures.accuracy, np.float64), np.asarray(measures.loss, np.float64)

    def _count_seconds(self, lanes: list[_Lane], began: float) -> None:
        """Shares the time since then among the trainings of each device."""
        seconds = time.perf_counter() - began
        share = self._slots // self._functions.devices
        on_device = collections.Counter(lane.slot // share for lane in lanes)
        for lane in lanes:
            lane.progress.seconds += seconds / on_device[lane.slot // share]


def _cells(program: Program, lane: _Lane, accuracy_EP: _Float64, loss_EP: _Float64) -> list[Cell]:
    """The entries of results.json for one training; P are the generated positions."""
    task, training, progress = program.task, lane.training, lane.progress
    in_distribution = task.train_length - task.seed_length
    cells = []
    for index, evaluation in enumerate(training.evaluations):
        accuracy, loss = accuracy_EP[index], loss_EP[index]
        cells.append(
            {
                "task": training.task,
                "method": evaluation.method,
                "protocol": evaluation.protocol,
                "trained_as": training.method,
                "seed": training.seed,
                "id_accuracy": float(accuracy[:in_distribution].mean()),
                "ood_accuracy": float(accuracy[in_distribution:].mean()),
                "id_loss": float(loss[:in_distribution].mean()),
                "ood_loss": float(loss[in_distribution:].mean()),
                "accuracy_by_position": [None] * task.seed_length + accuracy.tolist(),
                "validation_step": progress.validation_step,
                "validation_loss": [entry[index] for entry in progress.validation_loss],
                "train_loss": progress.train_loss,
                "steps": progress.step,
                "seconds": progress.seconds,
            }
        )
    return cells


_CELL_NAME = ("task", "method", "protocol", "trained_as", "seed")


def trouble_of_cells(found: Any, training: Training) -> str | None:
    """What is wrong with a training's cells, as read from JSON; None for nothing."""
    expected = [
        (training.task, evaluation.method, evaluation.protocol, training.method, training.seed)
        for evaluation in training.evaluations
    ]
    if not isinstance(found, list) or not all(isinstance(cell, dict) for cell in found):
        return "it is no list of cells"
    if [tuple(map(cell.get, _CELL_NAME)) for cell in found] != expected:
        return "it has other cells"
    for cell in found:
        try:
            read_cells({"cells": [cell]})
        except (ValueError, TypeError, KeyError) as error:
            return f"a cell cannot be read: {error}"
    return None


class _Meter:
    """One progress line every few seconds."""

    def __init__(self, total_steps: int, tokens_per_step: int, interval: float = 5.0):
        self._total, self._tokens, self._interval = total_steps, tokens_per_step, interval
        self._began: float | None = None
        self._said = 0.0
        self._done = self._fresh = 0

    def skip(self, steps: int) -> None:
        """Counts steps that an earlier process did."""
        self._done += steps

    def advance(self, steps: int, where: str) -> None:
        """Counts steps just done and says so if the last line is old enough."""
        self._done += steps
        now = time.perf_counter()
        if self._began is None:  # the first call compiled, so it says nothing about the rest
            self._began = self._said = now
            return
        self._fresh += steps
        if now - self._said < self._interval and self._done < self._total:
            return
        self._said = now
        rate = self._fresh / (now - self._began)
        left = int((self._total - self._done) / rate)
        _LOG.info(
            "%3d %%  %s  %.1f steps/s  %.0f tokens/s  ETA %d:%02d:%02d",
            100 * self._done // self._total,
            where,
            rate,
            rate * self._tokens,
            left // 3600,
            left // 60 % 60,
            left % 60,
        )


# The main thread waits in short turns. The system may hand a signal to any thread, and one that
# waits without a limit learns of it only when the wait is over.
_TURN_SECONDS = 0.2


def run(
    program: Program,
    trainings: Sequence[Training],
    store: Store,
    *,
    mesh: Mesh | None = None,
    lanes: int = 0,
    save_every_seconds: float = 60.0,
    stop: threading.Event | None = None,
) -> None:
    """Runs all trainings that the store does not have yet; of several processes, its share.

    Args:
      program: the setting.
      trainings: from `grid.trainings`.
      store: results and checkpoints.
      mesh: from `layout.make_mesh`; None for all devices.
      lanes: trainings of a device at a time; 0 chooses: 1 on CPUs, else its whole share of a task.
      save_every_seconds: least time between two checkpoints of a training.
      stop: when set, trainings are saved after their current call and the function returns.

    Raises:
      FloatingPointError: a training diverged; what was finished before is in the store.
    """
    mesh = mesh or make_mesh(MeshConfig())
    lanes = lanes or default_lanes(mesh)
    stop = stop or threading.Event()
    steps = program.train.steps
    made = [slots_here(slots, mesh) for slots in rounds(trainings, devices=mesh.size, lanes=lanes)]
    made = [slots for slots in made if trainings_in(slots)]
    here = [training for slots in made for training in trainings_in(slots)]
    meter = _Meter(steps * len(here), program.train.batch_size * program.task.train_length)
    if not here:
        return
    functions = Lanes(program, mesh_here(mesh))

    def work() -> None:
        for slots in made:
            if stop.is_set():
                return
            finished = sum(map(store.finished, trainings_in(slots)))
            meter.skip(steps * finished)
            if finished < len(trainings_in(slots)):
                _run_round(_RoundRun(program, functions, slots, store))

    def _run_round(run: _RoundRun) -> None:
        meter.skip(run.steps_done)
        saved = time.monotonic()
        while not run.done:
            steps_done, where = run.advance()
            if steps_done:
                meter.advance(steps_done, where)
            if run.done or stop.is_set() or time.monotonic() - saved > save_every_seconds:
                run.save()
                saved = time.monotonic()
            if stop.is_set():
                return
        run.finish()

    with futures.ThreadPoolExecutor(1) as pool:
        try:
            running = pool.submit(work)
            while not futures.wait([running], _TURN_SECONDS).done:
                pass
            running.result()
        finally:  # an interrupt reaches this thread: let the other one save and end
            stop.set()
