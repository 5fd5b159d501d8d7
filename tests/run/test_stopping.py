"""Signals that come while something has to be done whole."""

import signal
import subprocess
import sys
import threading

import pytest

from rrope_jax.run.stopping import held


class _StoppedError(Exception):
    """What the handler of the command raises, in these tests."""


@pytest.fixture
def stoppable() -> object:
    def stop(number: int, frame: object) -> None:
        signal.signal(number, signal.SIG_DFL)
        raise _StoppedError(number)

    previous = {n: signal.signal(n, stop) for n in (signal.SIGINT, signal.SIGTERM)}
    yield stop
    for number, handler in previous.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_waits_for_the_end(number: signal.Signals, stoppable: object) -> None:
    done = []

    def work() -> None:
        with held():
            signal.raise_signal(number)
            done.append("all of it")

    with pytest.raises(_StoppedError):
        work()
    assert done


def test_handlers_are_as_before(stoppable: object) -> None:
    with held():
        assert signal.getsignal(signal.SIGTERM) is not stoppable
    assert signal.getsignal(signal.SIGTERM) is stoppable


def test_second_signal_takes_effect_at_once() -> None:
    """A report that hangs can still be stopped by hand."""
    program = (
        "import signal\n"
        "from rrope_jax.run.stopping import held\n"
        "signal.signal(signal.SIGTERM, lambda *_: None)\n"
        "with held():\n"
        "    for _ in range(2):\n"
        "        signal.raise_signal(signal.SIGTERM)\n"
        "    print('not stopped')\n"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (ended.returncode, ended.stdout) == (-signal.SIGTERM, ""), ended.stderr


def test_signal_that_was_let_through_stays_so(stoppable: object) -> None:
    """After the first one has stopped the job, the report does not swallow a second."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    with held():
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_other_threads_do_not_touch_handlers() -> None:
    errors: list[BaseException] = []

    def work() -> None:
        try:
            with held():
                pass
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert not errors
