"""The `rrope` command: runs a job and turns its errors into exit codes.

Exit codes:

- 0: the job is done.
- 1: the job failed, usually with a traceback.
- 2: bad usage or configuration (one line on stderr, nothing written).
- 42: one of several processes was told to stop or was lost; the same command resumes the job.
- 130: stopped by SIGINT.
- 143: stopped by SIGTERM.
"""

import importlib
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import NamedTuple

import rrope_jax


class _Command(NamedTuple):
    """A command: its module, a one-line summary, and its required flags."""

    module: str
    summary: str
    requires: tuple[str, ...] = ("config", "workdir")


COMMANDS = {
    "posgen": _Command("rrope_jax.jobs.posgen", "train, test and report the PosGen ablation"),
    "algorithmic": _Command(
        "rrope_jax.jobs.algorithmic", "train on short algorithmic questions, test on long ones"
    ),
    "train": _Command("rrope_jax.jobs.train", "train a decoder on text, or continue one"),
    "evaluate": _Command(
        "rrope_jax.jobs.evaluate",
        "perplexity over the context, passkey, closed-ended tasks",
        ("config", "checkpoint", "workdir"),
    ),
    "table": _Command(
        "rrope_jax.jobs.table",
        "one table of methods, from ablations and evaluations",
        ("runs", "workdir"),
    ),
    "generate": _Command("rrope_jax.jobs.generate", "continue a prompt", ("checkpoint", "prompt")),
    "convert": _Command(
        "rrope_jax.jobs.convert", "between Orbax, Hugging Face folders and GGUF", ("from", "to")
    ),
    "plan": _Command(
        "rrope_jax.jobs.plan",
        "compile the training step for a pod slice that is not here",
        ("config", "topology", "workdir"),
    ),
    "analyze": _Command("rrope_jax.jobs.analyze", "wavelengths, feature gap and uniqueness"),
    "inspect": _Command(
        "rrope_jax.jobs.inspect",
        "the positions of a checkpoint: what its keys say, who reads them so",
        ("path",),
    ),
}


class _Stopped(BaseException):
    """Raised in the main thread when a signal asks the job to end."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(signal_number)
        self.signal = signal.Signals(signal_number)


def _usage() -> str:
    width = max(map(len, COMMANDS))
    commands = "\n".join(f"  {name:{width}}  {c.summary}" for name, c in COMMANDS.items())
    return (
        "usage: rrope COMMAND [FLAGS]\n\n"
        f"commands:\n{commands}\n\n"
        "rrope COMMAND --help describes the flags of a command, rrope --version prints the version."
    )


def _stop(signal_number: int, frame: FrameType | None) -> None:
    del frame
    # A second signal of the same kind kills the process at once, in case the clean exit hangs.
    signal.signal(signal_number, signal.SIG_DFL)
    raise _Stopped(signal_number)


@contextmanager
def _stoppable() -> Iterator[None]:
    """Turns SIGINT and SIGTERM into `_Stopped` while a job runs."""
    if threading.current_thread() is not threading.main_thread():  # only main may set handlers
        yield
        return
    previous = {s: signal.signal(s, _stop) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for signal_number, handler in previous.items():
            signal.signal(signal_number, handler)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command.

    Args:
      argv: The words after `rrope`; defaults to `sys.argv[1:]`.

    Returns:
      The exit code.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if not words:
        print(_usage(), file=sys.stderr)
        return 2
    name, *rest = words
    if name in ("--help", "-h", "help"):
        print(_usage())
        return 0
    if name == "--version":
        print(f"rrope_jax {rrope_jax.__version__}")
        return 0
    if name not in COMMANDS:
        names = ", ".join(COMMANDS)
        print(f"rrope: unknown command {name!r}; the commands are {names}", file=sys.stderr)
        return 2

    from rrope_jax.cli import backend
    from rrope_jax.cli.errors import UsageError
    from rrope_jax.io.stores import StoreError

    backend.silence()
    try:
        with _stoppable():
            job = importlib.import_module(COMMANDS[name].module)
            code: int = job.main(rest)
    except UsageError as error:
        print(f"rrope {name}: {error}", file=sys.stderr)
        return 2
    except StoreError as error:
        print(f"rrope {name}: {error}", file=sys.stderr)
        return 1
    except _Stopped as stopped:
        print(
            f"rrope {name}: stopped by {stopped.signal.name}; the same command goes on from here",
            file=sys.stderr,
        )
        return 128 + stopped.signal
    return code


if __name__ == "__main__":
    sys.exit(main())
