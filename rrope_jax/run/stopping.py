"""Stopping a job of steps by a signal, after a step and with a checkpoint."""

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
    """Lets a step end and be saved before SIGINT or SIGTERM takes effect.

    In a process that is alone, the signal has its usual effect afterwards, and a second one of the
    same kind at once. Several processes all stop at the same question: JAX takes SIGTERM and
    agrees on the step.

    Yields:
      A function that says whether to stop now. All processes have to ask equally often.
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
