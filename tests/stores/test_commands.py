"""Whole commands with a bucket for their workdir: the same results as on a disk."""

import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from rrope_jax.__main__ import main
from rrope_jax.io.stores import StorePath
from tests.jobs.training_run import read_records, write_text
from tests.stores.object_server import Faults, ObjectServer

ROOT = Path(__file__).parents[2]
TRAIN = [
    "train",
    f"--config={ROOT / 'tests' / 'jobs' / 'train_tiny.py'}",
    "--config.train.steps=60",
]


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RROPE_LOCK_SECONDS", "2")


def _losses(records: list[dict[str, float]]) -> list[tuple[float, float]]:
    return [(record["step"], record["loss"]) for record in records]


def _stored_losses(folder: StorePath) -> list[tuple[float, float]]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return _losses([json.loads(line) for line in lines])


@pytest.mark.parametrize(
    "folder",
    [pytest.param("gs", marks=pytest.mark.long), pytest.param("s3", marks=pytest.mark.long)],
    indirect=True,
)
def test_killed_training_goes_on_to_the_same_numbers(
    folder: StorePath, server: ObjectServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Killed between two objects of a checkpoint, resumed while requests and answers get lost."""
    write_text(tmp_path)
    words = [*TRAIN, f"--config.data.source={tmp_path}"]
    assert main([*words, f"--workdir={tmp_path / 'disk'}"]) == 0
    reached = threading.Event()

    def watch(method: str, key: str) -> None:
        if "checkpoints/40/tree/params" in key and method in ("PUT", "POST"):
            reached.set()
            threading.Event().wait(2)  # the rest of the save is still to come

    server.faults = Faults(before=watch)
    killed = subprocess.Popen([sys.executable, "-m", "rrope_jax", *words, f"--workdir={folder}"])
    assert reached.wait(240)
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait()
    server.faults = Faults(drop_before=0.01, drop_after=0.01, busy=0.01, delay=0.002)
    capsys.readouterr()
    assert main([*words, f"--workdir={folder}"]) == 0
    assert f"wrote {folder}/checkpoints\n" in capsys.readouterr().out
    assert _stored_losses(folder) == _losses(read_records(tmp_path / "disk"))
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["40", "60"]
    server.faults = Faults()
    sums = "checkpoints/60/checksums/metadata"
    on_disk = json.loads((tmp_path / "disk" / sums).read_text())
    assert json.loads((folder / sums).read_text()) == on_disk


def _start_two(words: list[str]) -> "list[subprocess.Popen[bytes]]":
    with socket.create_server(("", 0)) as server:
        port = server.getsockname()[1]
    started = []
    for index in range(2):
        environment = {
            **os.environ,
            "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
            "JAX_NUM_PROCESSES": "2",
            "JAX_PROCESS_ID": str(index),
            "JAX_NUM_CPU_DEVICES": "1",
        }
        command = [sys.executable, "-m", "rrope_jax", *words]
        started.append(subprocess.Popen(command, env=environment))
    return started


@pytest.mark.long
def test_two_processes_killed_at_random_moments(
    folder: StorePath, server: ObjectServer, tmp_path: Path
) -> None:
    """Each writes its own shards; whoever is killed, and whenever, the numbers are the same."""
    write_text(tmp_path)
    words = [*TRAIN, f"--config.data.source={tmp_path}", "--config.checkpoint.every_steps=10"]
    for process in _start_two([*words, f"--workdir={tmp_path / 'disk'}"]):
        assert process.wait(240) == 0
    chance = random.Random(0)
    server.faults = Faults(drop_before=0.01, drop_after=0.01, busy=0.01, delay=0.02)
    for _ in range(3):
        before = server.requests
        processes = _start_two([*words, f"--workdir={folder}"])
        wanted = before + chance.randrange(100, 700)
        while server.requests < wanted and all(each.poll() is None for each in processes):
            time.sleep(0.001)
        victim = chance.randrange(2)
        processes[victim].kill()
        assert processes[1 - victim].wait(240) != 0
        processes[victim].wait()
    for process in _start_two([*words, f"--workdir={folder}"]):
        assert process.wait(240) == 0
    assert _stored_losses(folder) == _losses(read_records(tmp_path / "disk"))
    sums = "checkpoints/60/checksums/metadata"
    on_disk = json.loads((tmp_path / "disk" / sums).read_text())
    assert json.loads((folder / sums).read_text()) == on_disk
    chunks = {path.name for path in (folder / "checkpoints/60/tree/params.embedding").iterdir()}
    assert len(chunks) == 3  # a shard of each process, and what describes them
