"""Runs the trainings of an ablation on all devices, and can resume.

Trainings run in consecutive rounds, each of which is a single program over the mesh (`layout`,
`round_functions`). With several processes, each one runs the lanes of its own devices independently
of the others. The rounds depend only on the ablation and the mesh, never on what is already done,
so a resumed run computes the same results as an uninterrupted one. Each training has its own
checkpoints, so a run can also resume on another mesh.
"""

import collections
import dataclasses
import logging
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent import futures
from typing import Any, Protocol

import jax
import numpy as np
import numpy.typing as npt
from jax.sharding import Mesh

from rrope_jax.posgen.grid import Evaluation, Training
from rrope_jax.posgen.layout import (
    AblationMeshConfig,
    Round,
    default_lanes,
    make_mesh,
    mesh_here,
    rounds,
)
from rrope_jax.posgen.results import Cell
from rrope_jax.posgen.round_functions import (
    RoundFunctions,
    inputs,
    programs,
    spec_at_test,
    tables_at_test,
)
from rrope_jax.posgen.training import PosgenProgram, PosgenState
from rrope_jax.reporting.quantities import clock
from rrope_jax.rope import frequencies

_LOG = logging.getLogger(__name__)
_PROGRESS_SECONDS = 5.0

_Float64 = npt.NDArray[np.float64]


@dataclasses.dataclass
class TrainingProgress:
    """Progress of a training; saved with its checkpoint.

    Attributes:
      step: Optimizer steps done.
      validation_step: Optimizer steps at which validation was done.
      validation_loss: [validations][evaluations], mean over rows and positions.
      train_loss: [validations], mean over the steps since the previous validation.
      seconds: Device time spent so far, in all runs that worked on the training.
      pending_loss: [steps since the last validation], for the next `train_loss`.
    """

    step: int = 0
    validation_step: list[int] = dataclasses.field(default_factory=list)
    validation_loss: list[list[float]] = dataclasses.field(default_factory=list)
    train_loss: list[float] = dataclasses.field(default_factory=list)
    seconds: float = 0.0
    pending_loss: list[float] = dataclasses.field(default_factory=list)


class TrainingStore(Protocol):
    """Persistent storage of an ablation's results and checkpoints."""

    def finished(self, training: Training) -> bool:
        """Whether this process or an earlier one has called `finish` for the training."""

    def finish(self, training: Training, cells: Sequence[Cell]) -> None:
        """Stores the results of a training."""

    def restore(
        self, training: Training, like: PosgenState
    ) -> tuple[PosgenState, TrainingProgress] | None:
        """Returns the newest saved state, as numpy arrays like `like`, or None."""

    def save(self, training: Training, state: PosgenState, progress: TrainingProgress) -> None:
        """Stores the state of a training (numpy arrays), replacing the previous one."""


@dataclasses.dataclass
class _Unfinished:
    """An unfinished training and its lane in the round."""

    lane: int
    training: Training
    progress: TrainingProgress

    @property
    def position(self) -> tuple[int, int]:
        """Steps and validations done, comparable between trainings."""
        return self.progress.step, len(self.progress.validation_step)


class _RoundRun:
    """A round, on the devices of this process."""

    def __init__(
        self, program: PosgenProgram, functions: RoundFunctions, round_: Round, store: TrainingStore
    ):
        self._program, self._functions, self._store = program, functions, store
        self._round = round_
        start = inputs(program, round_)
        self._train_data, self._validation_data, self._test_data = functions.data(
            round_.trainings[0].task, functions.place(start.data_key_S)
        )
        self._train_key_S = functions.place(start.train_key_S)
        self._tables_S, self._tables_SE = functions.place((start.tables_S, start.tables_SE))
        self._state: PosgenState = functions.init(functions.place(start.init_key_S))
        self._lanes = len(round_.lanes)
        self._unfinished = [
            _Unfinished(lane, training, TrainingProgress())
            for lane, training in enumerate(round_.lanes)
            if training is not None and not store.finished(training)
        ]
        self._restore()

    @property
    def steps_done(self) -> int:
        """Total optimizer steps done of all unfinished trainings."""
        return sum(each.progress.step for each in self._unfinished)

    @property
    def done(self) -> bool:
        """Whether only the test remains."""
        return not self._behind()

    def advance(self) -> tuple[int, str]:
        """Trains for one call of the program, or validates.

        Only the trainings furthest behind take part, until all are at the same step. They may start
        from different steps after a kill between two saves, or on another mesh.

        Returns:
          The training steps done, summed over trainings, and a progress message.
        """
        behind = self._behind()
        progress, every = behind[0].progress, self._program.train.validate_every
        if len(progress.validation_step) < progress.step // every:
            self._validate(behind)
            return 0, ""
        return self._train(behind)

    def save(self) -> None:
        """Saves the state of every unfinished training."""
        leaves, structure = jax.tree.flatten(jax.device_get(self._state))
        for each in self._unfinished:
            state = jax.tree.unflatten(structure, [np.asarray(x_S[each.lane]) for x_S in leaves])
            self._store.save(each.training, state, each.progress)

    def finish(self) -> None:
        """Tests all unfinished trainings and stores their cells."""
        accuracy_SEP, loss_SEP = self._evaluate(self._test_data)
        for each in self._unfinished:
            cells = _cells(
                self._program,
                each,
                accuracy_SEP[each.lane],
                loss_SEP[each.lane],
                self._learned(each.lane),
            )
            self._store.finish(each.training, cells)

    def _restore(self) -> None:
        """Loads saved states into their lanes."""
        like = jax.tree.map(lambda x_S: np.empty(x_S.shape[1:], x_S.dtype), self._state)
        saved = [(each, self._store.restore(each.training, like)) for each in self._unfinished]
        if not any(state for _, state in saved):
            return
        leaves, structure = jax.tree.flatten(jax.device_get(self._state))
        leaves = [np.array(x_S) for x_S in leaves]
        for each, restored in saved:
            if restored is not None:
                state, each.progress = restored
                for x_S, x in zip(leaves, jax.tree.leaves(state), strict=True):
                    x_S[each.lane] = x
        self._state = self._functions.place(jax.tree.unflatten(structure, leaves))

    def _behind(self) -> list[_Unfinished]:
        """Returns the unfinished trainings that are furthest behind; empty if only tests remain."""
        train = self._program.train
        end = (train.steps, train.steps // train.validate_every)
        least = min((each.position for each in self._unfinished), default=end)
        if least == end:
            return []
        return [each for each in self._unfinished if each.position == least]

    def _train(self, behind: list[_Unfinished]) -> tuple[int, str]:
        began = time.perf_counter()
        active_S = np.zeros(self._lanes, bool)
        active_S[[each.lane for each in behind]] = True
        self._state, losses = self._functions.train(
            self._state,
            self._functions.place(active_S),
            self._train_data,
            self._tables_S,
            self._train_key_S,
        )
        losses_SK = np.asarray(losses, np.float64)
        for each in behind:
            each.progress.step += losses_SK.shape[1]
            each.progress.pending_loss += losses_SK[each.lane].tolist()
        self._count_seconds(behind, began)
        step = behind[0].progress.step
        diverged = [each for each in behind if not np.isfinite(losses_SK[each.lane]).all()]
        if diverged:
            names = ", ".join(each.training.name for each in diverged)
            raise FloatingPointError(
                f"the training loss of {names} is no longer finite at step {step}; lower "
                "train.learning_rate or set train.gradient_clip"
            )
        more = f" and {len(behind) - 1} more" if len(behind) > 1 else ""
        loss = np.mean([each.progress.pending_loss for each in behind])
        where = f"{behind[0].training.name}{more} step {step}/{self._program.train.steps}"
        return len(behind) * losses_SK.shape[1], f"{where}  loss {loss:.4f}"

    def _validate(self, behind: list[_Unfinished]) -> None:
        began = time.perf_counter()
        _, loss_SEP = self._evaluate(self._validation_data)
        for each in behind:
            progress, evaluations = each.progress, len(each.training.evaluations)
            progress.validation_step.append(progress.step)
            progress.validation_loss.append(loss_SEP[each.lane, :evaluations].mean(-1).tolist())
            progress.train_loss.append(float(np.mean(progress.pending_loss)))
            progress.pending_loss = []
        self._count_seconds(behind, began)

    def _evaluate(self, data_S: Any) -> tuple[_Float64, _Float64]:
        """Returns accuracy and loss of all lanes, float64[S, E, P] each, on the host."""
        tables_SE = self._tables_SE
        if self._program.learned:
            log_ratios_S = jax.device_get(self._state.params.log_ratios)
            tables_SE = self._functions.place(
                tables_at_test(self._program, self._round, log_ratios_S)
            )
        measures = self._functions.evaluate(self._state.params, data_S, tables_SE)
        return np.asarray(measures.accuracy, np.float64), np.asarray(measures.loss, np.float64)

    def _learned(self, lane: int) -> dict[str, npt.NDArray[np.float32]] | None:
        """Returns the logarithms of learned frequencies; None if they are not learned."""
        if not self._program.learned:
            return None
        log_ratios_S = jax.device_get(self._state.params.log_ratios)
        return {name: ratio_S[lane] for name, ratio_S in log_ratios_S.items()}

    def _count_seconds(self, active: list[_Unfinished], began: float) -> None:
        """Divides the time since `began` equally among the active trainings of each device."""
        seconds = time.perf_counter() - began
        per_device = self._lanes // self._functions.devices
        on_device = collections.Counter(each.lane // per_device for each in active)
        for each in active:
            each.progress.seconds += seconds / on_device[each.lane // per_device]


def _cells(
    program: PosgenProgram,
    finished: _Unfinished,
    accuracy_EP: _Float64,
    loss_EP: _Float64,
    log_ratios: Mapping[str, npt.NDArray[np.float32]] | None,
) -> list[Cell]:
    """Returns the results of a training; P is the axis of what `program.evaluate` measures."""

    def inv_freq(evaluation: Evaluation) -> dict[str, tuple[float, ...]]:
        if log_ratios is None:
            return {}
        spec, tested = spec_at_test(program, evaluation, log_ratios), program.task.test_length
        by_type = {name: frequencies(spec.of(name), tested) for name in log_ratios}
        return {name: tuple(table.inv_freq.tolist()) for name, table in by_type.items()}

    training, progress = finished.training, finished.progress
    return [
        program.cell(
            accuracy_P,
            loss_P,
            task=training.task,
            method=evaluation.method,
            protocol=evaluation.protocol,
            trained_as=training.method,
            seed=training.seed,
            validation_step=tuple(progress.validation_step),
            validation_loss=tuple(losses_E[index] for losses_E in progress.validation_loss),
            train_loss=tuple(progress.train_loss),
            steps=progress.step,
            seconds=progress.seconds,
            inv_freq=inv_freq(evaluation),
        )
        for index, (evaluation, accuracy_P, loss_P) in enumerate(
            zip(training.evaluations, accuracy_EP, loss_EP, strict=False)  # the rest are padding
        )
    ]


class _ProgressLog:
    """Logs a progress line every few seconds."""

    def __init__(self, total_steps: int, tokens_per_step: int):
        self._total, self._tokens = total_steps, tokens_per_step
        self._began: float | None = None
        self._logged = 0.0
        self._done = self._fresh = 0

    def skip(self, steps: int) -> None:
        """Counts steps done by an earlier process."""
        self._done += steps

    def advance(self, steps: int, where: str) -> None:
        """Counts steps just done; logs a line if the last one is old enough."""
        self._done += steps
        now = time.perf_counter()
        if self._began is None:  # exclude the first call, which compiles
            self._began = self._logged = now
            return
        self._fresh += steps
        if now - self._logged < _PROGRESS_SECONDS and self._done < self._total:
            return
        self._logged = now
        rate = self._fresh / (now - self._began)
        _LOG.info(
            "%3d %%  %s  %.1f steps/s  %.0f tokens/s  ETA %s",
            100 * self._done // self._total,
            where,
            rate,
            rate * self._tokens,
            clock((self._total - self._done) / rate),
        )


# The main thread waits in short intervals. The system may deliver a signal to any thread, and the
# main thread, which handles it, would not notice until an untimed wait is over.
_TURN_SECONDS = 0.2


def run(
    program: PosgenProgram,
    trainings: Sequence[Training],
    store: TrainingStore,
    *,
    mesh: Mesh | None = None,
    lanes: int = 0,
    save_every_seconds: float = 60.0,
    stop: threading.Event | None = None,
) -> None:
    """Runs all trainings that are not in the store yet; with several processes, this one's share.

    Args:
      program: The setting.
      trainings: From `grid.trainings`.
      store: Results and checkpoints.
      mesh: From `layout.make_mesh`; None for all devices.
      lanes: Trainings that a device runs at a time. 0 chooses 1 on CPUs, and on accelerators the
        device's whole share of a task.
      save_every_seconds: Minimum time between two checkpoints of a training.
      stop: When set, trainings are saved after their current call and the function returns.

    Raises:
      FloatingPointError: A training diverged; earlier results are in the store.
      LearnedFrequenciesError: A rule has no periods for what a training has learned; likewise.
    """
    mesh = mesh or make_mesh(AblationMeshConfig())
    lanes = lanes or default_lanes(mesh)
    stop = stop or threading.Event()
    steps = program.train.steps
    shares = [each.here(mesh) for each in rounds(trainings, devices=mesh.size, lanes=lanes)]
    shares = [share for share in shares if share.trainings]
    if not shares:
        return
    log = _ProgressLog(
        steps * sum(len(share.trainings) for share in shares),
        program.train.batch_size * program.task.train_length,
    )
    kinds = programs(program)
    functions = {learned: RoundFunctions(kinds[learned], mesh_here(mesh)) for learned in kinds}

    def run_rounds() -> None:
        for share in shares:
            if stop.is_set():
                return
            finished = sum(map(store.finished, share.trainings))
            log.skip(steps * finished)
            if finished < len(share.trainings):
                kind = share.learned
                run_round(_RoundRun(kinds[kind], functions[kind], share, store))

    def run_round(run: _RoundRun) -> None:
        log.skip(run.steps_done)
        saved = time.monotonic()
        while not run.done:
            steps_done, where = run.advance()
            if steps_done:
                log.advance(steps_done, where)
            if run.done or stop.is_set() or time.monotonic() - saved > save_every_seconds:
                run.save()
                saved = time.monotonic()
            if stop.is_set():
                return
        run.finish()

    with futures.ThreadPoolExecutor(1) as pool:
        try:
            running = pool.submit(run_rounds)
            while not futures.wait([running], _TURN_SECONDS).done:
                pass
            running.result()
        finally:  # on an interrupt, let the worker save and end
            stop.set()
