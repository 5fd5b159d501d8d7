"""launch/tpu_vm.sh against a gcloud that runs its ssh commands in folders of this machine."""

import json
import os
import shlex
import shutil
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.launch.cloud import TRICKY, Cloud, job_of, wait_for
from tests.launch.machine import Machine

PLACE = ("--project=p", "--zone=z", "--tpu-type=v5p-16", "--name=run")

pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Finished:
    """A run on two machines of which the second is preempted once."""

    cloud: Cloud
    run: "subprocess.CompletedProcess[str]"


@pytest.fixture(scope="module")
def finished(cloud_of_module: Cloud) -> Finished:
    cloud = cloud_of_module
    cloud.add_worker()
    root = cloud.machine.root
    (root / ".gitignore").write_text("/runs/\n")
    (root / "configs").mkdir()
    (root / "configs" / "new one.py").touch()
    (root / "runs").mkdir()
    (root / "runs" / "big").touch()
    (cloud.folder / "worker1" / "order").write_text("42 0")
    run = cloud.run("tpu_vm.sh", *PLACE, "--capacity=spot", "--network=n", "job", *TRICKY)
    assert run.returncode == 0, run.stderr
    return Finished(cloud, run)


class TestRun:
    def test_every_step_in_order_and_nothing_left(self, finished: Finished) -> None:
        cloud, run = finished.cloud, finished.run
        assert cloud.verbs() == [
            *("create", "scp", "ssh", "install", "start", "follow", "status", "scp", "delete")
        ]
        assert not cloud.is_billed
        states = ("WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE")
        said = [line for line in run.stderr.splitlines() if line.endswith(states)]
        assert [line.split()[-1] for line in said] == list(states)
        # Without a share the results come back before the slice goes.
        assert (cloud.machine.root / "runs" / "run" / "job.json").exists()

    @pytest.mark.parametrize("worker", ["worker0", "worker1"])
    def test_arguments_reach_every_worker_unchanged(self, finished: Finished, worker: str) -> None:
        home = finished.cloud.folder / worker
        assert f"output of {worker}" in finished.run.stdout
        arguments, environment, folder = job_of(home)
        assert list(arguments) == TRICKY
        assert folder == str(home / "rrope_jax")
        assert environment["PATH"].startswith(f"{home}/rrope_jax/.venv/bin:")

    def test_what_is_copied(self, finished: Finished) -> None:
        copy = finished.cloud.folder / "worker0" / "rrope_jax"
        assert (copy / "configs" / "new one.py").exists()
        assert not (copy / "runs" / "big").exists()
        assert not (copy / ".git").exists()

    def test_preempted_inside_is_retried_there(self, finished: Finished) -> None:
        output = finished.run.stdout
        assert output.count("output of worker0") == 1
        assert output.count("output of worker1") == 2
        assert "running again in 0 s (1 of 10)" in output

    def test_gcloud_itself_accepts_every_call(self, finished: Finished, tmp_path: Path) -> None:
        gcloud = shutil.which("gcloud")
        if gcloud is None:
            pytest.skip("gcloud is not installed; its own parser is asked here")
        called = dict.fromkeys(_for_linter(words) for words in finished.cloud.calls())
        commands = [{"command_string": command} for command in called]
        (tmp_path / "commands.json").write_text(json.dumps(commands))
        # Only parses: no account, no project, nothing is sent.
        linted = subprocess.run(
            [gcloud, "meta", "lint-gcloud-commands", f"--commands-file={tmp_path}/commands.json"],
            env={**os.environ, "CLOUDSDK_CONFIG": str(tmp_path / "empty")},
            capture_output=True,
            text=True,
            check=True,
        )
        answers = json.loads(linted.stdout)
        assert len(answers) == len(commands)
        assert [a["error_message"] for a in answers if not a["success"]] == []

    def test_dry_run_prints_the_same_commands(self, finished: Finished, machine: Machine) -> None:
        cloud = Cloud.beside(machine)
        cloud.remove("gcloud")
        flags = ("--capacity=spot", "--network=n", "--dry-run")
        dry = cloud.run("tpu_vm.sh", *PLACE, *flags, "job", *TRICKY)
        assert dry.returncode == 0, dry.stderr
        assert not (machine.root / "runs").exists()
        script = f"set -e\ngcloud() {{ printf '%s\\0' gcloud \"$@\" END; }}\n{dry.stdout}"
        bash = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
        printed = [c.strip("\0").split("\0") for c in bash.stdout.split("\0END\0")[:-1]]
        # The real run also looks at states; its paths are those of another machine.
        calls = [["gcloud", *words] for words in finished.cloud.calls()]
        called = [w for w in calls if w[4] != "describe" and not w[-1].endswith("status")]
        assert [_without_paths(w) for w in printed] == [_without_paths(w) for w in called]


class TestVariants:
    def test_share_is_mounted_and_nothing_fetched(self, cloud: Cloud) -> None:
        run = cloud.run("tpu_vm.sh", *PLACE, "--shared=10.0.0.2:/vol one", "job")
        assert run.returncode == 0, run.stderr
        mounts = (cloud.folder / "sudo").read_text()
        runs = cloud.folder / "worker0" / "rrope_jax" / "runs"
        assert f"mount -t nfs -o hard 10.0.0.2:/vol one {runs}" in mounts
        assert cloud.verbs().count("scp") == 1

    def test_kept_slice_serves_again(self, cloud: Cloud) -> None:
        run = cloud.run("tpu_vm.sh", *PLACE, "--keep", "job")
        assert run.returncode == 0
        assert cloud.is_billed
        assert "gcloud compute tpus queued-resources delete run --force" in run.stderr
        shutil.rmtree(cloud.machine.root / "runs")
        assert cloud.run("tpu_vm.sh", *PLACE, "--keep", "job").returncode == 0
        assert cloud.verbs().count("create") == 1
        shutil.rmtree(cloud.machine.root / "runs")
        refused = cloud.run("tpu_vm.sh", *PLACE, "job")
        assert refused.returncode == 2
        assert "--name=run is there already (ACTIVE)" in refused.stderr
        assert cloud.is_billed  # what was there before is never deleted

    def test_results_of_this_name_are_there(self, cloud: Cloud) -> None:
        (cloud.machine.root / "runs" / "run").mkdir(parents=True)
        refused = cloud.run("tpu_vm.sh", *PLACE, "job")
        assert (refused.returncode, cloud.calls()) == (2, [])
        assert "runs/run exists" in refused.stderr

    @pytest.mark.parametrize(
        ("tpu", "version"),
        [
            ("v4-8", "tpu-ubuntu2204-base"),
            ("v5litepod-256", "v2-alpha-tpuv5-lite"),
            ("v5p-128", "v2-alpha-tpuv5"),
            ("v6e-256", "v2-alpha-tpuv6e"),
        ],
    )
    def test_software_of_a_type(self, cloud: Cloud, tpu: str, version: str) -> None:
        dry = cloud.run("tpu_vm.sh", *PLACE, f"--tpu-type={tpu}", "--dry-run", "job")
        assert f"--runtime-version={version}" in dry.stdout

    @pytest.mark.parametrize(
        "tpu", ["v5p-4", "v5p-100", "v5p-", "v4-127", "v5litepod-2", "v6e-12", "v6e-8x"]
    )
    def test_size_that_there_is_not(self, cloud_of_module: Cloud, tpu: str) -> None:
        dry = cloud_of_module.run("tpu_vm.sh", *PLACE, f"--tpu-type={tpu}", "--dry-run", "job")
        assert (dry.returncode, dry.stdout, dry.stderr.count("\n")) == (2, "", 1)
        assert f"--tpu-type={tpu}: the number is that of the " in dry.stderr

    def test_unknown_type(self, cloud: Cloud) -> None:
        dry = cloud.run("tpu_vm.sh", *PLACE, "--tpu-type=v9-8", "--dry-run", "job")
        assert dry.returncode == 2
        assert "--tpu-type=v9-8" in dry.stderr
        assert "--runtime-version" in dry.stderr


class TestFailure:
    """Whatever goes wrong: nothing is billed afterwards, or it is said how to delete it."""

    def test_request_is_refused(self, cloud: Cloud) -> None:
        cloud.arrange(refusal="ERROR: RESOURCE_EXHAUSTED: Quota limit has been exceeded.")
        run = cloud.run("tpu_vm.sh", *PLACE, "job")
        assert run.returncode == 1
        assert "RESOURCE_EXHAUSTED" in run.stderr
        assert cloud.verbs() == ["create", "delete"]  # its answer might have been lost
        assert "billed" not in run.stderr

    def test_gcloud_cannot_answer(self, cloud: Cloud) -> None:
        # It may be that a slice of this name is there, and another's.
        (cloud.folder / "there").touch()
        cloud.arrange(describe_failures="1")
        run = cloud.run("tpu_vm.sh", *PLACE, "job")
        assert run.returncode == 1
        assert "UNAVAILABLE" in run.stderr
        assert (cloud.verbs(), cloud.is_billed) == ([], True)

    @pytest.mark.parametrize("state", ["FAILED", "SUSPENDED"])
    def test_no_capacity(self, cloud: Cloud, state: str) -> None:
        cloud.arrange(states=f"WAITING_FOR_RESOURCES\n{state}")
        run = cloud.run("tpu_vm.sh", *PLACE, "job")
        assert run.returncode == 1
        assert f"run is {state}" in run.stderr
        assert "there is no slice for run" in run.stderr
        assert cloud.verbs() == ["create", "delete"]
        assert not cloud.is_billed

    def test_everything_fails_at_first(self, cloud: Cloud) -> None:
        cloud.arrange(scp_failures="2", delete_failures="2")
        run = cloud.run("tpu_vm.sh", *PLACE, "job")
        assert run.returncode == 0
        assert run.stderr.count("try 2 of 5 failed") == 2
        assert not cloud.is_billed

    def test_ssh_never_works(self, cloud: Cloud) -> None:
        cloud.arrange(ssh_failures="1000")
        run = cloud.run("tpu_vm.sh", *PLACE, "job")
        assert run.returncode == 1
        assert "copying failed" in run.stderr
        assert not cloud.is_billed

    def test_install_fails(self, cloud: Cloud) -> None:
        cloud.machine.network_down.touch()
        run = cloud.run("tpu_vm.sh", *PLACE, "job")
        assert run.returncode == 1
        assert "installing failed" in run.stderr
        assert not cloud.is_billed

    @pytest.mark.parametrize(("codes", "code"), [(("42", "1"), 1), (("134", "0"), 134)])
    def test_command_fails(self, cloud: Cloud, codes: tuple[str, str], code: int) -> None:
        for home, order in zip((cloud.folder / "worker0", cloud.add_worker()), codes, strict=True):
            (home / "order").write_text(order)
        run = cloud.run("tpu_vm.sh", *PLACE, "job", RROPE_RETRIES="0")
        assert run.returncode == code
        assert (cloud.machine.root / "runs" / "run" / "job.json").exists()
        assert not cloud.is_billed

    def test_connection_is_lost_while_following(self, cloud: Cloud) -> None:
        home = cloud.folder / "worker0"
        (home / "order").write_text("wait")
        with cloud.running("tpu_vm.sh", *PLACE, "job") as script:
            wait_for(home / "rrope_jax" / "runs" / "job.json")
            cloud.arrange(ssh_failures="2")
            os.kill(_job_process(home, "rrope_jax_job/log"), signal.SIGKILL)
            (home / "order").write_text("0")
            os.kill(_job_process(home), signal.SIGKILL)  # run_worker.sh starts it again: it is done
            output, errors = script.communicate(timeout=100)
        assert script.returncode == 0, errors
        assert "(1 of 10)" in output
        assert not cloud.is_billed

    @pytest.mark.parametrize(
        ("state", "code", "said"),
        [("SUSPENDED", 42, "run was preempted"), ("ACTIVE", 255, "run cannot be reached")],
    )
    def test_slice_is_gone(self, cloud: Cloud, state: str, code: int, said: str) -> None:
        home = cloud.folder / "worker0"
        (home / "order").write_text("wait")
        with cloud.running("tpu_vm.sh", *PLACE, "--shared=10.0.0.2:/vol", "job") as script:
            wait_for(home / "rrope_jax" / "runs" / "job.json")
            cloud.arrange(ssh_failures="1000", states=state)
            os.kill(_job_process(home, "run_worker.sh job"), signal.SIGTERM)
            _, errors = script.communicate(timeout=100)
        assert script.returncode == code
        assert said in errors
        assert not cloud.is_billed

    @pytest.mark.parametrize(("signal_", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
    def test_interrupted(self, cloud: Cloud, signal_: signal.Signals, code: int) -> None:
        home = cloud.folder / "worker0"
        (home / "order").write_text("wait")
        with cloud.running("tpu_vm.sh", *PLACE, "job") as script:
            wait_for(home / "rrope_jax" / "runs" / "job.json")
            script.send_signal(signal_)
            script.communicate(timeout=100)
        assert script.returncode == code
        assert (home / "rrope_jax_job" / "code").read_text() == "42\n"  # it was told, and saved
        assert (cloud.machine.root / "runs" / "run" / "job.json").exists()
        assert not cloud.is_billed

    def test_interrupted_in_the_queue(self, cloud: Cloud) -> None:
        cloud.arrange(states="WAITING_FOR_RESOURCES")
        with cloud.running("tpu_vm.sh", *PLACE, "job", RROPE_POLL="1") as script:
            wait_for(cloud.folder / "there")
            script.send_signal(signal.SIGINT)
            script.communicate(timeout=100)
        assert script.returncode == 130
        assert not cloud.is_billed

    def test_deleting_fails(self, cloud: Cloud) -> None:
        cloud.arrange(delete_failures="1000")
        run = cloud.run("tpu_vm.sh", *PLACE, "job")
        assert run.returncode == 1
        delete = "gcloud compute tpus queued-resources delete run --force --project=p --zone=z"
        assert delete in run.stderr

    def test_results_cannot_be_fetched(self, cloud: Cloud) -> None:
        home = cloud.folder / "worker0"
        (home / "order").write_text("wait")
        with cloud.running("tpu_vm.sh", *PLACE, "job") as script:
            wait_for(home / "rrope_jax" / "runs" / "job.json")
            cloud.arrange(scp_failures="1000")
            (home / "order").write_text("0")
            os.kill(_job_process(home), signal.SIGKILL)
            _, errors = script.communicate(timeout=100)
        assert script.returncode == 1
        assert cloud.is_billed  # the only copy of the results
        assert "tpu-vm scp run:rrope_jax/runs" in errors
        assert "queued-resources delete run --force" in errors


class TestUsage:
    def test_everything_missing_in_one_line(self, cloud: Cloud) -> None:
        run = cloud.run("tpu_vm.sh", "job")
        assert run.returncode == 2
        assert run.stderr.count("\n") == 1
        assert "RROPE_PROJECT, RROPE_ZONE, RROPE_TPU_TYPE" in run.stderr
        assert "--project=... --zone=... --tpu-type=..." in run.stderr
        assert cloud.calls() == []

    def test_no_gcloud(self, cloud: Cloud) -> None:
        cloud.remove("gcloud")
        run = cloud.run("tpu_vm.sh", *PLACE, "job")
        assert run.returncode == 2
        assert run.stderr.startswith("tpu_vm.sh: gcloud is missing")

    def test_no_git_clone(self, cloud: Cloud) -> None:
        shutil.rmtree(cloud.machine.root / ".git")
        run = cloud.run("tpu_vm.sh", *PLACE, "job")
        assert run.returncode == 1
        assert "no git clone" in run.stderr
        assert not cloud.is_billed


def _for_linter(words: list[str]) -> str:
    """A call as one string. What ssh runs is left out: the linter cannot split every quoting."""
    flags = [word.partition("=") for word in words if not word.startswith("--command=")]
    commands = ["--command=x"] if len(flags) < len(words) else []
    named = [f"{name}{eq}{shlex.quote(value) if eq else value}" for name, eq, value in flags]
    return " ".join(["gcloud", *named, *commands])


def _without_paths(words: list[str]) -> list[str]:
    return [Path(word).name if word.startswith("/") else word for word in words]


def _job_process(home: Path, command: str = "bin/job") -> int:
    """The process in a worker's home whose command line has the words, once it is there."""
    for _ in range(500):
        for process in Path("/proc").glob("[0-9]*"):
            try:
                words = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                place = os.readlink(process / "cwd")
            except OSError:
                continue
            # The script that waits for run_worker.sh has the same words in its -c.
            if command in words and place.startswith(str(home)) and " -c " not in words:
                return int(process.name)
        time.sleep(0.02)
    raise AssertionError(f"no process {command} in {home}")
