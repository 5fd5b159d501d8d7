"""The stand-in machine of the launch scripts' tests."""

import shutil
from pathlib import Path

import pytest

from tests.launch.cloud import Cloud
from tests.launch.machine import ROOT, TOOLS, Machine


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    made = Machine(tmp_path)
    (tmp_path / "bin").mkdir()
    for tool in TOOLS:
        found = shutil.which(tool)
        assert found is not None
        (tmp_path / "bin" / tool).symlink_to(found)
    made.root.mkdir()
    for name in ("setup.cfg", "pyproject.toml"):
        shutil.copy(ROOT / name, made.root)
    mine = shutil.ignore_patterns("cluster.env")
    shutil.copytree(ROOT / "launch", made.root / "launch", ignore=mine)
    shutil.copytree(ROOT / ".ci", made.root / ".ci")
    return made


@pytest.fixture
def cloud(machine: Machine) -> Cloud:
    return Cloud.beside(machine)
