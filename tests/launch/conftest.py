"""The stand-in machine of the launch scripts' tests."""

import shutil
from pathlib import Path

import pytest

from tests.launch.cloud import Cloud
from tests.launch.machine import ROOT, TOOLS, Machine


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks the tests of this folder: launch/test.sh leaves them out where nothing changed."""
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker(pytest.mark.launch)


def _make_machine(folder: Path) -> Machine:
    made = Machine(folder)
    (folder / "bin").mkdir()
    for tool in TOOLS:
        found = shutil.which(tool)
        assert found is not None
        (folder / "bin" / tool).symlink_to(found)
    made.root.mkdir()
    for name in ("setup.cfg", "pyproject.toml"):
        shutil.copy(ROOT / name, made.root)
    mine = shutil.ignore_patterns("cluster.env")
    shutil.copytree(ROOT / "launch", made.root / "launch", ignore=mine)
    shutil.copytree(ROOT / ".ci", made.root / ".ci")
    return made


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return _make_machine(tmp_path)


@pytest.fixture
def cloud(machine: Machine) -> Cloud:
    return Cloud.beside(machine)


@pytest.fixture(scope="module")
def cloud_of_module(tmp_path_factory: pytest.TempPathFactory) -> Cloud:
    return Cloud.beside(_make_machine(tmp_path_factory.mktemp("machine")))
