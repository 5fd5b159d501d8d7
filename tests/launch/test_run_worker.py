"""launch/run_worker.sh: what it runs again, how often, and what it does when told to stop."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from rrope_jax.planning.chips import CHIPS, GPU_MEMORY_SHARE
from tests.launch.cloud import wait_for
from tests.launch.machine import ROOT

SCRIPT = ROOT / "launch" / "run_worker.sh"
FAST = {"PATH": os.environ["PATH"], "RROPE_BACKOFF": "0"}

# Ends with the next code of a list, once each; below 0 by that signal.
STEPS = """
import os, pathlib, sys
left = pathlib.Path(sys.argv[1])
code, *rest = map(int, left.read_text().split())
left.write_text(" ".join(map(str, rest)))
sys.exit(code) if code >= 0 else os.kill(os.getpid(), -code)
"""


def run(*words: str, **more: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        ["bash", str(SCRIPT), *words], env={**FAST, **more}, capture_output=True, text=True
    )


def run_steps(folder: Path, *codes: int, **more: str) -> tuple[int, int]:
    """The exit code, and how often the command ran."""
    left = folder / "left"
    left.write_text(" ".join(map(str, codes)))
    done = run(sys.executable, "-c", STEPS, str(left), **more)
    return done.returncode, len(codes) - len(left.read_text().split())


@pytest.mark.parametrize("code", [0, 1, 2, 41, 127])
def test_not_run_again(tmp_path: Path, code: int) -> None:
    assert run_steps(tmp_path, code, 0) == (code, 1)


@pytest.mark.parametrize("code", [42, -signal.SIGKILL, -signal.SIGTERM, -signal.SIGABRT, 134])
def test_run_again_until_done(tmp_path: Path, code: int) -> None:
    assert run_steps(tmp_path, code, code, 0) == (0, 3)


def test_interrupted_command_is_not_run_again(tmp_path: Path) -> None:
    assert run_steps(tmp_path, 130, 0) == (130, 1)


def test_an_error_after_a_preemption_ends_it(tmp_path: Path) -> None:
    assert run_steps(tmp_path, 42, 1, 0) == (1, 2)


@pytest.mark.parametrize("retries", [0, 2])
def test_bound(tmp_path: Path, retries: int) -> None:
    codes = [42] * 9
    assert run_steps(tmp_path, *codes, RROPE_RETRIES=str(retries)) == (42, retries + 1)


@pytest.mark.parametrize(("first", "second"), [("4", "8"), ("180", "300")])
def test_pauses_double_up_to_five_minutes(tmp_path: Path, first: str, second: str) -> None:
    sleep = tmp_path / "sleep"
    sleep.write_text("#!/bin/sh\n")
    sleep.chmod(0o755)
    environment = {"PATH": f"{tmp_path}:{FAST['PATH']}", "RROPE_BACKOFF": first}
    words = ["bash", str(SCRIPT), "sh", "-c", "exit 42"]
    with subprocess.Popen(words, env=environment, stderr=subprocess.PIPE, text=True) as script:
        assert script.stderr is not None
        assert f"running again in {first} s" in script.stderr.readline()
        assert f"running again in {second} s" in script.stderr.readline()
        script.terminate()


@pytest.mark.parametrize("stop", [signal.SIGTERM, signal.SIGINT])
def test_told_to_stop_passes_it_on_and_waits(tmp_path: Path, stop: signal.Signals) -> None:
    saving = (
        "import pathlib, signal, sys, time\n"
        "def save(number, frame):\n"
        "    time.sleep(0.2)\n"
        "    pathlib.Path('saved').write_text(str(int(number)))\n"
        "    sys.exit(42)\n"
        f"signal.signal({int(stop)}, save)\n"
        "pathlib.Path('ready').touch()\n"
        "time.sleep(30)\n"
    )
    words = ["bash", str(SCRIPT), sys.executable, "-c", saving]
    with subprocess.Popen(words, env=FAST, cwd=tmp_path) as script:
        wait_for(tmp_path / "ready")
        script.send_signal(stop)
        assert script.wait(timeout=20) == 42  # the command's own code, and no other try
    assert (tmp_path / "saved").read_text() == str(int(stop))


def test_takes_its_own_place_without_retries(tmp_path: Path) -> None:
    # Where every process of a job gets a signal (SLURM), none may get it twice.
    words = ["bash", str(SCRIPT), "sh", "-c", "echo $$"]
    with subprocess.Popen(
        words, env={**FAST, "RROPE_RETRIES": "0"}, stdout=subprocess.PIPE, text=True
    ) as script:
        assert script.stdout is not None
        assert int(script.stdout.read()) == script.pid


def test_told_to_stop_in_a_pause(tmp_path: Path) -> None:
    words = ["bash", str(SCRIPT), "sh", "-c", "touch ran; exit 42"]
    with subprocess.Popen(
        words, env={**FAST, "RROPE_BACKOFF": "30"}, cwd=tmp_path, stderr=subprocess.PIPE, text=True
    ) as script:
        assert script.stderr is not None
        assert "running again in 30 s" in script.stderr.readline()
        script.send_signal(signal.SIGTERM)
        assert script.wait(timeout=20) == 42


def test_environment(tmp_path: Path) -> None:
    done = run("env")
    said = dict(line.split("=", 1) for line in done.stdout.splitlines() if "=" in line)
    assert said["PATH"].startswith(f"{ROOT}/.venv/bin:")
    assert said["PYTHONUNBUFFERED"] == "1"
    # what plans for GPUs count on
    assert float(said["XLA_PYTHON_CLIENT_MEM_FRACTION"]) == GPU_MEMORY_SHARE
    for chip in (chip for chip in CHIPS.values() if chip.gpu is not None):
        assert chip.memory == int(GPU_MEMORY_SHARE * chip.gpu.memory)
    mine = run("env", XLA_PYTHON_CLIENT_MEM_FRACTION="0.5", JAX_PROCESS_ID="3")
    assert "XLA_PYTHON_CLIENT_MEM_FRACTION=0.5\n" in mine.stdout
    assert "JAX_PROCESS_ID=3\n" in mine.stdout


@pytest.mark.parametrize("name", ["RROPE_RETRIES", "RROPE_BACKOFF"])
def test_setting_that_is_no_number(name: str) -> None:
    for value in ("many", "-1", "08"):
        done = run("true", **{name: value})
        assert (done.returncode, done.stderr.count("\n")) == (2, 1)
        assert f"{name}={value}" in done.stderr


def test_no_command() -> None:
    done = run()
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "no COMMAND" in done.stderr
