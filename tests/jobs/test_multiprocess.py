"""`rrope train` as several real processes: the same numbers, and one end for all."""

import os
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from rrope_jax.__main__ import main
from tests.jobs.processes import PATIENCE, ROOT, Job, Launcher, environment_of
from tests.jobs.training_run import count_lines, read_records, saved_steps, write_text

CONFIG = ROOT / "tests" / "jobs" / "train_tiny.py"
STEPS = 400
RETRYABLE = 42
# JAX aborts when process 0 is gone, and may be quicker than we are
GONE = {RETRYABLE, -signal.SIGABRT}
pytestmark = pytest.mark.heavy


Start = Callable[..., Job]


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("text")
    write_text(folder)
    return folder


@pytest.fixture(scope="module")
def words(text: Path) -> list[str]:
    """The job: small, with everything random that a run can have."""
    return [
        "train",
        f"--config={CONFIG}",
        f"--config.data.source={text}",
        "--config.train.learning_rate=2e-3",
        f"--config.train.steps={STEPS}",
        "--config.train.batch_size=4",
        "--config.checkpoint.every_steps=10",
    ]


@pytest.fixture(scope="module")
def start(words: list[str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Start]:
    """Starts processes of the job."""
    launcher = Launcher(tmp_path_factory.mktemp("logs"))

    def run(
        count: int,
        workdir: Path | list[Path],
        *overrides: str,
        devices: int = 1,
        own: dict[int, list[str]] | None = None,
        absent: int | None = None,
        folders: list[Path] | None = None,
        module: str = "rrope_jax",
        **more: str,
    ) -> Job:
        workdirs = workdir if isinstance(workdir, list) else [workdir] * count
        shared, more_of = [module, *words, *overrides], own or {}
        arguments = {
            index: [*shared, f"--workdir={workdirs[index]}", *more_of.get(index, [])]
            for index in range(count)
            if index != absent
        }
        return launcher.start(arguments, count=count, devices=devices, folders=folders, **more)

    yield run
    launcher.kill()


@pytest.fixture(scope="module")
def unbroken(words: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The job as one process, from beginning to end."""
    workdir = tmp_path_factory.mktemp("runs") / "unbroken"
    assert main([*words, f"--workdir={workdir}"]) == 0
    return workdir


def _assert_same(workdir: Path, unbroken: Path) -> None:
    """Every step is there once, with the losses of one process."""
    found, wanted = read_records(workdir), read_records(unbroken)
    assert [r["step"] for r in found] == [r["step"] for r in wanted]
    for name in ("loss", "gradient_norm", "eval_loss"):
        one, other = ([r[name] for r in records if name in r] for records in (found, wanted))
        np.testing.assert_allclose(one, other, rtol=1e-5)
    assert [r["targets"] for r in found] == [r["targets"] for r in wanted]


def _reasons(job: Job) -> list[str]:
    """What the processes say about their end."""
    said = [line for log in job.logs for line in log.read_text().splitlines()]
    return [line for line in said if line.startswith("rrope train: ")]


def test_stopped_together_and_gone_on_with_by_four_and_by_one(
    start: Start, unbroken: Path, words: list[str], tmp_path: Path
) -> None:
    workdir = tmp_path / "run"
    job = start(2, workdir)
    job.wait_until(lambda: count_lines(workdir) >= 15)
    job.processes[1].send_signal(signal.SIGTERM)
    assert job.wait() == [RETRYABLE, RETRYABLE]
    stopped = count_lines(workdir)
    assert saved_steps(workdir)[-1] == stopped < STEPS
    (reason,) = _reasons(job)
    assert f"told to stop; step {stopped} is saved, the same command goes on" in reason
    assert "parameters" in job.said(0)
    assert job.said(1) == ""

    with _launch(4, tmp_path, *words[2:], f"--workdir={workdir}", "--config.mesh.tensor=2") as four:
        while count_lines(workdir) < stopped + 15:
            assert four.poll() is None, four.communicate()
            time.sleep(0.01)
        four.send_signal(signal.SIGTERM)
        said, _ = four.communicate(timeout=PATIENCE)
    assert four.returncode == RETRYABLE, said
    assert "backend cpu, 4 devices" in said
    assert f"going on from step {stopped}" in said
    assert all(line.startswith("[0] ") for line in said.splitlines())

    assert main([*words, f"--workdir={workdir}"]) == 0
    _assert_same(workdir, unbroken)


@pytest.mark.long
class TestTorus:
    """Processes whose devices lie as the chips of a slice do: their rows are not consecutive."""

    STEPS = 40
    SIZES = (f"--config.train.steps={STEPS}", "--config.train.batch_size=8")

    def test_losses_are_those_of_one_process_which_goes_on(
        self, start: Start, words: list[str], tmp_path: Path
    ) -> None:
        alone = tmp_path / "alone"
        assert main([*words, *self.SIZES, f"--workdir={alone}"]) == 0

        workdir = tmp_path / "run"
        job = start(4, workdir, *self.SIZES, devices=2, module="tests.jobs.torus")
        job.wait_until(lambda: count_lines(workdir) >= 12)
        job.processes[2].send_signal(signal.SIGTERM)
        assert job.wait() == [RETRYABLE] * 4, [job.said(i) for i in range(4)]
        stopped = count_lines(workdir)
        assert saved_steps(workdir)[-1] == stopped < self.STEPS

        assert main([*words, *self.SIZES, f"--workdir={workdir}"]) == 0
        _assert_same(workdir, alone)


def _launch(count: int, folder: Path, *flags: str) -> "subprocess.Popen[str]":
    """By the script that users have."""
    rrope = folder / "rrope"  # which is not on PATH where the package is not installed
    rrope.write_text(f'#!/bin/sh\nexec {sys.executable} -m rrope_jax "$@"\n')
    rrope.chmod(0o755)
    script = ROOT / "launch" / "local_multiprocess.sh"
    return subprocess.Popen(
        ["bash", str(script), str(count), str(CONFIG), *flags],
        cwd=ROOT,
        env=environment_of(PATH=f"{folder}:{os.environ['PATH']}"),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


class TestKilled:
    def test_in_a_step_and_during_a_save(
        self, start: Start, unbroken: Path, words: list[str], tmp_path: Path
    ) -> None:
        """Two processes with two devices each: each lost once; one alone goes on to the end."""
        workdir = tmp_path / "run"
        mesh = "--config.mesh.tensor=2"
        job = start(2, workdir, mesh, devices=2)
        # steps are logged while the checkpoint of an earlier one is still being written
        job.wait_until(lambda: count_lines(workdir) >= 15 and saved_steps(workdir) != [])
        job.processes[1].kill()
        assert job.processes[0].wait(30) == RETRYABLE
        (reason,) = _reasons(job)
        assert "lost process 1" in reason
        assert "the same command goes on" in reason
        before = saved_steps(workdir)[-1]

        job = start(2, workdir, mesh, devices=2)
        _freeze_in_a_save(job, workdir)
        assert saved_steps(workdir)[-1] >= before
        saved = saved_steps(workdir)
        job.processes[0].kill()
        assert job.processes[1].wait(30) in GONE
        assert all("lost process 0" in line for line in _reasons(job))
        assert saved_steps(workdir) == saved

        assert main([*words, f"--workdir={workdir}"]) == 0
        _assert_same(workdir, unbroken)
        assert list((workdir / "checkpoints").glob("*tmp*")) == []


def _freeze_in_a_save(job: Job, workdir: Path) -> None:
    """Stops process 0 while a checkpoint is half written."""

    def half_written() -> bool:
        return any((workdir / "checkpoints").glob("*tmp*"))

    while True:
        job.wait_until(half_written)
        job.processes[0].send_signal(signal.SIGSTOP)
        time.sleep(0.2)
        if half_written():
            return
        job.processes[0].send_signal(signal.SIGCONT)


@pytest.mark.long
@pytest.mark.skipif(not hasattr(resource, "prlimit"), reason="needs Linux")
def test_disk_that_is_full_for_one_of_them(
    start: Start, unbroken: Path, words: list[str], tmp_path: Path
) -> None:
    """A limit on its files stands for the disk. The others do not wait for a time-out."""
    workdir = tmp_path / "run"
    job = start(2, workdir, "--config.mesh.fsdp=2")
    job.wait_until(lambda: saved_steps(workdir) != [])
    full = job.processes[1].pid
    resource.prlimit(full, resource.RLIMIT_FSIZE, (1000, 1000))
    first, second = job.wait(60)
    assert first == 1
    assert second in {1, -signal.SIGABRT}  # as above: JAX may be quicker
    reason = _reasons(job)[0]  # of process 0
    assert re.search(
        r"process 1: checkpoint .*/checkpoints/\d+ cannot be written: File too large", reason
    )
    kept = saved_steps(workdir)
    assert kept != []
    assert f"step {kept[-1]} " in reason

    assert main([*words, f"--workdir={workdir}"]) == 0
    _assert_same(workdir, unbroken)


class TestRefused:
    """Before the first step; nothing is trained and no checkpoint made."""

    @pytest.mark.long
    def test_process_that_never_joins(self, start: Start, tmp_path: Path) -> None:
        job = start(3, tmp_path / "run", absent=2, RROPE_JOIN_TIMEOUT="15")
        assert job.wait() == [RETRYABLE, RETRYABLE]
        reasons = _reasons(job)
        assert len(reasons) == 2
        assert all("process 2 of 3 did not join within 15 s" in line for line in reasons)
        assert not (tmp_path / "run").exists()

    def test_configs_that_differ(self, start: Start, tmp_path: Path) -> None:
        job = start(2, tmp_path / "run", own={1: ["--config.checkpoint.keep=3"]})
        assert job.wait() == [2, 2]
        assert "config.checkpoint.keep is 2 in process 0 and 3 in process 1" in _reasons(job)[0]
        assert not (tmp_path / "run").exists()

    def test_texts_that_differ(self, start: Start, tmp_path: Path) -> None:
        """The same words name another text on each machine: one letter, in one document."""
        machines = [tmp_path / "one", tmp_path / "other"]
        for machine in machines:
            (machine / "text").mkdir(parents=True)
            write_text(machine / "text")
        document = machines[1] / "text" / "b.txt"
        document.write_text(document.read_text().replace("green", "grain", 1))
        job = start(2, tmp_path / "run", "--config.data.source=text", folders=machines)
        assert job.wait() == [2, 2]
        assert "config.data: the text" in _reasons(job)[0]
        assert "with the same config, flags and files" in _reasons(job)[0]
        assert not (tmp_path / "run").exists()

    def test_folder_that_is_not_shared(self, start: Start, tmp_path: Path) -> None:
        job = start(2, [tmp_path / "one", tmp_path / "other"])
        assert job.wait() == [2, 2]
        assert f"--workdir={tmp_path / 'one'} is another folder" in _reasons(job)[0]
        assert not (tmp_path / "one" / "metrics.jsonl").exists()
        assert not (tmp_path / "other").exists()
