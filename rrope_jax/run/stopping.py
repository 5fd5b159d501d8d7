"""When SIGINT and SIGTERM take effect: after the current step, after a report is written."""

import itertools
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
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
    with _noting((signal.SIGINT, signal.SIGTERM)) as received:
        yield lambda: bool(received)


@contextmanager
def held() -> Iterator[None]:
    """Holds SIGINT and SIGTERM until exit from the context, so that what it does is done whole.

    A second signal of the same kind takes effect at once, as one does that stopped the job before.
    Only the main thread receives signals, so in any other this does nothing.
    """
    numbers: list[signal.Signals] = []
    if threading.current_thread() is threading.main_thread():
        numbers = [n for n in (signal.SIGINT, signal.SIGTERM) if callable(signal.getsignal(n))]
    with _noting(numbers):
        yield


@contextmanager
def _noting(numbers: Iterable[signal.Signals]) -> Iterator[list[int]]:
    """Yields a list of the signals received, of which the first is raised again on exit."""
    received: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        del frame
        received.append(number)
        signal.signal(number, signal.SIG_DFL)

    with _handlers(dict.fromkeys(numbers, note)):
        yield received
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
