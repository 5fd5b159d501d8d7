"""Stops a training job on a signal, after the current step and with a checkpoint."""

import itertools
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import FrameType

from jax.experimental import multihost_utils

from rrope_jax.run.distributed import Peers

_Handler = Callable[[int, FrameType | None], None]


@contextmanager
def stopping(peers: Peers) -> Iterator[Callable[[], bool]]:
    """Delays SIGINT and SIGTERM until the current step has finished and been saved.

    In a single-process job, the signal takes its usual effect on exit from the context; a second
    signal of the same kind takes effect at once. In a multi-process job, JAX handles SIGTERM and
    agrees on the step after which all processes stop.

    Yields:
      A function that returns whether to stop now. All processes must call it equally often.
    """
    if peers.count > 1:

        def pass_on(number: int, frame: FrameType | None) -> None:
            del number, frame
            signal.raise_signal(signal.SIGTERM)

        with _handlers({signal.SIGINT: pass_on}):
            asked = itertools.count(1)
            yield lambda: multihost_utils.reached_preemption_sync_point(next(asked))
        return
    received: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        del frame
        received.append(number)
        signal.signal(number, signal.SIG_DFL)

    with _handlers(dict.fromkeys((signal.SIGINT, signal.SIGTERM), note)):
        yield lambda: bool(received)
    if received:
        signal.raise_signal(received[0])


@contextmanager
def _handlers(handlers: Mapping[signal.Signals, _Handler]) -> Iterator[None]:
    previous = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
