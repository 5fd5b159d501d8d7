"""The training loop: what the host does while the device computes."""

import collections
import dataclasses
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np

from rrope_jax.train.step import Batch, Measures, State

_LOG = logging.getLogger(__name__)

Step = Callable[[State, Batch, jax.Array], tuple[State, Measures]]
Put = Callable[[Mapping[str, np.ndarray]], Batch]
Record = Mapping[str, Any]
DataState = dict[str, Any]
"""A run's position in its data, as JSON values."""


class ResumableBatches(Protocol):
    """Batches that can be resumed, such as `data.pipeline.TextBatches`."""

    waiting_seconds: float

    def __next__(self) -> Mapping[str, np.ndarray]: ...

    def state(self) -> DataState: ...


class EvaluationStopped(Exception):  # noqa: N818  no error
    """Raised by `Hooks.evaluate` if it is told to stop before it finishes."""


class Save(Protocol):
    """Saves a state and its position in the data, so that a later process can resume.

    `owed` is the record of the state's step if that is not yet logged because its evaluation was
    stopped. Otherwise it is omitted.
    """

    def __call__(self, state: State, data_state: DataState, owed: Record = ..., /) -> None: ...


class DivergedError(FloatingPointError):
    """A loss or gradient is not finite; the state of the last good step has been saved.

    A step is good if its own loss and gradient are finite, even if its update makes the held-out
    loss non-finite.
    """


@dataclasses.dataclass(frozen=True)
class Window:
    """Steps to profile.

    Attributes:
      first, last: numbers of the first and last step, inclusive.
      folder: where to write the trace, which TensorBoard and xprof read.
    """

    first: int
    last: int
    folder: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Hooks:
    """The callbacks of the loop, and how often it calls them.

    Attributes:
      log: receives the record of every step, in order.
      save: saves a state.
      save_every: steps between checkpoints.
      evaluate: given the state, returns numbers for the record of a step; a non-finite number ends
        the run. If it raises `EvaluationStopped`, the run saves its state and ends, still owing
        these numbers.
      evaluate_every: steps between evaluations; None for never. The last step is evaluated, too.
      stopping: given the number of a step, whether to save and end after it; called after every
        step.
      profile: steps to trace.
    """

    log: Callable[[Record], None]
    save: Save
    save_every: int
    evaluate: Callable[[State], Mapping[str, float]]
    evaluate_every: int | None
    stopping: Callable[[int], bool]
    profile: Window | None = None


def run(
    step: Step,
    state: State,
    batches: ResumableBatches,
    key: jax.Array,
    *,
    steps: int,
    put: Put,
    hooks: Hooks,
    owed: Record | None = None,
) -> bool:
    """Trains until `steps` steps are done or `hooks.stopping` says to stop, then saves.

    The numbers of a step are read while the device computes the next one, so the device does not
    wait for the host. A checkpoint is saved once all steps up to it have been logged.

    Args:
      step: `Program.step`, compiled, with the state donated.
      state: the state to start from; it is donated.
      batches: the data, at the position that belongs to the state.
      key: the run's PRNG key.
      steps: number of steps of the whole run.
      put: moves a host's arrays to the devices.
      hooks: the callbacks.
      owed: the record of the state's step, if one was saved with the state.

    Returns:
      Whether all steps are done and logged.

    Raises:
      DivergedError: a training loss, held-out loss or gradient is not finite.
    """
    training = _Run(step, state, batches, key, put, hooks)
    if owed is not None and not training.evaluate(owed):
        return False
    profiler = _Profiler(hooks.profile)
    with profiler.stopped_at_the_end():
        while training.number < steps:
            profiler.before(training.number + 1)
            training.advance()
            stopping, last = hooks.stopping(training.number), training.number == steps
            every = hooks.evaluate_every
            evaluating = every is not None and (last or training.number % every == 0)
            saving = stopping or last or training.number % hooks.save_every == 0
            if evaluating or saving:
                training.log_pending(evaluating=evaluating)
            if training.owing:
                return False
            if saving:
                training.save()
            profiler.after(training.number, training.state)
            if stopping:
                break
    return training.number == steps


class _PendingStep(NamedTuple):
    """A step that the device may still be computing."""

    number: int
    measures: Measures
    data_state: DataState


class _Run:
    """The progress of `run`.

    Attributes:
      state: the state after the last step that was started.
      number: the number of that step.
      owing: whether an evaluation was stopped, in which case the state has been saved.
    """

    def __init__(
        self,
        step: Step,
        state: State,
        batches: ResumableBatches,
        key: jax.Array,
        put: Put,
        hooks: Hooks,
    ) -> None:
        self.state, self.owing = state, False
        self.number = self._saved = int(state.step)
        self._step, self._batches, self._key = step, batches, key
        self._put, self._hooks = put, hooks
        self._data_state = batches.state()  # after the last logged step
        self._pending: _PendingStep | None = None
        self._speed = _SpeedMeter(batches)

    def advance(self) -> None:
        """Starts a step, then logs the previous one."""
        batch = self._put(next(self._batches))
        self.state, measures = self._step(self.state, batch, self._key)
        self.number += 1
        previous = self._pending
        self._pending = _PendingStep(self.number, measures, self._batches.state())
        if previous is not None:
            self._log(previous, evaluating=False)

    def log_pending(self, *, evaluating: bool) -> None:
        """Waits for the pending step and logs it."""
        pending, self._pending = self._pending, None
        if pending is not None:
            self._log(pending, evaluating=evaluating)

    def save(self) -> None:
        """Saves the state; its step must have been logged."""
        self._hooks.save(self.state, self._data_state)
        self._saved = self.number
        self._speed.restart()

    def _log(self, step: _PendingStep, *, evaluating: bool) -> None:
        measures: Measures = jax.device_get(step.measures)
        speed, waiting = self._speed.lap(int(measures.targets))
        if not measures.sound:
            if self._saved < step.number - 1:  # the state is still that of the previous step
                self._hooks.save(self.state, self._data_state)
            raise DivergedError(
                f"step {step.number} has loss {measures.loss} and gradient norm "
                f"{measures.gradient_norm}; the model of step {step.number - 1} is kept. A lower "
                "learning_rate, a longer warm-up or a gradient_clip may help"
            )
        self._data_state = step.data_state
        record = {
            "step": step.number,
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
            self._hooks.save(self.state, self._data_state, record)
            self.owing = True

    def evaluate(self, record: Record) -> bool:
        """Evaluates the state and logs the record of its step; returns whether it finished."""
        try:
            numbers = self._hooks.evaluate(self.state)
        except EvaluationStopped:
            return False
        self._speed.restart()
        finite = {name: value for name, value in numbers.items() if math.isfinite(value)}
        self._hooks.log({**record, **finite})
        if len(finite) < len(numbers):
            if self._saved < self.number:
                self.save()
            spoiled = ", ".join(f"{k} {v}" for k, v in numbers.items() if k not in finite)
            raise DivergedError(
                f"the model of step {self.number} has {spoiled}, though the step itself was sound. "
                "A lower learning_rate, a longer warm-up or a gradient_clip may help"
            )
        return True


class _SpeedMeter:
    """Mean speed of the last 20 steps; one is too noisy, as the host runs ahead of the device."""

    def __init__(self, batches: ResumableBatches) -> None:
        self._batches = batches
        self._laps: collections.deque[tuple[float, float, float]] = collections.deque(maxlen=20)
        self.restart()

    def restart(self) -> None:
        """Excludes the time since the last lap."""
        self._start, self._waited = time.perf_counter(), self._batches.waiting_seconds

    def lap(self, tokens: int) -> tuple[float, float]:
        """Ends a step; returns tokens per second, and the share of time spent without a batch."""
        start, waited = self._start, self._waited
        self.restart()
        self._laps.append((tokens, self._start - start, self._waited - waited))
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

    @contextmanager
    def stopped_at_the_end(self) -> Iterator[None]:
        try:
            yield
        finally:
            self._stop()

    def _stop(self) -> None:
        if self._tracing and self._window is not None:
            jax.profiler.stop_trace()
            self._tracing = False
            _LOG.info("the profile is in %s", self._window.folder)
