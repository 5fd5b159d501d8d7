"""`rrope evaluate` and `rrope generate` over meshes and as several real processes."""

import json
import signal
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from rrope_jax.__main__ import main
from tests.closeness import without_seconds
from tests.jobs.processes import ROOT, Job, Launcher
from tests.jobs.tiny_checkpoint import write_checkpoint

CONFIG = ROOT / "configs" / "evaluate_smollm2.py"
RETRYABLE = 42
Start = Callable[..., Job]
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
def start(words: list[str], tmp_path: Path) -> Iterator[Start]:
    """Starts two processes of the job with two devices each, the second with flags of its own."""
    launcher = Launcher(tmp_path)

    def run(*flags: str, second: Sequence[str] = ()) -> Job:
        arguments = {
            index: ["rrope_jax", *words, *flags, *own] for index, own in enumerate(((), second))
        }
        return launcher.start(arguments, count=2, devices=2)

    yield run
    launcher.kill()


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


def started(start: Start, workdir: Path, *flags: str) -> Job:
    """A job in the middle of its units."""
    job = start(f"--workdir={workdir}", "--config.mesh.tensor=2", *flags)
    job.wait_until(lambda: len(units(workdir)) >= 5)
    return job


@pytest.mark.long
def test_a_lost_process_is_named_and_one_goes_on(
    words: list[str], start: Start, tmp_path: Path
) -> None:
    workdir = tmp_path / "run"
    job = started(start, workdir, "--config.mesh.seq=2")
    job.processes[1].kill()
    assert job.processes[0].wait(30) == RETRYABLE
    (reason,) = reasons(job)
    assert "lost process 1" in reason
    assert "the same command goes on" in reason
    assert "backend cpu, 4 devices" in job.said(0)
    assert_finished_by_one(words, workdir, tmp_path / "alone")


@pytest.mark.long
def test_told_to_stop_both_stop_after_a_batch(
    words: list[str], start: Start, tmp_path: Path
) -> None:
    workdir = tmp_path / "run"
    job = started(start, workdir, "--config.eval.batch_size=3")
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
def test_processes_that_differ_are_refused(start: Start, tmp_path: Path) -> None:
    job = start(f"--workdir={tmp_path / 'run'}", second=["--config.mesh.tensor=2"])
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
        found.append(without_seconds(results_of(tmp_path / name)))
    assert found[0] == found[1]
