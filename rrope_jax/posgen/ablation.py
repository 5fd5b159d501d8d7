"""Runs the trainings of an ablation on all devices, resumably.

Trainings of one shape form a group that runs as one program. On accelerators a group holds all
of a device's share and is vmapped, since one small model cannot fill the device; on CPUs, where
XLA's batched matrix products are slow, a group is one training, and several CPU devices run
several groups side by side. What a group is depends on the ablation and the devices alone, never
on what is already done, so that a resumed run computes what the unbroken one would have.
"""

import dataclasses
import functools
import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent import futures
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from rrope_jax.posgen.grid import Training
from rrope_jax.posgen.training import Data, Measures, Program, State
from rrope_jax.rope import PhaseTable, phase_table

_LOG = logging.getLogger(__name__)

Cell = dict[str, Any]
"""One entry of results.json's `cells`: see the contract in docs/posgen.md."""


@dataclasses.dataclass
class Progress:
    """How far a group is; saved with its checkpoint.

    Attributes:
      validation_step: optimizer steps at which validation was done.
      validation_loss: [validations][trainings][evaluations], mean over rows and positions.
      train_loss: [validations][trainings], mean over the steps since the last validation.
      seconds: wall time spent so far, over all the processes that worked on it.
      pending_loss: [steps since the last validation][trainings], for the next `train_loss`.
    """

    validation_step: list[int]
    validation_loss: list[list[list[float]]]
    train_loss: list[list[float]]
    seconds: float
    pending_loss: list[list[float]] = dataclasses.field(default_factory=list)


class Store(Protocol):
    """Where an ablation keeps what must survive the process."""

    def finished(self, training: Training) -> bool:
        """Whether `finish` was called for the training, in this process or an earlier one."""

    def finish(self, training: Training, cells: list[Cell]) -> None:
        """Keeps the results of a training."""

    def restore(self, name: str, state: State) -> tuple[State, Progress] | None:
        """The newest state saved under a group's name, shaped and placed like `state`."""

    def save(self, name: str, state: State, progress: Progress) -> None:
        """Keeps the state of a group, replacing the one before."""


@dataclasses.dataclass(frozen=True)
class Group:
    """Trainings that run as one program."""

    trainings: tuple[Training, ...]

    @property
    def name(self) -> str:
        """Unique within an ablation; usable as a file name."""
        first = self.trainings[0].name
        return first if len(self.trainings) == 1 else f"{first}-and-{len(self.trainings) - 1}-more"


def groups(trainings: Sequence[Training], *, devices: int, lanes: int) -> tuple[Group, ...]:
    """Splits trainings into groups of one task and one number of evaluations.

    Args:
      trainings: all trainings of the ablation.
      devices: devices to share them.
      lanes: most trainings in a group; 0 for as many as give every device a group.
    """
    alike: dict[tuple[str, int], list[Training]] = {}
    for training in trainings:
        alike.setdefault((training.task, len(training.evaluations)), []).append(training)
    made = []
    for members in alike.values():
        size = lanes or -(-len(members) // devices)
        made += [Group(tuple(members[i : i + size])) for i in range(0, len(members), size)]
    order = {training: place for place, training in enumerate(trainings)}
    return tuple(sorted(made, key=lambda group: order[group.trainings[0]]))


class _Compiled:
    """The program's functions, mapped over the trainings of a group and jitted."""

    def __init__(self, program: Program, *, mapped: bool):
        steps = program.train.call_steps
        over: Callable[[Callable[..., Any]], Callable[..., Any]] = jax.vmap if mapped else _single
        self.data = jax.jit(
            lambda task, keys: over(functools.partial(program.data, task))(keys), static_argnums=0
        )
        self.init = jax.jit(over(program.init))
        self.train = jax.jit(
            over(functools.partial(program.train_steps, steps=steps)), donate_argnums=0
        )
        self.evaluate = jax.jit(over(program.evaluate))


def _single(function: Callable[..., Any]) -> Callable[..., Any]:
    """Like vmap over a leading axis of length 1, without a batch dimension in the program."""

    def mapped(*arguments: Any) -> Any:
        result = function(*jax.tree.map(lambda x: x[0], arguments))
        return jax.tree.map(lambda x: x[None], result)

    return mapped


def _stack(trees: Sequence[Any]) -> Any:
    return jax.tree.map(lambda *leaves: jnp.stack([jnp.asarray(x) for x in leaves]), *trees)


class _GroupRun:
    """One group on one device."""

    def __init__(self, program: Program, compiled: _Compiled, group: Group, store: Store):
        self.program, self.compiled, self.group, self.store = program, compiled, group, store
        keys = [jax.random.split(jax.random.key(t.seed), 3) for t in group.trainings]
        # data, initial parameters and batches depend on the seed alone: methods are paired
        data_keys, init_keys, self.train_keys = jnp.stack(keys, axis=1)
        self.data: Data = compiled.data(group.trainings[0].task, data_keys)
        # the lengths matter to the scalings that depend on the current one
        trained, tested = program.task.train_length, program.task.test_length
        self.table = _stack([phase_table(t.spec, trained) for t in group.trainings])
        self.tables: PhaseTable = _stack(
            [_stack([phase_table(e.spec, tested) for e in t.evaluations]) for t in group.trainings]
        )
        state: State = compiled.init(init_keys)
        restored = store.restore(group.name, state)
        self.state, self.progress = restored or (state, Progress([], [], [], 0.0))

    @property
    def step(self) -> int:
        """Optimizer steps done."""
        return int(self.state.step[0])

    @property
    def owes_validation(self) -> bool:
        """Whether this is a step of validation that is not in the record yet."""
        return len(self.progress.validation_step) < self.step // self.program.train.validate_every

    def advance(self) -> None:
        """Trains for one call of the program."""
        began = time.perf_counter()
        self.state, losses_GS = self.compiled.train(
            self.state, self.data.train_NT, self.table, self.train_keys
        )
        losses_SG = np.asarray(losses_GS, np.float64).T
        self.progress.pending_loss += losses_SG.tolist()
        self.progress.seconds += time.perf_counter() - began
        diverged = np.flatnonzero(~np.isfinite(losses_SG).all(axis=0))
        if diverged.size:
            names = ", ".join(self.group.trainings[lane].name for lane in diverged)
            raise FloatingPointError(
                f"the training loss of {names} is no longer finite at step {self.step}; lower "
                "train.learning_rate or set train.gradient_clip"
            )

    def validate(self) -> None:
        """Adds a validation to the record."""
        began = time.perf_counter()
        measures = self.compiled.evaluate(self.state.params, self.data.validation_NT, self.tables)
        loss_GEP = np.asarray(measures.loss, np.float64)
        progress = self.progress
        progress.validation_step.append(self.step)
        progress.validation_loss.append(loss_GEP.mean(axis=2).tolist())
        progress.train_loss.append(np.mean(progress.pending_loss, axis=0).tolist())
        progress.pending_loss = []
        progress.seconds += time.perf_counter() - began

    def finish(self) -> None:
        """Tests, and hands every training's cells to the store."""
        measures = self.compiled.evaluate(self.state.params, self.data.test_NT, self.tables)
        for lane, training in enumerate(self.group.trainings):
            self.store.finish(training, self._cells(training, lane, measures))

    def _cells(self, training: Training, lane: int, measures: Measures) -> list[Cell]:
        task = self.program.task
        in_distribution = task.train_length - task.seed_length
        cells = []
        for index, evaluation in enumerate(training.evaluations):
            accuracy = np.asarray(measures.accuracy[lane, index], np.float64)
            loss = np.asarray(measures.loss[lane, index], np.float64)
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
                    "validation_step": self.progress.validation_step,
                    "validation_loss": [
                        entry[lane][index] for entry in self.progress.validation_loss
                    ],
                    "train_loss": [entry[lane] for entry in self.progress.train_loss],
                    "steps": self.step,
                    "seconds": self.progress.seconds / len(self.group.trainings),
                }
            )
        return cells


class _Meter:
    """One progress line every few seconds for all devices together."""

    def __init__(self, total_steps: int, tokens_per_step: int, interval: float = 5.0):
        self._lock = threading.Lock()
        self._total, self._tokens, self._interval = total_steps, tokens_per_step, interval
        self._began: float | None = None
        self._said = 0.0
        self._done = self._fresh = 0

    def skip(self, steps: int) -> None:
        """Counts steps that an earlier process did."""
        with self._lock:
            self._done += steps

    def advance(self, run: _GroupRun, steps: int) -> None:
        """Counts steps just done and says so if the last line is old enough."""
        with self._lock:
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
            loss = np.mean(run.progress.pending_loss)
            _LOG.info(
                "%3d %%  %s step %d/%d  loss %.4f  %.1f steps/s  %.0f tokens/s  ETA %d:%02d:%02d",
                100 * self._done // self._total,
                run.group.name,
                run.step,
                run.program.train.steps,
                loss,
                rate,
                rate * self._tokens,
                left // 3600,
                left // 60 % 60,
                left % 60,
            )


def run(
    program: Program,
    trainings: Sequence[Training],
    store: Store,
    *,
    lanes: int = 0,
    save_every_seconds: float = 60.0,
    stop: threading.Event | None = None,
) -> None:
    """Runs all trainings that the store does not have yet.

    Args:
      program: the setting.
      trainings: from `grid.trainings`.
      store: results and checkpoints.
      lanes: trainings in one program; 0 chooses: 1 on CPUs, else a device's whole share.
      save_every_seconds: least time between two checkpoints of a group.
      stop: when set, groups are saved after their current call and the function returns.

    Raises:
      FloatingPointError: a training diverged; what was finished before is in the store.
    """
    devices = jax.local_devices()
    lanes = lanes or (1 if devices[0].platform == "cpu" else 0)
    stop = stop or threading.Event()
    waiting: queue.SimpleQueue[Group] = queue.SimpleQueue()
    steps = program.train.steps
    meter = _Meter(steps * len(trainings), program.train.batch_size * program.task.train_length)
    for group in groups(trainings, devices=len(devices), lanes=lanes):
        if all(store.finished(training) for training in group.trainings):
            meter.skip(steps * len(group.trainings))
        else:
            waiting.put(group)
    compiled = _Compiled(program, mapped=lanes != 1)

    def work(device: jax.Device) -> None:
        with jax.default_device(device):
            while not stop.is_set():
                try:
                    group = waiting.get_nowait()
                except queue.Empty:
                    return
                _run_group(_GroupRun(program, compiled, group, store))

    def _run_group(run: _GroupRun) -> None:
        meter.skip(run.step * len(run.group.trainings))
        saved = time.monotonic()
        while run.step < steps or run.owes_validation:
            if run.owes_validation:
                run.validate()
            else:
                run.advance()
                meter.advance(run, program.train.call_steps * len(run.group.trainings))
            done = run.step == steps and not run.owes_validation
            if done or stop.is_set() or time.monotonic() - saved > save_every_seconds:
                store.save(run.group.name, run.state, run.progress)
                saved = time.monotonic()
            if stop.is_set():
                return
        run.finish()

    with futures.ThreadPoolExecutor(len(devices)) as pool:
        try:
            workers = [pool.submit(work, device) for device in devices]
            futures.wait(workers, return_when=futures.FIRST_EXCEPTION)
        finally:  # an interrupt reaches this thread: let the others save and end
            stop.set()
    for worker in workers:
        worker.result()  # raises what the worker raised
