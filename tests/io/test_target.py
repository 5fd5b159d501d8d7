"""A target is there whole or not at all, whatever fails and whenever it is killed."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from rrope_jax.io.target import replace_file, restore_target, whole_or_nothing

ROOT = Path(__file__).parents[2]
FOLDER = ".model.partial"


@pytest.fixture(params=["file", "folder"])
def target(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Something that is to be replaced."""
    target = tmp_path / "model"
    _write(target, "the only copy", folder=request.param == "folder")
    return target


def _write(path: Path, text: str, *, folder: bool) -> None:
    if folder:
        path.mkdir()
        path /= "weights"
    path.write_text(text)


def _read(path: Path) -> str:
    return (path / "weights" if path.is_dir() else path).read_text()


def _replace(target: Path, text: str = "new") -> None:
    folder = target.is_dir()
    with whole_or_nothing(target, overwrite=True) as new:
        _write(new, text, folder=folder)


def _fail(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """Makes renames from these names fail, as on a disk with errors."""
    rename = Path.rename

    def failing(self: Path, to: Path) -> Path:
        if self.name in names:
            raise OSError(5, "Input/output error")
        return rename(self, to)

    monkeypatch.setattr(Path, "rename", failing)


def test_replaced(target: Path) -> None:
    _replace(target)
    assert _read(target) == "new"
    assert os.listdir(target.parent) == ["model"]


def test_second_rename_fails(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _fail(monkeypatch, "new")
    with pytest.raises(OSError, match="Input/output error"):
        _replace(target)
    assert _read(target) == "the only copy"
    assert os.listdir(target.parent) == ["model"]


def test_first_rename_fails(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _fail(monkeypatch, "model")
    with pytest.raises(OSError, match="Input/output error"):
        _replace(target)
    assert _read(target) == "the only copy"
    assert os.listdir(target.parent) == ["model"]


def test_nothing_can_be_renamed_any_more(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as broken:
        _fail(broken, "new", "old")
        with pytest.raises(OSError, match="Input/output error"):
            _replace(target)
        assert _read(target.parent / FOLDER / "old") == "the only copy"
        assert _read(target.parent / FOLDER / "new") == "new"
        with pytest.raises(ValueError, match=r"is what was at .* and cannot be moved back"):
            _replace(target)
        assert _read(target.parent / FOLDER / "old") == "the only copy"
    with (
        pytest.raises(ValueError, match="exists; give another path"),  # it is back
        whole_or_nothing(target, overwrite=False),
    ):
        pass
    assert _read(target) == "the only copy"


@pytest.mark.slow
@pytest.mark.parametrize("again", [True, False])
def test_killed_between_the_renames(target: Path, again: bool) -> None:
    code = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from tests.io.test_target import _replace\n"
        "rename = Path.rename\n"
        "def killing(self, to):\n"
        "    if self.name == 'new':\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return rename(self, to)\n"
        "Path.rename = killing\n"
        "_replace(Path(sys.argv[1]), 'half')\n"
    )
    killed = subprocess.run([sys.executable, "-c", code, str(target)], cwd=ROOT, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert not target.exists()
    if again:
        _replace(target)
        assert _read(target) == "new"
        return
    restore_target(target)
    assert _read(target) == "the only copy"


def test_file_is_replaced_whole_or_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "a.json"
    replace_file(file, b"old")

    def failing(self: Path, to: Path) -> Path:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as broken:
        broken.setattr(Path, "replace", failing)
        with pytest.raises(OSError, match="Input/output error"):
            replace_file(file, b"new")
    assert file.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a.json"]
    replace_file(file, b"new")
    assert file.read_bytes() == b"new"
