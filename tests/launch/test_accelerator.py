"""launch/accelerator.sh: which Python, which packages, and what it hands on."""

import subprocess
from pathlib import Path

import pytest

from tests.launch.cloud import write_program
from tests.launch.machine import Machine


@pytest.fixture(autouse=True)
def python(machine: Machine) -> None:
    machine.add_python("python3", "3.12")
    write_program(machine.folder / "bin" / "nvidia-smi", "#!/bin/bash\necho 'No devices found'\n")


@pytest.fixture
def wheels(machine: Machine) -> Path:
    folder = machine.folder / "some wheels"
    folder.mkdir()
    return folder


def _run(machine: Machine, *words: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    return machine.run("launch/accelerator.sh", *words, **environment)


def _call(machine: Machine) -> str:
    """Of the module, which comes last."""
    *_, last = machine.calls()
    return last


def test_hands_platform_folder_and_flags_on(machine: Machine) -> None:
    run = _run(machine, "tpu", "out", "--minutes=4", "--parts=device")
    assert run.returncode == 0, run.stderr
    assert _call(machine) == (
        f"python -m tests.accelerator tpu {machine.folder}/out --minutes=4 --parts=device"
    )


def test_pinned_releases_from_the_network(machine: Machine) -> None:
    assert _run(machine, "gpu").returncode == 0
    package, peers = (call for call in machine.calls() if " -m pip install " in call)
    assert package.endswith(f"--editable {machine.root}[gpu,dev]")
    assert peers.endswith("torch transformers")
    assert _run(machine, "gpu").returncode == 0
    assert machine.installs() == 0
    assert _run(machine, "tpu").returncode == 0
    (package,) = (call for call in machine.calls() if " -m pip install " in call)
    assert package.endswith(f"--editable {machine.root}[tpu,dev]")


@pytest.mark.parametrize("by", ["flag", "variable"])
def test_wheels_ask_no_network(machine: Machine, wheels: Path, by: str) -> None:
    words = [f"--wheels={wheels}"] if by == "flag" else []
    environment = {} if by == "flag" else {"RROPE_WHEELS": str(wheels)}
    assert _run(machine, "gpu", *words, **environment).returncode == 0
    installs = [call for call in machine.calls() if " -m pip install " in call]
    assert len(installs) == 3
    for call in installs:
        assert f"--no-index --find-links {wheels}" in call
    assert "jax[cuda13]>=0.10.2" in installs[0]
    assert "flax>=" in installs[0]
    assert _run(machine, "gpu", *words, **environment).returncode == 0
    assert machine.installs() == 0


def test_system_packages_with_wheels_before_them(machine: Machine, wheels: Path) -> None:
    """No environment is made, and nothing of the Python is changed."""
    (wheels / "flax-1-py3-none-any.whl").touch()
    _make_importable(machine)
    words = ("gpu", "--system", f"--wheels={wheels}")
    run = _run(machine, *words)
    assert run.returncode == 0, run.stderr
    calls = machine.calls()
    assert not any(" -m venv " in call for call in calls)
    (install,) = [call for call in calls if " -m pip install " in call]
    packages = machine.root / "runs" / "accelerator_packages"
    assert f"--no-index --no-deps --target {packages} {wheels}/flax-1" in install
    assert _run(machine, *words).returncode == 0
    assert machine.installs() == 0


def test_system_packages_alone(machine: Machine) -> None:
    """Of a Python that could not make environments."""
    machine.add_python("python3", "3.12", venv=False)
    _make_importable(machine)
    run = _run(machine, "cpu", "--system")
    assert run.returncode == 0, run.stderr
    assert _call(machine).startswith("python3 -m tests.accelerator cpu ")
    assert machine.installs() == 0


def test_a_system_that_lacks_something(machine: Machine) -> None:
    _make_importable(machine, "import a_package_that_nobody_has")
    run = _run(machine, "cpu", "--system")
    assert (run.returncode, run.stderr.count("\n")) == (2, 1)
    assert "No module named 'a_package_that_nobody_has'; install that, or bring it" in run.stderr


def test_a_system_too_old(machine: Machine) -> None:
    machine.add_python("python3", "3.10")
    run = _run(machine, "cpu", "--system")
    assert (run.returncode, run.stderr.count("\n")) == (2, 1)
    assert "--system: python3 is no Python 3.11, 3.12 or 3.13" in run.stderr


def _make_importable(machine: Machine, content: str = "") -> None:
    """Puts a package into the clone that stands for ours."""
    folder = machine.root / "rrope_jax" / "jobs"
    folder.mkdir(parents=True)
    (folder / "posgen.py").write_text(content)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "there is no NVIDIA GPU here; give tpu or cpu"),
        (("gpu", "one", "two"), "'two' is one word too many"),
        (("cpu", "--wheels=/absent"), "--wheels=/absent is no folder"),
    ],
    ids=str,
)
def test_refusals(machine: Machine, words: tuple[str, ...], message: str) -> None:
    run = _run(machine, *words)
    assert (run.returncode, run.stderr.count("\n")) == (2, 1)
    assert message in run.stderr
    assert not (machine.root / ".venv-accelerator").exists()


def test_a_gpu_is_found(machine: Machine) -> None:
    says = 'case "$1" in -L) echo "GPU 0: H100" ;; *) echo 580.1 ;; esac'
    write_program(machine.folder / "bin" / "nvidia-smi", f"#!/bin/bash\n{says}\n")
    assert _run(machine).returncode == 0
    assert _call(machine) == f"python -m tests.accelerator gpu {machine.root}/runs/accelerator"
