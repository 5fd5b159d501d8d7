"""The folder of a job: who may use it, and that it is written whole or not at all."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from rrope_jax.cli.errors import UsageError
from rrope_jax.run.workdir import Workdir

ROOT = Path(__file__).parents[2]
IDENTITY = {"tasks": ("cot",), "train": {"steps": 10, "learning_rate": 3e-3}}


def _tree(path: Path) -> dict[str, bytes]:
    return {str(p.relative_to(path)): p.read_bytes() for p in path.rglob("*") if p.is_file()}


class TestClaim:
    def test_new_folder_gets_the_identity(self, tmp_path: Path) -> None:
        with Workdir.claim(tmp_path / "a" / "b", IDENTITY) as workdir:
            assert workdir.path == tmp_path / "a" / "b"
            assert workdir.read_json("config.json") == {
                "tasks": ["cot"],
                "train": {"steps": 10, "learning_rate": 0.003},
            }

    def test_same_identity_comes_back_to_its_files(self, tmp_path: Path) -> None:
        with Workdir.claim(tmp_path, IDENTITY) as workdir:
            workdir.write_json("cells/one.json", {"done": True})
        with Workdir.claim(tmp_path, {**IDENTITY, "tasks": ["cot"]}) as workdir:
            assert workdir.read_json("cells/one.json") == {"done": True}

    @pytest.mark.parametrize(
        ("other", "parts"),
        [
            (
                {**IDENTITY, "train": {"steps": 20, "learning_rate": 3e-3}},
                ["train.steps is 10 there and 20 here"],
            ),
            ({**IDENTITY, "seed": 1}, ["seed is absent there and 1 here"]),
            ({"tasks": ("cot",)}, ["train.steps is 10 there and absent here"]),
            ({**IDENTITY, "tasks": ("cot", "r")}, ['["cot"]', '["cot", "r"]']),
        ],
    )
    def test_other_identity_is_refused_and_nothing_changes(
        self, tmp_path: Path, other: dict[str, object], parts: list[str]
    ) -> None:
        with Workdir.claim(tmp_path, IDENTITY) as workdir:
            workdir.write_text("report.md", "kept")
        before = _tree(tmp_path)
        with pytest.raises(UsageError) as caught:
            Workdir.claim(tmp_path, other)
        message = str(caught.value)
        assert [part for part in [str(tmp_path), "another", *parts] if part not in message] == []
        assert _tree(tmp_path) == before
        Workdir.claim(tmp_path, IDENTITY).release()

    def test_foreign_files_are_refused_and_left_alone(self, tmp_path: Path) -> None:
        (tmp_path / "thesis.tex").write_text("years of work")
        with pytest.raises(UsageError, match=r"thesis\.tex"):
            Workdir.claim(tmp_path, IDENTITY)
        assert _tree(tmp_path) == {"thesis.tex": b"years of work"}

    def test_second_claim_is_refused_until_the_first_is_released(self, tmp_path: Path) -> None:
        first = Workdir.claim(tmp_path, IDENTITY)
        before = _tree(tmp_path)
        with pytest.raises(UsageError, match="in use by another process"):
            Workdir.claim(tmp_path, IDENTITY)
        assert _tree(tmp_path) == before
        first.release()
        Workdir.claim(tmp_path, IDENTITY).release()

    def test_lock_of_a_live_process_holds_and_ends_with_it(self, tmp_path: Path) -> None:
        code = (
            "import sys, time; from rrope_jax.run.workdir import Workdir;"
            "w = Workdir.claim(sys.argv[1], {'a': 1}); print('claimed', flush=True); time.sleep(60)"
        )
        with subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE
        ) as other:
            assert other.stdout is not None
            assert other.stdout.readline() == b"claimed\n"
            with pytest.raises(UsageError, match="in use by another process"):
                Workdir.claim(tmp_path, {"a": 1})
            other.send_signal(signal.SIGKILL)
            other.wait()
        Workdir.claim(tmp_path, {"a": 1}).release()

    def test_claim_that_was_killed_early_can_be_repeated(self, tmp_path: Path) -> None:
        (tmp_path / ".lock").touch()
        (tmp_path / ".config.json.tmp").write_text('{"half')
        with Workdir.claim(tmp_path, IDENTITY) as workdir:
            assert workdir.read_json("config.json")["tasks"] == ["cot"]
        assert not (tmp_path / ".config.json.tmp").exists()

    def test_path_that_cannot_be_made_leaves_nothing(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        for path in (tmp_path / "file", tmp_path / "file" / "below"):
            with pytest.raises(UsageError, match=f"--workdir={path} cannot be used"):
                Workdir.claim(path, IDENTITY)
        assert _tree(tmp_path) == {"file": b""}

    def test_name_too_long_leaves_no_parents(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="name too long"):
            Workdir.claim(tmp_path / "new" / ("x" * 300), IDENTITY)
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
    def test_read_only_folder(self, tmp_path: Path) -> None:
        folder = tmp_path / "closed"
        folder.mkdir(mode=0o500)
        with pytest.raises(UsageError, match="Permission denied"):
            Workdir.claim(folder, IDENTITY)

    def test_full_disk_leaves_nothing(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def full(descriptor: int) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(UsageError, match="No space left on device"):
            Workdir.claim(tmp_path / "a" / "b", IDENTITY)
        assert list(tmp_path.iterdir()) == []

    def test_empty_path(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        with pytest.raises(UsageError, match="--workdir is empty"):
            Workdir.claim("", IDENTITY)
        assert list(tmp_path.iterdir()) == []

    def test_unreadable_identity(self, tmp_path: Path) -> None:
        (tmp_path / "config.json").write_text("not json")
        with pytest.raises(UsageError, match=r"config\.json is not JSON"):
            Workdir.claim(tmp_path, IDENTITY)

    def test_identity_without_json_form_is_a_defect_not_bad_usage(self, tmp_path: Path) -> None:
        with pytest.raises(TypeError, match="object"):
            Workdir.claim(tmp_path / "a", {"x": object()})
        assert list(tmp_path.iterdir()) == []


class TestFiles:
    @pytest.fixture
    def workdir(self, tmp_path: Path) -> Workdir:
        return Workdir.claim(tmp_path, IDENTITY)

    def test_json_of_numpy_values_is_strict(self, workdir: Workdir) -> None:
        value = {
            "accuracy": np.float32(0.5),
            "by_position": np.array([1, 2]),
            "loss": float("nan"),
            "gap": np.array([np.inf, 1.0]),
            "seeds": (0, 1),
        }
        path = workdir.write_json("results.json", value)
        text = path.read_text()
        assert "NaN" not in text
        assert "Infinity" not in text
        assert json.loads(text) == {
            "accuracy": 0.5,
            "by_position": [1, 2],
            "loss": None,
            "gap": [None, 1.0],
            "seeds": [0, 1],
        }
        assert workdir.read_json("results.json") == json.loads(text)

    def test_names_of_files_that_are_not_utf8_come_back(self, workdir: Workdir) -> None:
        name = b"caf\xe9.txt".decode(errors="surrogateescape")
        workdir.write_json("results.json", {"document": name, "as it is": "café"})
        assert workdir.read_json("results.json") == {"document": name, "as it is": "café"}

    def test_text_is_utf8(self, workdir: Workdir) -> None:
        assert workdir.write_text("report.md", "65 ± 1").read_bytes() == "65 ± 1".encode()

    def test_failed_write_keeps_the_old_file_and_no_other(
        self, workdir: Workdir, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        workdir.write_text("report.md", "old")
        before = _tree(workdir.path)

        def full(descriptor: int) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            workdir.write_text("report.md", "new")
        assert _tree(workdir.path) == before

    def test_reader_never_sees_a_part(
        self, workdir: Workdir, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = workdir.write_text("report.md", "old")
        seen = []
        fsync = os.fsync

        def look(descriptor: int) -> None:
            fsync(descriptor)
            seen.append(path.read_text())

        monkeypatch.setattr(os, "fsync", look)
        workdir.write_text("report.md", "new")
        assert seen == ["old"]
        assert path.read_text() == "new"

    def test_missing_file(self, workdir: Workdir) -> None:
        with pytest.raises(FileNotFoundError):
            workdir.read_json("results.json")
