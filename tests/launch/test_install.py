"""launch/install.sh: which Python and which extra."""

import shutil

import pytest

from tests.launch.cloud import Cloud, write_program


@pytest.mark.parametrize(("what", "extra"), [("tpu", "[tpu]"), ("gpu", "[gpu]"), ("cpu", "")])
def test_extra(cloud: Cloud, what: str, extra: str) -> None:
    assert cloud.run("install.sh", what).returncode == 0
    (install,) = [call for call in cloud.machine.calls() if " -m pip install " in call]
    assert install.endswith(f"--editable {cloud.machine.root}{extra}")


@pytest.mark.parametrize("words", [(), ("npu",)])
def test_unknown_accelerator(cloud: Cloud, words: tuple[str, ...]) -> None:
    run = cloud.run("install.sh", *words)
    assert (run.returncode, run.stderr.count("\n")) == (2, 1)
    assert "give tpu, gpu or cpu" in run.stderr


def test_old_python_as_on_tpu_vms(cloud: Cloud) -> None:
    fetched = shutil.move(cloud.machine.add_python("python3.11", "3.11"), cloud.folder)
    cloud.machine.add_python("python3", "3.10")
    # Where `pip install --user uv` puts it.
    programs = cloud.machine.folder / ".local" / "bin"
    programs.mkdir(parents=True)
    find = f'#!/bin/bash\n[[ "$*" != "python find 3.11" ]] || echo "{fetched}"\n'
    write_program(programs / "uv", find)
    run = cloud.run("install.sh", "tpu")
    assert run.returncode == 0, run.stderr
    calls = cloud.machine.calls()
    assert "python3 -m pip install --quiet --user uv" in calls
    assert any(call.startswith("python3.11 -m venv") for call in calls)


def test_a_python_that_will_do_is_taken(cloud: Cloud) -> None:
    cloud.machine.add_python("python3", "3.10")
    cloud.machine.add_python("python3.12", "3.12")
    assert cloud.run("install.sh", "cpu").returncode == 0
    assert any(call.startswith("python3.12 -m venv") for call in cloud.machine.calls())
