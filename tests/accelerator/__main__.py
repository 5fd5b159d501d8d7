"""What a first accelerator has to show, in calls of some minutes: see docs/accelerator.md.

    python -m tests.accelerator gpu OUT --minutes=9

`launch/accelerator.sh` finds a Python and calls this. Parts that are done are not done again; one
that does not fit the rest of the time is left for the next call, which is the same command. OUT
gets results.json, report.md and figures at the end of every call, also of one that is told to stop.
"""

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from rrope_jax.cli.errors import UsageError
from rrope_jax.io.stores import StorePath
from rrope_jax.run.workdir import Workdir
from tests.accelerator import report, results
from tests.accelerator.call import ROOT, STORE, UNFINISHED, Call, python
from tests.accelerator.parts import PARTS, Part
from tests.benchmarks import platforms

_REPORT = 10.0  # seconds that the report is left at the end of a call
_FIRST = "device"  # without which there is nothing to measure
_GRACE = 10.0  # seconds that a part is given to end after its deadline


class _Stopped(BaseException):
    """A signal asks the call to end."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a call.

    Returns:
      0 when all is done; `UNFINISHED` where something is left for the next call, and 1 where
      something of that has failed.
    """
    given = _parse(argv)
    began = time.time()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _stop)
    work = given.work or ROOT / "runs" / f"accelerator_{given.platform}"
    identity = {"platform": given.platform, "small": given.small}
    try:
        with Workdir.claim(work, identity) as workdir:
            return _run(given, workdir, began)
    except UsageError as error:
        print(f"accelerator: {error}", file=sys.stderr)
        return 2


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="accelerator", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("platform", choices=platforms.JAX_PLATFORMS)
    parser.add_argument("out", type=Path, metavar="OUT", help="folder of the results")
    parser.add_argument("--minutes", type=float, default=9.0, help="length of this call")
    parser.add_argument("--parts", default=",".join(PARTS), help="which ones, by default all")
    parser.add_argument("--again", default="", help="parts that are measured anew")
    parser.add_argument("--work", type=Path, help="folder of checkpoints and compiled programs")
    parser.add_argument(
        "--small", action=argparse.BooleanOptionalAction, help="sizes for a CPU (default: on cpu)"
    )
    given = parser.parse_args(argv)
    for flag in ("parts", "again"):
        names = [name for name in getattr(given, flag).split(",") if name]
        for name in names:
            if name not in PARTS:
                parser.error(
                    f"--{flag}: there is no part {name!r}; the parts are {', '.join(PARTS)}"
                )
        setattr(given, flag, names)
    if not given.minutes > 0:
        parser.error(f"--minutes={given.minutes:g} must be above 0")
    if url := os.environ.get(STORE):
        try:
            StorePath.of(url)
        except ValueError as error:
            parser.error(f"{STORE}={url}: {error}")
    if given.small is None:
        given.small = given.platform == "cpu"
    return given


def _stop(number: int, frame: FrameType | None) -> None:
    del frame
    signal.signal(number, signal.SIG_DFL)  # a second one ends it at once
    raise _Stopped(number)


def _run(given: argparse.Namespace, workdir: Workdir, began: float) -> int:
    results.adopt(workdir, given.out)
    for name in given.again:
        results.forget(workdir, name)
    deadline = began + 60 * given.minutes - _REPORT
    log: dict[str, dict[str, Any]] = {}
    stopped: _Stopped | None = None
    try:
        for name in PARTS:
            if name not in (_FIRST, *given.parts):
                continue
            call = Call(name, given.platform, given.small, workdir, deadline)
            log[name] = _part(PARTS[name], call)
            if name == _FIRST and log[name]["state"] == "failed":
                return 2
    except _Stopped as signaled:
        stopped = signaled
    finally:
        results.record_call(workdir, time.time() - began, log)
        written = report.publish(workdir, given.out)
        print("\n".join(f"wrote {path}" for path in written))
    if stopped is not None:
        return 128 + int(stopped.args[0])
    left = [name for name in given.parts if log[name]["state"] != "done"]
    if left:
        print(f"left for the next call, which is the same command: {', '.join(left)}")
    failed = any(log[name]["state"] == "failed" for name in left)
    return 1 if failed else UNFINISHED if left else 0


def _part(part: Part, call: Call) -> dict[str, Any]:
    """Runs what is missing of a part; says how it ended."""
    if results.is_done(call.workdir, call.part):
        return {"state": "done", "seconds": 0.0}
    if call.left < (0 if call.small else part.least):
        reason = f"it needs {part.least:.0f} s, and {call.left:.0f} s were left of the call"
        return _said(call, {"state": "left", "seconds": 0.0, "reason": reason})
    print(f"[{time.strftime('%H:%M:%S')}] {part.title} ({call.left:.0f} s left)", flush=True)
    began = time.time()
    while True:
        code, reason = _run_child(call)
        how: dict[str, Any] = {"seconds": time.time() - began}
        if code == 0:
            if part.once:
                results.finish(call.workdir, call.part)
            return _said(call, {**how, "state": "done"})
        if code is None and results.cut_off(call.workdir, call.part):
            continue
        if code in (None, UNFINISHED):
            return _said(call, {**how, "state": "unfinished", "reason": reason})
        if not results.fail_running(call.workdir, call.part, f"its process ended with {code}"):
            return _said(call, {**how, "state": "failed", "reason": reason})


def _run_child(call: Call) -> tuple[int | None, str]:
    """The exit code of a part's process, None where it had to be ended, and its last words."""
    words = [call.part, f"--platform={call.platform}", f"--workdir={call.workdir.path}"]
    words += [f"--deadline={call.deadline}", *(["--small"] if call.small else [])]
    log = call.workdir.path / f"{call.part}.log"
    with log.open("w") as output:
        process = subprocess.Popen(
            python("-m", "tests.accelerator.child", *words),
            cwd=ROOT,
            env=call.environment,
            stdout=output,
            stderr=output,
        )
        try:
            code: int | None = process.wait(timeout=max(0.0, call.left) + _GRACE)
        except subprocess.TimeoutExpired:
            _end(process)
            code = None
        except BaseException:
            _end(process, grace=60.0)
            raise
    said = log.read_text(errors="replace").strip().splitlines()
    return code, "\n".join(said[-12:])[-2000:]


def _said(call: Call, how: dict[str, Any]) -> dict[str, Any]:
    reason = f": {how['reason'].splitlines()[-1]}" if how.get("reason") else ""
    said = f"{call.part}: {how['state']} after {how['seconds']:.0f} s{reason}"
    print(said, file=sys.stderr if how["state"] == "failed" else sys.stdout, flush=True)
    return how


def _end(process: "subprocess.Popen[bytes]", grace: float = 5.0) -> None:
    process.terminate()
    try:
        process.wait(timeout=grace)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


if __name__ == "__main__":
    sys.exit(main())
