"""The quickstart on machines with a GPU: which extra it installs, and when the CPU has to do."""

import subprocess
from pathlib import Path

import pytest

from tests.launch.cloud import write_program
from tests.launch.machine import ROOT, Machine

DRIVER = "580.65.06"


@pytest.fixture(autouse=True)
def python(machine: Machine) -> None:
    machine.add_python("python3", "3.11")


def _add_gpu(machine: Machine, driver: str = DRIVER, listed: str = "GPU 0: NVIDIA H100") -> None:
    """Its tool, as it answers the two questions."""
    says = f'case "$1" in -L) echo "{listed}" ;; *) printf "{driver}\\n{driver}\\n" ;; esac'
    write_program(machine.folder / "bin" / "nvidia-smi", f"#!/bin/bash\n{says}\n")


def _quickstart(machine: Machine, **environment: str) -> "subprocess.CompletedProcess[str]":
    return machine.run("launch/quickstart.sh", **{"RROPE_DEVICE": "", **environment})


def _installed(machine: Machine) -> list[str]:
    """What was asked of pip."""
    calls = [call for call in machine.calls() if " -m pip install " in call]
    return [call.rpartition("--editable ")[2].removeprefix(str(machine.root)) for call in calls]


def test_a_gpu_is_used_without_being_told(machine: Machine) -> None:
    _add_gpu(machine)
    run = _quickstart(machine)
    assert (run.returncode, run.stderr) == (0, "")
    assert "some 4 GB" in run.stdout
    assert _installed(machine) == ["[gpu]"]
    assert _quickstart(machine).returncode == 0
    assert _installed(machine) == []


def test_a_gpu_that_comes_later(machine: Machine) -> None:
    _add_gpu(machine, listed="No devices found")
    assert _quickstart(machine).returncode == 0
    assert _installed(machine) == [""]
    _add_gpu(machine)
    assert _quickstart(machine).returncode == 0
    assert _installed(machine) == ["[gpu]"]


@pytest.mark.parametrize(
    "environment",
    [{"RROPE_DEVICE": "cpu"}, {"JAX_PLATFORMS": "cpu"}],
    ids=lambda environment: next(iter(environment)),
)
def test_the_cpu_by_wish(machine: Machine, environment: dict[str, str]) -> None:
    _add_gpu(machine)
    run = _quickstart(machine, **environment)
    assert (run.returncode, run.stderr) == (0, "")
    assert _installed(machine) == [""]


@pytest.mark.parametrize("driver", ["579.99", "550.54.15", "99.1"])
def test_a_driver_too_old(machine: Machine, driver: str) -> None:
    _add_gpu(machine, driver)
    run = _quickstart(machine)
    assert run.returncode == 0
    if driver == "99.1":  # which is no release of this century
        assert run.stderr == ""
    else:
        assert run.stderr == (
            f"The GPU's driver is {driver}, and CUDA 13 needs 580: going on with the CPU.\n"
        )
    assert _installed(machine) == [""]


@pytest.mark.parametrize("kept", [False, True], ids=["fresh", "beside what was there"])
def test_no_wheels_for_the_gpu(machine: Machine, kept: bool) -> None:
    if kept:
        assert _quickstart(machine, RROPE_DEVICE="cpu").returncode == 0
        machine.calls()
    _add_gpu(machine)
    machine.no_gpu_wheels.touch()
    run = _quickstart(machine)
    assert run.returncode == 0, run.stderr
    assert run.stderr == "JAX for the GPU could not be installed: going on with the CPU.\n"
    assert _installed(machine) == (["[gpu]"] if kept else ["[gpu]", ""])
    assert (machine.root / "runs" / "posgen_quick" / "report.md").exists()


def test_no_network_leaves_what_was_there(machine: Machine) -> None:
    assert _quickstart(machine, RROPE_DEVICE="cpu").returncode == 0
    _add_gpu(machine)
    machine.network_down.touch()
    machine.calls()
    assert _quickstart(machine).returncode == 0
    calls = machine.calls()
    assert not any(" -m venv " in call for call in calls)
    assert any(call.startswith("rrope posgen") for call in calls)


def test_a_gpu_that_is_asked_for_is_not_replaced(machine: Machine) -> None:
    machine.no_gpu_wheels.touch()
    run = _quickstart(machine, RROPE_DEVICE="gpu")
    assert run.returncode == 1
    assert not (machine.root / "runs").exists()


def test_an_unknown_device(machine: Machine) -> None:
    run = _quickstart(machine, RROPE_DEVICE="npu")
    assert (run.returncode, run.stderr) == (2, "RROPE_DEVICE=npu is no device; give cpu or gpu\n")


@pytest.mark.parametrize(
    ("said", "driver"),
    [
        ("NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.65.06  Sun Jul 27", "580.65.06"),
        (
            "NVRM version: NVIDIA UNIX Open Kernel Module for aarch64  590.12  Release Build",
            "590.12",
        ),
        ("something else", ""),
    ],
)
def test_the_kernel_module_says_the_driver(
    machine: Machine, tmp_path: Path, said: str, driver: str
) -> None:
    """Where there is no nvidia-smi."""
    file = tmp_path / "version"
    file.write_text(f"{said}\nGCC version: gcc version 12.2.0\n")
    script = f'source "{ROOT}/launch/environment.sh"; find_gpu "{file}"; printf %s "$driver"'
    run = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        env={"PATH": str(machine.folder / "bin")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (run.stdout, run.stderr) == (driver, "")
