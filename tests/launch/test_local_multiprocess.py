"""launch/local_multiprocess.sh: what its processes get, and how they end together."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.launch.cloud import wait_for
from tests.launch.machine import ROOT

SCRIPT = ROOT / "launch" / "local_multiprocess.sh"

# Process i ends with the i-th exit code, below 0 by that signal; "wait" is until it is told to.
WORKER = """
import os, pathlib, signal, sys, time
code = sys.argv[1:][int(os.environ["JAX_PROCESS_ID"])]
if code == "wait":
    def stop(number, frame):
        print("told", signal.Signals(number).name)
        sys.exit(42)
    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    pathlib.Path("ready" + os.environ["JAX_PROCESS_ID"]).touch()
    time.sleep(60)
elif int(code) < 0:
    os.kill(os.getpid(), -int(code))
sys.exit(int(code))
"""


def words(*codes: str) -> list[str]:
    return ["bash", str(SCRIPT), str(len(codes)), sys.executable, "-c", WORKER, *codes]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("codes", "code"),
    [
        ("0 0 0", 0),
        ("0 1", 1),
        ("42 2", 2),
        ("42 42", 42),
        ("-9 42", 42),
        ("134 1", 1),
    ],
)
def test_exit_code(codes: str, code: int) -> None:
    assert subprocess.run(words(*codes.split()), capture_output=True).returncode == code


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 42), (signal.SIGINT, 130)])
def test_signals_reach_all(number: signal.Signals, code: int, tmp_path: Path) -> None:
    with subprocess.Popen(
        words("wait", "wait"), stdout=subprocess.PIPE, text=True, cwd=tmp_path
    ) as script:
        for index in (0, 1):
            wait_for(tmp_path / f"ready{index}")
        script.send_signal(number)
        said, _ = script.communicate(timeout=60)
    assert sorted(said.splitlines()) == [f"[{i}] told {number.name}" for i in (0, 1)]
    assert script.returncode == code


@pytest.mark.slow
def test_environment_and_output(tmp_path: Path) -> None:
    script = shutil.copy(SCRIPT, tmp_path)  # a clone without an environment, which would come first
    rrope = tmp_path / "rrope"
    rrope.write_text('#!/bin/sh\necho "$*"; env; printf "no line end" >&2\n')
    rrope.chmod(0o755)
    done = subprocess.run(
        ["bash", script, "2", "configs/a b.py", "--workdir=runs/x y"],
        env={"PATH": f"{tmp_path}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
    for index in (0, 1):
        own = [x[4:] for x in done.stdout.splitlines() if x.startswith(f"[{index}] ")]
        assert own[0] == "train --config=configs/a b.py --workdir=runs/x y"
        assert own[-1] == "no line end"
        said = dict(line.split("=", 1) for line in own[1:-1] if "=" in line)
        assert said["JAX_NUM_PROCESSES"] == "2"
        assert said["JAX_PROCESS_ID"] == str(index)
        assert said["JAX_COORDINATOR_ADDRESS"].startswith("127.0.0.1:")
        assert said["JAX_PLATFORMS"] == "cpu"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "N= must be"),
        (["0", "x.py"], "N=0 must be"),
        (["configs/x.py"], "N=configs/x.py must be"),
        (["2"], "no CONFIG"),
        (["2", "absent_command"], "absent_command is not here"),
    ],
)
def test_bad_usage(arguments: list[str], message: str) -> None:
    done = subprocess.run(["bash", str(SCRIPT), *arguments], capture_output=True, text=True)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert message in done.stderr
