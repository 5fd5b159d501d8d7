"""The loop around the training step: what the host does while the device computes."""

import collections
import dataclasses
import logging
import math
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, NamedTuple, Protocol, Self

import jax
import numpy as np

from rrope_jax.train.step import Batch, Measures, Params, State

_LOG = logging.getLogger(__name__)

Step = Callable[[State, Batch, jax.Array], tuple[State, Measures]]
Put = Callable[[Mapping[str, np.ndarray]], Batch]
Record = Mapping[str, Any]
Place = dict[str, Any]
"""Where a run is in its data, as JSON-able values."""


class Batches(Protocol):
    """Batches that can be resumed, such as `data.pipeline.TextBatches`."""

    waiting_seconds: float

    def __next__(self) -> Mapping[str, np.ndarray]: ...

    def state(self) -> Place: ...


class EvaluationStopped(Exception):  # noqa: N818  no error
    """Raised by `Hooks.evaluate` where it is told to stop before it has its numbers."""


class Save(Protocol):
    """Keeps a state and its place in the data, for a process that goes on.

    `owed` is the record of the state's step where that has not been logged, as its evaluation was
    stopped; it is left out where there is none.
    """

    def __call__(self, state: State, place: Place, owed: Record = ..., /) -> None: ...


class DivergedError(FloatingPointError):
    """A loss or gradient is not finite; the state of the last good step has been saved.

    A step is good where its own loss and gradient are finite, also if its update spoils the loss on
    held-out text.
    """


@dataclasses.dataclass(frozen=True)
class Window:
    """Steps to profile.

    Attributes:
      first, last: numbers of steps, both included.
      folder: where the trace goes, for TensorBoard or xprof.
    """

    first: int
    last: int
    folder: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Hooks:
    """What the loop calls, and when.

    Attributes:
      log: takes the record of every step, in order.
      save: see there.
      save_every: steps between checkpoints.
      evaluate: gives numbers for the record of a step; one that is not finite ends the run. May
        raise `EvaluationStopped`: the run then saves and leaves, and owes them.
      evaluate_every: steps between evaluations; None for never. The last step has one, too.
      stopping: whether to save and leave after the step of a number; asked after every step.
      profile: steps to trace.
    """

    log: Callable[[Record], None]
    save: Save
    save_every: int
    evaluate: Callable[[Params], Mapping[str, float]]
    evaluate_every: int | None
    stopping: Callable[[int], bool]
    profile: Window | None = None


def run(
    step: Step,
    state: State,
    batches: Batches,
    key: jax.Array,
    *,
    steps: int,
    put: Put,
    hooks: Hooks,
    owed: Record | None = None,
) -> bool:
    """Trains until `steps` steps are taken, or until it is asked to stop, and saves.

    The numbers of a step are read while the device computes the next one, so that it need not wait
    for the host. A checkpoint is made when all steps up to its own have been logged.

    Args:
      step: `Program.step`, compiled, with the state donated.
      state: where to go on from; it is donated.
      batches: at the place that belongs to the state.
      key: the run's.
      steps: of the whole run.
      put: lays a host's arrays onto the devices.
      hooks: see there.
      owed: the record of the state's step, where it was saved with one.

    Returns:
      Whether all steps are taken and logged.

    Raises:
      DivergedError: a loss, also one on held-out text, or a gradient is not finite.
    """
    running = _Run(step, state, batches, key, put, hooks)
    if owed is not None and not running.evaluate(owed):
        return False
    with _Profiler(hooks.profile) as profiler:
        while running.number < steps:
            profiler.before(running.number + 1)
            running.advance()
            stopping, last = hooks.stopping(running.number), running.number == steps
            every = hooks.evaluate_every
            evaluating = every is not None and (last or running.number % every == 0)
            saving = stopping or last or running.number % hooks.save_every == 0
            if evaluating or saving:
                running.settle(evaluating=evaluating)
            if running.owing:
                return False
            if saving:
                running.save()
            profiler.after(running.number, running.state)
            if stopping:
                break
    return running.number == steps


class _Taken(NamedTuple):
    """A step that the device may still be computing."""

    number: int
    measures: Measures
    place: Place


class _Run:
    """The steps of `run`.

    Attributes:
      state: after the last step that was started.
      number: steps taken or under way.
      owing: whether an evaluation was stopped; the state is saved then.
    """

    def __init__(
        self,
        step: Step,
        state: State,
        batches: Batches,
        key: jax.Array,
        put: Put,
        hooks: Hooks,
    ) -> None:
        self.state, self.owing = state, False
        self.number = self._saved = int(state.step)
        self._step, self._batches, self._key = step, batches, key
        self._put, self._hooks = put, hooks
        self._place = batches.state()  # of the last step that was logged
        self._pending: _Taken | None = None
        self._meter = _Meter(batches)

    def advance(self) -> None:
        """Starts a step, then logs the one before."""
        batch = self._put(next(self._batches))
        self.state, measures = self._step(self.state, batch, self._key)
        self.number += 1
        before = self._pending
        self._pending = _Taken(self.number, measures, self._batches.state())
        if before is not None:
            self._log(before, evaluating=False)

    def settle(self, *, evaluating: bool) -> None:
        """Waits for the step under way and logs it."""
        taken, self._pending = self._pending, None
        if taken is not None:
            self._log(taken, evaluating=evaluating)

    def save(self) -> None:
        """Saves the state, whose step has been logged."""
        self._hooks.save(self.state, self._place)
        self._saved = self.number
        self._meter.restart()

    def _log(self, taken: _Taken, *, evaluating: bool) -> None:
        measures: Measures = jax.device_get(taken.measures)
        speed, waiting = self._meter.lap(int(measures.targets))
        if not measures.sound:
            if self._saved < taken.number - 1:  # the state has been kept as it was then
                self._hooks.save(self.state, self._place)
            raise DivergedError(
                f"step {taken.number} has loss {measures.loss} and gradient norm "
                f"{measures.gradient_norm}; the model of step {taken.number - 1} is kept. A lower "
                "learning_rate, a longer warm-up or a gradient_clip may help"
            )
        self._place = taken.place
        record = {
            "step": taken.number,
            "loss": float(measures.loss),
            "learning_rate": float(measures.learning_rate),
            "gradient_norm": float(measures.gradient_norm),
            "targets": int(measures.targets),
            "tokens_per_second": speed,
            "waiting": waiting,
            "time": time.time(),
        }
        if not evaluating:
            self._hooks.log(record)
        elif not self.evaluate(record):
            self._hooks.save(self.state, self._place, record)
            self.owing = True

    def evaluate(self, record: Record) -> bool:
        """Evaluates the state and logs the record of its step; whether it came to an end."""
        try:
            found = self._hooks.evaluate(self.state.params)
        except EvaluationStopped:
            return False
        self._meter.restart()
        spoiled = {name: value for name, value in found.items() if not math.isfinite(value)}
        self._hooks.log({**record, **{k: v for k, v in found.items() if k not in spoiled}})
        if spoiled:
            if self._saved < self.number:
                self.save()
            shown = ", ".join(f"{name} {value}" for name, value in spoiled.items())
            raise DivergedError(
                f"the model of step {self.number} has {shown}, though the step itself was sound. "
                "A lower learning_rate, a longer warm-up or a gradient_clip may help"
            )
        return True


class _Meter:
    """Speed over the last steps: a single one says little, as the host runs ahead of the device."""

    def __init__(self, batches: Batches) -> None:
        self._batches = batches
        self._laps: collections.deque[tuple[float, float, float]] = collections.deque(maxlen=20)
        self.restart()

    def restart(self) -> None:
        """Leaves out what happened since the last lap."""
        self._began, self._waited = time.perf_counter(), self._batches.waiting_seconds

    def lap(self, tokens: int) -> tuple[float, float]:
        """Ends a step; returns tokens per second, and the share of time without a batch."""
        began, waited = self._began, self._waited
        self.restart()
        self._laps.append((tokens, self._began - began, self._waited - waited))
        tokens_sum, seconds, waiting = map(sum, zip(*self._laps, strict=True))
        return tokens_sum / seconds, waiting / seconds


class _Profiler:
    """Traces the steps of a window."""

    def __init__(self, window: Window | None) -> None:
        self._window, self._tracing = window, False

    def before(self, step: int) -> None:
        if self._window is not None and step == self._window.first:
            jax.profiler.start_trace(self._window.folder)
            self._tracing = True

    def after(self, step: int, state: State) -> None:
        if self._tracing and self._window is not None and step == self._window.last:
            jax.block_until_ready(state)
            self._stop()

    def _stop(self) -> None:
        if self._tracing and self._window is not None:
            jax.profiler.stop_trace()
            self._tracing = False
            _LOG.info("the profile is in %s", self._window.folder)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stop()
