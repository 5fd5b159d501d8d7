"""Test ids are those of the tests, not of the moment at which they are collected.

Workers of pytest-xdist collect for themselves and have to find the same tests.
"""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def _collect(hash_seed: str, cache: Path) -> "subprocess.Popen[str]":
    words = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-o", f"cache_dir={cache}"]
    environment = os.environ | {"PYTHONHASHSEED": hash_seed}
    return subprocess.Popen(
        words,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=ROOT,
        env=environment,
    )


@pytest.mark.long
def test_two_processes_collect_the_same_tests(tmp_path: Path) -> None:
    first = _collect("1", tmp_path)
    time.sleep(1.5)  # so that a time in whole seconds is another one
    outputs = [process.communicate()[0] for process in (first, _collect("2", tmp_path))]
    ids = [[line for line in text.splitlines() if "::" in line] for text in outputs]
    assert len(ids[0]) > 1000, outputs[0][-2000:]
    assert ids[0] == ids[1]
