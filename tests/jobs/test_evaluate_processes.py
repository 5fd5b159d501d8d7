"""`rrope evaluate` and `rrope generate` over meshes and as several real processes."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rrope_jax.__main__ import main
from tests.jobs.processes import Job, environment_of, free_port
from tests.jobs.tiny_checkpoint import write_checkpoint

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "configs" / "evaluate_smollm2.py"
RETRYABLE = 42
SECTIONS = ("perplexity", "longppl", "passkey", "closed_ended", "ruler")


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """An evaluation of many units, each of which takes milliseconds."""
    folder = tmp_path_factory.mktemp("inputs")
    text = "".join(f"{i} and " for i in range(90))
    (folder / "texts").mkdir()
    (folder / "texts" / "digits.txt").write_text(text)
    checkpoint = write_checkpoint(folder / "model")
    return [
        "evaluate",
        f"--config={CONFIG}",
        f"--checkpoint={checkpoint}",
        f"--config.data.source={folder / 'texts'}",
        "--config.data.heldout=('*',)",
        "--config.data.tokenizer=bytes",
        *(f"--config.eval.{name}.enabled={name == 'perplexity'}" for name in SECTIONS),
        "--config.eval.perplexity.contexts=(16,32)",
        "--config.eval.perplexity.fragments_per_document=200",
    ]


@pytest.fixture
def started() -> Iterator["list[subprocess.Popen[bytes]]"]:
    """Processes to kill after a test."""
    processes: list[subprocess.Popen[bytes]] = []
    yield processes
    for process in processes:
        with contextlib.suppress(OSError):
            process.kill()
        process.wait()


def start(
    words: list[str], folder: Path, started: "list[subprocess.Popen[bytes]]", **own: list[str]
) -> Job:
    """Starts two processes of a job with two devices each; `own` has flags of `first`, `second`."""
    job, port = Job([], []), free_port()
    for index, name in enumerate(("first", "second")):
        environment = environment_of(
            PYTHONPATH=os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
            JAX_NUM_CPU_DEVICES="2",
            JAX_COORDINATOR_ADDRESS=f"127.0.0.1:{port}",
            JAX_NUM_PROCESSES="2",
            JAX_PROCESS_ID=str(index),
        )
        log = folder / f"{index}.log"
        with log.open("wb") as file:
            process = subprocess.Popen(
                [sys.executable, "-m", "rrope_jax", *words, *own.get(name, [])],
                cwd=ROOT,
                stdout=file,
                stderr=file,
                env=environment,
            )
        started.append(process)
        job.processes.append(process)
        job.logs.append(log)
    return job


def results_of(workdir: Path) -> dict[str, Any]:
    results: dict[str, Any] = json.loads((workdir / "results.json").read_text())
    return results


def reasons(job: Job) -> list[str]:
    """What the processes say about their end."""
    said = [line for log in job.logs for line in log.read_text().splitlines()]
    return [line for line in said if line.startswith("rrope evaluate: ")]


def units(workdir: Path) -> dict[Path, int]:
    """The stored units and when they were written."""
    return {path: path.stat().st_mtime_ns for path in workdir.glob("units/*/*.json")}


def assert_finished_by_one(words: list[str], workdir: Path, alone: Path) -> None:
    """One process computes what is missing, and the results are those of one from the start."""
    kept = units(workdir)
    assert main([*words, f"--workdir={workdir}"]) == 0
    assert {path: units(workdir)[path] for path in kept} == kept
    assert main([*words, f"--workdir={alone}"]) == 0
    one, other = results_of(workdir), results_of(alone)
    assert one["complete"]
    for key in ("perplexity", "perplexity_by_document"):
        for a, b in zip(one[key], other[key], strict=True):
            assert a["loss"] == pytest.approx(b["loss"], rel=1e-5)


@pytest.mark.long
def test_a_lost_process_is_named_and_one_goes_on(
    words: list[str], started: "list[subprocess.Popen[bytes]]", tmp_path: Path
) -> None:
    workdir = tmp_path / "run"
    flags = [f"--workdir={workdir}", "--config.mesh.seq=2", "--config.mesh.tensor=2"]
    job = start([*words, *flags], tmp_path, started)
    job.wait_until(lambda: len(units(workdir)) >= 5)
    job.processes[1].kill()
    assert job.processes[0].wait(30) == RETRYABLE
    (reason,) = reasons(job)
    assert "lost process 1" in reason
    assert "the same command goes on" in reason
    assert "backend cpu, 4 devices" in job.said(0)
    assert_finished_by_one(words, workdir, tmp_path / "alone")


@pytest.mark.long
def test_told_to_stop_both_stop_after_a_batch(
    words: list[str], started: "list[subprocess.Popen[bytes]]", tmp_path: Path
) -> None:
    workdir = tmp_path / "run"
    flags = [f"--workdir={workdir}", "--config.mesh.tensor=2", "--config.eval.batch_size=3"]
    job = start([*words, *flags], tmp_path, started)
    job.wait_until(lambda: len(units(workdir)) >= 5)
    job.processes[1].send_signal(signal.SIGTERM)
    assert job.wait() == [RETRYABLE, RETRYABLE]
    (reason,) = reasons(job)
    assert "told to stop; the same command goes on" in reason
    assert reasons(job) == [line for line in job.said(0).splitlines() if "told to stop" in line]
    stopped = results_of(workdir)
    assert not stopped["complete"]
    assert stopped["missing_units"] > 0
    assert len(units(workdir)) % 4 == 0  # three at a time are four over two devices
    assert_finished_by_one(words, workdir, tmp_path / "alone")


@pytest.mark.long
def test_processes_that_differ_are_refused(
    words: list[str], started: "list[subprocess.Popen[bytes]]", tmp_path: Path
) -> None:
    flags = [f"--workdir={tmp_path / 'run'}"]
    job = start([*words, *flags], tmp_path, started, second=["--config.mesh.tensor=2"])
    assert job.wait() == [2, 2]
    assert "config.mesh" in reasons(job)[0]
    assert "with the same config, flags and files" in reasons(job)[0]
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["mesh.tensor=3"], "config.mesh: data=1, fsdp=-1, seq=1, tensor=3 does not make a mesh"),
        (["mesh.data=-1"], "config.mesh: data and fsdp are -1; only one axis"),
        (["mesh.tesnor=2"], "config.mesh has no key 'tesnor'; did you mean 'tensor'?"),
        (["eval.batch_size=0"], "config.eval: batch_size=0 must be at least 1"),
    ],
)
def test_what_cannot_be_is_refused_by_name(
    flags: list[str],
    said: str,
    words: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    command = [*words, *(f"--config.{flag}" for flag in flags), f"--workdir={tmp_path / 'run'}"]
    assert main(command) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_mesh_of_one_device_is_no_mesh(words: list[str], tmp_path: Path) -> None:
    """Bit for bit, so that a config of `rrope train` with a mesh serves as before."""
    few = "--config.eval.perplexity.fragments_per_document=2"
    found = []
    for name, flags in (("plain", []), ("mesh", ["--config.mesh.fsdp=-1"])):
        assert main([*words, few, *flags, f"--workdir={tmp_path / name}"]) == 0
        found.append(results_of(tmp_path / name))
    assert found[0] == found[1]
