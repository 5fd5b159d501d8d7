"""Some hundred hostile inputs for each target, and the harness itself."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.fuzz.encoding import encode
from tests.fuzz.judging import ACCEPTED, FAULTS, FOREIGN, MESSAGE, REFUSED, WRITES, Target, judge
from tests.fuzz.targets import TARGETS

ROOT = Path(__file__).parents[2]
# Fewer where an input takes longer.
INPUTS = dict.fromkeys(TARGETS, 250) | {"own_folders": 60, "conversions": 60}


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fuzz")
    for inputs in sorted(set(INPUTS.values())):
        names = [name for name in INPUTS if INPUTS[name] == inputs]
        command = [sys.executable, "-m", "tests.fuzz", *names, f"--inputs={inputs}"]
        subprocess.run(
            [*command, f"--out={folder}"], cwd=ROOT, env=os.environ | {"PYTHONPATH": "."}
        )
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", TARGETS)
def test_hostile_inputs_are_refused_in_our_words(out: Path, name: str) -> None:
    report: Mapping[str, Any] = json.loads((out / f"{name}.json").read_text())
    assert report["done"] == INPUTS[name]
    assert report["faults"] == {}
    # or the changes are too wild to reach anything, or too tame
    assert min(report["counts"][ACCEPTED], report["counts"][REFUSED]) >= INPUTS[name] // 20
