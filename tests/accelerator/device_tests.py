"""The tests marked `accelerator`, a process and a measurement for each of their files."""

import importlib.util
import xml.etree.ElementTree as ElementTree
from collections import Counter
from pathlib import Path
from typing import Any

from tests.accelerator.call import ROOT, Call, OutOfTimeError, SkippedError

_SECONDS = 60.0  # a file's


def files() -> dict[str, Path]:
    """Name -> file, of those with marked tests."""
    found = sorted((ROOT / "tests" / "accelerator").glob("test_*.py"))
    return {
        path.stem.removeprefix("test_"): path
        for path in found
        if "pytest.mark.accelerator" in path.read_text()
    }


def run(call: Call) -> None:
    """A measurement for each file."""
    for name, path in files().items():
        call.measure(name, _SECONDS, lambda path=path: _results(call, path))


def _results(call: Call, path: Path) -> dict[str, Any]:
    if importlib.util.find_spec("pytest") is None:
        raise SkippedError("pytest is not installed")
    report = call.folder / f"{path.stem}.xml"
    words = ["-m", "pytest", str(path), "-m", "accelerator", f"--junitxml={report}", "-q"]
    # the device is not that of tests/conftest.py, and a warning of a driver is no failure
    words += ["--noconftest", "-p", "no:cacheprovider", "-W", "default"]
    report.unlink(missing_ok=True)
    try:
        call.run(words)
    except OutOfTimeError:
        raise
    except RuntimeError:
        if not report.exists():
            raise
    return summarize(report.read_text())


def summarize(xml: str) -> dict[str, Any]:
    """Counts of outcomes, the reasons of skips with how many have them, and what failed.

    Args:
      xml: of pytest's --junitxml.
    """
    failed, reasons = [], Counter[str]()
    cases = list(ElementTree.fromstring(xml).iter("testcase"))
    for case in cases:
        for kind in ("failure", "error"):
            if (found := case.find(kind)) is not None:
                message = found.get("message", "").split("\n")[0][:300]
                failed.append({"test": case.get("name"), "message": message})
        if (found := case.find("skipped")) is not None:
            reasons[found.get("message", "")] += 1
    skipped = sum(reasons.values())
    return {
        "passed": len(cases) - len(failed) - skipped,
        "failures": failed,
        "skips": dict(reasons),
    }
