"""SIGKILL at random moments, many times: each command ends with the results of an unbroken run.

    pytest -m long tests/jobs/test_soak.py

Short forms of the same are in the tests of each command.
"""

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from rrope_jax.__main__ import main
from rrope_jax.io.target import left_behind
from tests.closeness import without_seconds
from tests.jobs.tiny_checkpoint import write_checkpoint
from tests.jobs.training_run import read_records, write_text

ROOT = Path(__file__).parents[2]
JOBS = Path(__file__).parent

EVALUATION = """
from ml_collections import ConfigDict


def get_config():
    config = ConfigDict()
    config.data = ConfigDict({"source": "", "tokenizer": "bytes", "heldout": ("*",)})
    config.eval = ConfigDict()
    config.eval.perplexity = ConfigDict({"enabled": True, "contexts": (16, 32)})
    config.eval.passkey = ConfigDict({"enabled": True, "contexts": (384,), "depths": (0.0, 1.0)})
    config.eval.passkey.trials = 3
    return config
"""


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """One CPU device; what one process has compiled serves the next."""
    return os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=1",
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path_factory.mktemp("compiled")),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }


class _Soak:
    """Kills a command until it has been hit so often.

    Attributes:
      hits: kills that a process did not escape by ending first.
      ends: runs that came to their end, each after the kills before it.
    """

    def __init__(self, words: list[str], environment: dict[str, str]) -> None:
        self._words, self._environment = words, environment
        self.hits = self.ends = 0
        self._chance = random.Random(0)

    def start(self) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [sys.executable, "-m", "rrope_jax", *self._words],
            cwd=ROOT,
            env=self._environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def seconds(self) -> float:
        """How long the command takes, once what it compiles is kept."""
        began = time.monotonic()
        self.end()
        return time.monotonic() - began

    def end(self) -> None:
        with self.start() as process:
            said = process.communicate()[0]
        assert process.returncode == 0, said

    def kills(self, count: int, seconds: float, begun: Callable[[float], bool]) -> Iterator[bool]:
        """Kills at a random moment of the time after `begun`; says each time whether it hit.

        `begun` gets the time of the start, in seconds since 1970.
        """
        while self.hits < count:
            began = time.time()
            with self.start() as process:
                while process.poll() is None and not begun(began):
                    time.sleep(0.001)
                time.sleep(self._chance.uniform(0, seconds))
                process.kill()
                said = process.communicate()[0]
            assert process.returncode in (0, -signal.SIGKILL), said
            self.hits += process.returncode != 0
            self.ends += process.returncode == 0
            yield process.returncode != 0


def _soaked(
    words: Callable[[Path], list[str]],
    results: Callable[[Path], Any],
    *,
    kills: int,
    environment: dict[str, str],
    folder: Path,
) -> None:
    """A command that goes on in its workdir, from one kill to the next."""
    _Soak(words(folder / "first"), environment).end()  # compiles
    seconds = _Soak(words(folder / "unbroken"), environment).seconds()
    expected = results(folder / "unbroken")
    workdir = folder / "run"
    soak = _Soak(words(workdir), environment)
    for hit in soak.kills(kills, seconds, lambda began: True):
        if not hit:
            assert results(workdir) == expected
            shutil.rmtree(workdir)
    soak.end()
    assert results(workdir) == expected
    print(f"{soak.hits} kills within {seconds:.1f} s each, {soak.ends + 1} runs to the end")


@pytest.fixture(params=[pytest.param(20, marks=pytest.mark.long)])
def kills(request: pytest.FixtureRequest) -> int:
    """How many."""
    return int(request.param)


def test_posgen(kills: int, environment: dict[str, str], tmp_path: Path) -> None:
    def results(workdir: Path) -> Any:
        found = json.loads((workdir / "results.json").read_text())
        return found["complete"], [{**cell, "seconds": None} for cell in found["cells"]]

    def words(workdir: Path) -> list[str]:
        return ["posgen", f"--config={JOBS / 'posgen_tiny.py'}", f"--workdir={workdir}"]

    _soaked(words, results, kills=kills, environment=environment, folder=tmp_path)


def test_train(kills: int, environment: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "text").mkdir()
    write_text(tmp_path / "text")

    def results(workdir: Path) -> Any:
        timed = ("tokens_per_second", "waiting", "time")
        return [{k: v for k, v in r.items() if k not in timed} for r in read_records(workdir)]

    def words(workdir: Path) -> list[str]:
        source = f"--config.data.source={tmp_path / 'text'}"
        return ["train", f"--config={JOBS / 'train_tiny.py'}", source, f"--workdir={workdir}"]

    _soaked(words, results, kills=kills, environment=environment, folder=tmp_path)


def test_evaluate(kills: int, environment: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "text").mkdir()
    write_text(tmp_path / "text")
    (tmp_path / "config.py").write_text(EVALUATION)
    checkpoint = write_checkpoint(tmp_path / "checkpoint")

    def results(workdir: Path) -> Any:
        return without_seconds(json.loads((workdir / "results.json").read_text()))

    def words(workdir: Path) -> list[str]:
        return [
            "evaluate",
            f"--config={tmp_path / 'config.py'}",
            f"--config.data.source={tmp_path / 'text'}",
            f"--checkpoint={checkpoint}",
            f"--workdir={workdir}",
        ]

    _soaked(words, results, kills=kills, environment=environment, folder=tmp_path)


def _tree(path: Path) -> dict[str, bytes]:
    files = [path] if path.is_file() else (each for each in path.rglob("*") if each.is_file())
    return {str(each.relative_to(path)): each.read_bytes() for each in files}


@pytest.mark.parametrize("target_format", ["hf", "gguf"])
def test_convert(
    target_format: str, kills: int, environment: dict[str, str], tmp_path: Path
) -> None:
    """What is at the target is always one of the two whole."""
    source = write_checkpoint(tmp_path / "checkpoint")
    target, partial = tmp_path / "target", tmp_path / ".target.partial"
    words = ["convert", f"--from={source}", f"--to={target}", f"--format={target_format}"]
    words.append("--overwrite")
    assert main([*words, "--dtype=float16"]) == 0
    old = shutil.copytree(target, tmp_path / "old") if target.is_dir() else None
    old = old or shutil.copy(target, tmp_path / "old")
    assert main(words) == 0
    before, after = _tree(Path(old)), _tree(target)
    assert before != after
    soak = _Soak(words, environment)

    def writing(began: float) -> bool:
        with contextlib.suppress(FileNotFoundError):
            return (partial / "new").stat().st_ctime > began
        return False

    # most of the time goes into starting, where a kill finds nothing
    for number, _ in enumerate(soak.kills(kills, 0.1, writing)):
        found = _tree(left_behind(target) or target)
        assert found in (before, after), number
        if found == after:
            shutil.rmtree(target) if target.is_dir() else target.unlink()
            shutil.copytree(old, target) if Path(old).is_dir() else shutil.copy(old, target)
    soak.end()
    assert _tree(target) == after
    assert not partial.exists()
    print(f"{soak.hits} kills, {soak.ends + 1} runs to the end")
