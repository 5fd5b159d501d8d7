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
from rrope_jax.io import json_text
from rrope_jax.io.stores import AnyPath, StorePath, send
from tests.closeness import without_seconds
from tests.jobs.tiny_checkpoint import write_checkpoint
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


@pytest.mark.long
def test_evaluations_and_what_is_made_of_them(
    folder: StorePath, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Everything that is read and written is in a bucket: LoRA, evaluations, their comparison."""
    monkeypatch.setenv("RROPE_CACHE_DIR", str(tmp_path / "cache"))
    inputs = tmp_path / "inputs"
    write_checkpoint(inputs / "model")
    (inputs / "text").mkdir()
    write_text(inputs / "text")
    line = {"input": "It rains.", "instructions": ["Who?"], "outputs": ["A"]}
    (inputs / "quiz.jsonl").write_text(json.dumps(line))
    send(inputs, folder / "inputs")

    def run(command: str, workdir: AnyPath, *words: str) -> None:
        assert main([command, f"--workdir={workdir}", *words]) == 0

    def evaluate(workdir: AnyPath, checkpoint: AnyPath, source: AnyPath) -> None:
        sections = ("perplexity", "longppl", "passkey", "closed_ended", "ruler")
        on = ("perplexity", "closed_ended")
        run(
            "evaluate",
            workdir,
            f"--config={ROOT / 'configs' / 'evaluate_smollm2.py'}",
            f"--checkpoint={checkpoint}",
            f"--config.data.source={source / 'text'}",
            "--config.data.heldout=('*',)",
            "--config.data.tokenizer=bytes",
            "--config.eval.perplexity.contexts=(16,32)",
            f"--config.eval.closed_ended.files=('{source / 'quiz.jsonl'}',)",
            "--config.eval.closed_ended.context=128",
            "--config.eval.closed_ended.max_tokens=2",
            *(f"--config.eval.{name}.enabled={name in on}" for name in sections),
        )

    there = folder / "inputs"
    run(
        "train",
        folder / "lora",
        f"--config={ROOT / 'tests' / 'jobs' / 'test_lora.py'}",
        f"--config.data.source={there / 'text'}",
        f"--config.checkpoint.init_from={there / 'model'}",
    )
    evaluate(folder / "base", there / "model", there)
    evaluate(tmp_path / "base", inputs / "model", inputs)
    evaluate(folder / "lora_evaluated", folder / "lora", there)
    found, expected = (
        json_text.parse((path / "base" / "results.json").read_bytes())
        for path in (folder, tmp_path)
    )
    for section in ("perplexity", "perplexity_by_document", "closed_ended"):
        assert without_seconds(found[section]) == without_seconds(expected[section])
    runs = [str(folder / name) for name in ("base", "lora_evaluated")]
    run("evaluate", folder / "compared", *(f"--compare={each}" for each in runs))
    assert (folder / "compared" / "report.md").is_file()
