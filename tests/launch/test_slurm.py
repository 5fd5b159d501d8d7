"""launch/slurm.sbatch: what it submits, and how a job of it runs and ends."""

import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from tests.launch.cloud import TRICKY, Cloud, job_of, wait_for, write_program

SETTINGS = ("--slurm-partition=gpu", "--name=run")

# Two tasks side by side, each in a home of its own. Ends with the largest exit code and, like srun
# (seen with SLURM 22.05), answers SIGTERM by killing them.
SRUN = """#!/bin/bash
worst=0
while [[ $1 == --* ]]; do shift; done
for task in 0 1; do
  home={folder}/worker$task
  (cd "$home/rrope_jax" && HOME=$home SLURM_PROCID=$task exec "$@") &
  tasks+=($!)
done
echo "${{tasks[@]}}" >{folder}/tasks
trap 'kill -KILL "${{tasks[@]}}"' TERM
for task in "${{tasks[@]}}"; do
  wait "$task"; code=$?
  ((code > worst)) && worst=$code
done
exit "$worst"
"""
# Signals the tasks.
SCANCEL = """#!/bin/bash
[[ $* == "--signal=TERM 7" ]] && kill -TERM $(<{folder}/tasks)
"""


@pytest.fixture
def cluster(cloud: Cloud) -> Cloud:
    """A cluster whose sbatch, srun and scontrol are stubs, with two tasks."""
    cloud.add_worker()
    for home in cloud.folder.glob("worker*"):
        shutil.copytree(cloud.machine.root / "launch", home / "rrope_jax" / "launch")
    cloud.add_recorder("sbatch")
    cloud.add_recorder("scontrol")
    write_program(cloud.machine.folder / "bin" / "srun", SRUN.format(folder=cloud.folder))
    write_program(cloud.machine.folder / "bin" / "scancel", SCANCEL.format(folder=cloud.folder))
    venv = cloud.machine.root / ".venv" / "bin"
    venv.mkdir(parents=True)
    write_program(venv / "rrope", "#!/bin/sh\n")
    return cloud


def start(cluster: Cloud, *words: str, **more: str) -> "subprocess.Popen[str]":
    """The batch script as SLURM starts it: a copy elsewhere, in the folder of the job."""
    copy = cluster.folder / "slurm_script"
    shutil.copy(cluster.machine.root / "launch" / "slurm.sbatch", copy)
    return subprocess.Popen(
        ["bash", str(copy), *words],
        env=cluster.environment(SLURM_JOB_ID="7", **more),
        cwd=cluster.machine.root,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(job: "subprocess.Popen[str]") -> tuple[int, str]:
    try:
        _, errors = job.communicate(timeout=30)
    finally:
        job.kill()
    return job.returncode, errors


def order(cluster: Cloud, *codes: str) -> None:
    for task, text in enumerate(codes):
        (cluster.folder / f"worker{task}" / "order").write_text(text)


class TestSubmission:
    def test_call(self, cluster: Cloud) -> None:
        run = cluster.run("slurm.sbatch", *SETTINGS, "--slurm-nodes=2", "job", *TRICKY)
        assert run.returncode == 0, run.stderr
        (call,) = cluster.calls()
        root = cluster.machine.root
        at = call.index(str(root / "launch" / "slurm.sbatch"))
        assert set(call[1:at]) == {
            *(f"--chdir={root}", "--job-name=run", "--partition=gpu", "--nodes=2"),
            *("--gpus-per-node=8", "--ntasks-per-node=8", "--time=24:00:00"),
        }
        assert call[at + 1 :] == ["job", *TRICKY]

    def test_account(self, cluster: Cloud) -> None:
        cluster.run("slurm.sbatch", *SETTINGS, "--slurm-account=a", "job")
        assert "--account=a" in cluster.calls()[0]

    def test_dry_run(self, cluster: Cloud) -> None:
        dry = cluster.run("slurm.sbatch", *SETTINGS, "--dry-run", "job", *TRICKY)
        assert (dry.returncode, cluster.calls()) == (0, [])
        path = str(cluster.machine.folder / "bin")
        subprocess.run(["bash", "-c", dry.stdout], env={"PATH": path}, check=True)
        cluster.run("slurm.sbatch", *SETTINGS, "job", *TRICKY)
        printed, called = cluster.calls()
        assert printed == called

    def test_not_installed(self, cluster: Cloud) -> None:
        shutil.rmtree(cluster.machine.root / ".venv")
        run = cluster.run("slurm.sbatch", *SETTINGS, "job")
        assert run.returncode == 2
        assert "bash launch/install.sh gpu" in run.stderr
        assert cluster.calls() == []

    def test_no_slurm(self, cluster: Cloud) -> None:
        cluster.remove("sbatch")
        run = cluster.run("slurm.sbatch", *SETTINGS, "job")
        assert run.returncode == 2
        assert "sbatch is missing" in run.stderr

    def test_partition_is_missing(self, cluster: Cloud) -> None:
        run = cluster.run("slurm.sbatch", "job")
        assert (run.returncode, run.stderr.count("\n")) == (2, 1)
        assert "not set: RROPE_SLURM_PARTITION" in run.stderr


@pytest.mark.slow
class TestJob:
    def test_arguments_reach_every_task_unchanged(self, cluster: Cloud) -> None:
        code, errors = finish(start(cluster, "job", *TRICKY))
        assert code == 0, errors
        for task in ("0", "1"):
            arguments, environment, _ = job_of(cluster.folder / f"worker{task}")
            assert list(arguments) == TRICKY
            assert environment["SLURM_PROCID"] == task

    def test_lost_task_starts_all_again(self, cluster: Cloud) -> None:
        order(cluster, "42", "137")
        code, errors = finish(start(cluster, "job"))
        assert code == 0
        assert errors.count("running again") == 1  # not each task by itself
        assert all(
            (cluster.folder / f"worker{task}" / "order").read_text() == "" for task in (0, 1)
        )

    def test_error_ends_the_job(self, cluster: Cloud) -> None:
        order(cluster, "1", "1")
        code, _ = finish(start(cluster, "job"))
        assert (code, cluster.calls()) == (1, [])

    def test_retries_are_bounded(self, cluster: Cloud) -> None:
        order(cluster, "42 42 42", "42 42 42")
        code, _ = finish(start(cluster, "job", RROPE_RETRIES="1"))
        assert (code, cluster.calls()) == (42, [])

    def test_time_limit_saves_and_queues_again(self, cluster: Cloud) -> None:
        order(cluster, "wait", "wait")
        job = start(cluster, "job")
        for task in (0, 1):
            wait_for(cluster.folder / f"worker{task}" / "rrope_jax" / "runs" / "job.json")
        os.kill(job.pid, signal.SIGTERM)  # --signal=B: to the batch script alone
        code, errors = finish(job)
        assert (code, cluster.calls()) == (42, [["scontrol", "requeue", "7"]])
        assert "running again" not in errors

    def test_done_before_the_time_limit_is_not_queued_again(self, cluster: Cloud) -> None:
        saved = "trap 'exit 0' TERM; touch ready; while :; do sleep 0.1; done"
        job = start(cluster, "bash", "-c", saved)
        for task in (0, 1):
            wait_for(cluster.folder / f"worker{task}" / "rrope_jax" / "ready")
        os.kill(job.pid, signal.SIGTERM)
        code, _ = finish(job)
        assert (code, cluster.calls()) == (0, [])


class TestBadJob:
    def test_not_submitted_from_the_clone(self, cluster: Cloud, tmp_path: Path) -> None:
        copy = shutil.copy(cluster.machine.root / "launch" / "slurm.sbatch", tmp_path / "script")
        job = subprocess.run(
            ["bash", copy, "job"],
            env=cluster.environment(SLURM_JOB_ID="7"),
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )
        assert (job.returncode, job.stderr.count("\n")) == (2, 1)
        assert "submit from inside it" in job.stderr

    def test_no_command(self, cluster: Cloud) -> None:
        code, errors = finish(start(cluster))
        assert (code, errors.count("\n")) == (2, 1)
        assert "no command" in errors
