"""What calls leave behind: in the working folder, and all of it that is small in results.json.

results.json is enough for another machine to go on with: the measurements, which parts are done,
and the finished trainings of the PosGen grid. Checkpoints and compiled programs stay behind.
"""

import json
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rrope_jax.cli.errors import UsageError
from rrope_jax.run.workdir import Workdir
from tests.accelerator import posgen_paper
from tests.accelerator.call import RUNNING
from tests.accelerator.parts import PARTS

RESULTS = "results.json"
_CUT_OFF = "cut_off.json"
_OUTCOME = "outcome"  # of a part, beside its measurements


def finish(workdir: Workdir, part: str) -> None:
    """Notes that a part is done, and need not be run again."""
    workdir.write_json(f"{part}/{_OUTCOME}.json", "done")


def is_done(workdir: Workdir, part: str) -> bool:
    """Whether `finish` was called."""
    return (workdir.path / part / f"{_OUTCOME}.json").exists()


def cut_off(workdir: Workdir, part: str) -> bool:
    """Counts a measurement that did not end in its call; the second time, that is its result.

    Returns:
      Whether it was the second time.
    """
    running = workdir.path / part / RUNNING
    if not running.exists():
        return False
    counts = _read(workdir.path / _CUT_OFF, {})
    name = f"{part}/{running.read_text()}"
    counts[name] = counts.get(name, 0) + 1
    workdir.write_json(_CUT_OFF, counts)
    return counts[name] > 1 and fail_running(workdir, part, "it did not end in two calls")


def fail_running(workdir: Workdir, part: str, reason: str) -> bool:
    """Makes a crash the result of the measurement during which it was; False where there is none.

    So that the next run of the part begins with the one after it.
    """
    running = workdir.path / part / RUNNING
    if not running.exists():
        return False
    workdir.write_json(
        f"{part}/{running.read_text()}.json", {"failed": reason, "measured_in_seconds": 0.0}
    )
    running.unlink()
    return True


def forget(workdir: Workdir, part: str) -> None:
    """Removes all measurements of a part, with what they were made from."""
    shutil.rmtree(workdir.path / part, ignore_errors=True)


def record_call(workdir: Workdir, seconds: float, log: Mapping[str, Mapping[str, Any]]) -> None:
    """Adds a call to the list of all."""
    when = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())
    entry = {"ended": when, "seconds": round(seconds, 1), "parts": log}
    workdir.write_json("calls.json", [*_read(workdir.path / "calls.json", []), entry])


def collect(workdir: Workdir) -> dict[str, Any]:
    """The content of results.json."""
    identity = workdir.read_json("config.json")
    return {
        **identity,
        "calls": _read(workdir.path / "calls.json", []),
        "parts": {
            part: {
                path.stem: json.loads(path.read_bytes())
                for path in sorted((workdir.path / part).glob("*.json"))
            }
            for part in PARTS
        },
        "posgen_workdir": {
            str(path.relative_to(posgen_paper.workdir(workdir.path))): json.loads(path.read_bytes())
            for path in _posgen_files(workdir.path)
        },
    }


def adopt(workdir: Workdir, out: Path) -> None:
    """Takes what an earlier call, maybe on another machine, left in the folder of results.

    Nothing that is in the working folder already is replaced.

    Raises:
      UsageError: the folder is of another platform or size, or not a folder of results.
    """
    path = out / RESULTS
    if not path.exists():
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise UsageError(f"{out} is no folder of results: it has no {RESULTS}; give a new one")
        return
    try:
        found = json.loads(path.read_bytes())
        theirs = {key: found[key] for key in ("platform", "small")}
        parts, calls = found["parts"], found["calls"]
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{path} is damaged: {error}; give a new folder") from error
    if (ours := workdir.read_json("config.json")) != theirs:
        raise UsageError(f"{path} is of {theirs}, this call of {ours}; give a new folder")
    files = {f"{part}/{name}.json": value for part in parts for name, value in parts[part].items()}
    grid = posgen_paper.workdir(Path())
    files |= {str(grid / name): value for name, value in found["posgen_workdir"].items()}
    if len(_read(workdir.path / "calls.json", [])) < len(calls):
        workdir.write_json("calls.json", calls)
    for name, value in files.items():
        if not (workdir.path / name).exists():
            workdir.write_json(name, value)


def _posgen_files(folder: Path) -> list[Path]:
    grid = posgen_paper.workdir(folder)
    own = grid / "config.json"
    return [own, *sorted((grid / "cells").glob("*.json"))] if own.exists() else []


def _read(path: Path, default: Any) -> Any:
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        return default
