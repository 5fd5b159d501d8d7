"""A part in a process of its own: `python -m tests.accelerator.child PART ...`, for `__main__`."""

import argparse
import fcntl
import os
import signal
import sys
import time
from pathlib import Path
from types import FrameType

from rrope_jax.run.workdir import Workdir
from tests.accelerator.call import RUNNING, UNFINISHED, Call, OutOfTimeError
from tests.accelerator.parts import PARTS
from tests.benchmarks import platforms

_PATIENCE = 90.0  # seconds that what a killed call has started is given to save and end


class _Stopped(BaseException):
    """The call is told to stop."""


def _stop(number: int, frame: FrameType | None) -> None:
    raise _Stopped(number)


def _lock(folder: Path) -> int:
    """Waits until nothing of an earlier call is alive; returns what keeps later ones out."""
    descriptor = os.open(folder / ".part.lock", os.O_RDWR | os.O_CREAT, 0o666)
    end = time.monotonic() + _PATIENCE
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > end:
                raise SystemExit(f"{folder} is still in use by an earlier call") from None
            time.sleep(0.5)
        else:
            return descriptor


def main() -> int:
    """Makes what is missing of a part; returns 0, or UNFINISHED where something is left."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--platform", choices=platforms.JAX_PLATFORMS, required=True)
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--deadline", type=float, required=True)
    parser.add_argument("--small", action="store_true")
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, _stop)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to the parent as well
    call = Call(
        part=given.part,
        platform=given.platform,
        small=given.small,
        workdir=Workdir.joined(given.workdir),  # the parent has claimed it
        deadline=given.deadline,
        lock=_lock(given.workdir),
    )
    (call.folder / RUNNING).unlink(missing_ok=True)  # of a call that was killed
    try:
        PARTS[given.part].run(call)
    except OutOfTimeError as reason:
        print(reason, file=sys.stderr)
        return UNFINISHED
    except _Stopped:
        return 128 + signal.SIGTERM
    return 0


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # a driver that hangs on its way out would cost the rest of the call
