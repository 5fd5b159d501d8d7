"""Some hundred hostile inputs for each target, and those that once went wrong."""

import json
import math
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.fuzz.encoding import encode
from tests.fuzz.judging import ACCEPTED, REFUSED, judge
from tests.fuzz.kept import KEPT
from tests.fuzz.targets import TARGETS

ROOT = Path(__file__).parents[2]
INPUTS = 240


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a run found. Its processes fork, which this one must not."""
    folder = tmp_path_factory.mktemp("fuzz")
    subprocess.run(
        [sys.executable, "-m", "tests.fuzz", f"--inputs={INPUTS}", f"--out={folder}"],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": "."},
        check=False,  # the tests say what went wrong
    )
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", TARGETS)
def test_hostile_inputs_are_refused_in_our_words(out: Path, name: str) -> None:
    report: Mapping[str, Any] = json.loads((out / f"{name}.json").read_text())
    assert report["faults"] == {}
    assert report["done"] == math.ceil(INPUTS * TARGETS[name].share)
    # or the changes are too wild to reach anything, or too tame
    assert min(report["counts"][ACCEPTED], report["counts"][REFUSED]) > report["done"] // 50


@pytest.mark.slow
@pytest.mark.parametrize("name", TARGETS)
def test_valid_inputs_are_accepted(tmp_path: Path, name: str) -> None:
    """Or what is changed would be refused for another reason."""
    for tree in TARGETS[name].seeds():
        assert judge(TARGETS[name], encode(tree), tmp_path / "input").kind == ACCEPTED


@pytest.mark.parametrize("name", KEPT)
def test_what_went_wrong_does_so_no_more(tmp_path: Path, name: str) -> None:
    kept = KEPT[name]
    verdict = judge(TARGETS[kept.target], kept.files(), tmp_path / "input")
    # a damaged checkpoint may be passed over for the one before it
    assert verdict.kind in (ACCEPTED, REFUSED), verdict
