"""The launch scripts: what they look for, what they install when, and what they say."""

import configparser
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.launch.machine import ROOT, Machine

SCRIPTS = [
    *sorted((ROOT / "launch").glob("*.sh")),
    ROOT / "launch" / "slurm.sbatch",
    ROOT / ".ci" / "run",
]
PYTEST = "python -m pytest --numprocesses=auto --maxprocesses=4 --dist=worksteal"
UNOPTIMIZED = PYTEST.replace("python", "python unoptimized")
EVERY_SCRIPT = pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)


@EVERY_SCRIPT
def test_syntax(script: Path) -> None:
    subprocess.run(["bash", "-n", str(script)], check=True)


@EVERY_SCRIPT
def test_shellcheck(script: Path) -> None:
    shellcheck = shutil.which("shellcheck", path=str(Path(sys.executable).parent))
    if shellcheck is None:
        pytest.skip("shellcheck is not installed (the dev extra has it)")
    checked = subprocess.run(
        [shellcheck, "-x", str(script)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert checked.stdout == ""


def test_supported_versions_are_those_of_the_package() -> None:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    supported = re.search('SUPPORTED="(.*)"', (ROOT / "launch" / "environment.sh").read_text())
    assert supported is not None
    versions = supported[1].split()
    last = versions[-1].split(".")
    after = f"{last[0]}.{int(last[1]) + 1}"
    assert setup["options"]["python_requires"] == f">={versions[0]},<{after}"
    listed = re.findall(r"Python :: (3\.\d+)", setup["metadata"]["classifiers"])
    assert listed == versions


def test_every_requirement_is_pinned() -> None:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    extras = setup["options.extras_require"]
    groups = [setup["options"]["install_requires"], *(extras[e] for e in ("dev", "docs", "peers"))]
    wanted = "\n".join(groups)
    names = {re.split(r"[\[<>=~!]", line)[0].lower() for line in wanted.splitlines() if line}
    pins = (ROOT / "launch" / "constraints.txt").read_text().splitlines()
    assert names - {pin.split("==")[0] for pin in pins} == set()


class TestFindingPython:
    def test_none_at_all(self, machine: Machine) -> None:
        run = machine.run("launch/quickstart.sh")
        assert run.returncode == 2
        assert run.stdout == ""
        assert run.stderr.count("\n") == 1
        assert "Python 3.11, 3.12 or 3.13" in run.stderr
        assert "(python3 does not run)" in run.stderr
        assert not (machine.root / ".venv").exists()

    @pytest.mark.parametrize("script", ["launch/quickstart.sh", "launch/test.sh", ".ci/run"])
    def test_too_old(self, machine: Machine, script: str) -> None:
        machine.add_python("python3", "3.9")
        run = machine.run(script)
        assert run.returncode == 2
        assert run.stderr.count("\n") == 1
        assert "(python3 is Python 3.9)" in run.stderr
        assert "install it" in run.stderr
        assert not (machine.root / ".venv").exists()

    def test_too_new(self, machine: Machine) -> None:
        machine.add_python("python3", "3.14")
        run = machine.run("launch/quickstart.sh")
        assert run.returncode == 2
        assert "(python3 is Python 3.14)" in run.stderr

    def test_no_venv_module(self, machine: Machine) -> None:
        machine.add_python("python3", "3.11", venv=False)
        run = machine.run("launch/quickstart.sh")
        assert run.returncode == 2
        assert run.stderr.count("\n") == 1
        assert "python3, Python 3.11, lacks its venv module" in run.stderr
        assert "python3-venv" in run.stderr
        assert not (machine.root / ".venv").exists()

    def test_python3_comes_first(self, machine: Machine) -> None:
        machine.add_python("python3", "3.11")
        machine.add_python("python3.13", "3.13")
        assert machine.run("launch/quickstart.sh").returncode == 0
        assert any(call.startswith("python3 -m venv") for call in machine.calls())

    def test_newest_that_will_do_comes_next(self, machine: Machine) -> None:
        machine.add_python("python3", "3.14")
        machine.add_python("python3.13", "3.13", venv=False)
        machine.add_python("python3.12", "3.12")
        machine.add_python("python3.11", "3.11")
        assert machine.run("launch/quickstart.sh").returncode == 0
        assert any(call.startswith("python3.12 -m venv") for call in machine.calls())

    def test_variable_decides(self, machine: Machine) -> None:
        machine.add_python("python3", "3.11")
        other = machine.add_python("python3.12", "3.12")
        assert machine.run("launch/quickstart.sh", PYTHON=str(other)).returncode == 0
        assert any(call.startswith("python3.12 -m venv") for call in machine.calls())

    @pytest.mark.parametrize("made_before", [False, True])
    def test_variable_that_will_not_do(self, machine: Machine, made_before: bool) -> None:
        machine.add_python("python3", "3.11")
        old = machine.add_python("python3.9", "3.9")
        if made_before:
            assert machine.run("launch/quickstart.sh").returncode == 0
        for python, trouble in ((str(old), "is Python 3.9"), ("/absent", "does not run")):
            run = machine.run("launch/quickstart.sh", PYTHON=python)
            assert run.returncode == 2
            assert f"({python} {trouble})" in run.stderr


class TestEnvironment:
    @pytest.fixture(autouse=True)
    def python(self, machine: Machine) -> None:
        machine.add_python("python3", "3.11")

    def test_installs_once(self, machine: Machine) -> None:
        assert machine.run("launch/quickstart.sh").returncode == 0
        calls = machine.calls()
        (install,) = [call for call in calls if " -m pip install " in call]
        assert f"--constraint {machine.root}/launch/constraints.txt" in install
        assert install.endswith(f"--editable {machine.root}")
        assert machine.run("launch/quickstart.sh").returncode == 0
        calls = machine.calls()
        assert not any(" -m venv " in call or " -m pip install " in call for call in calls)

    @pytest.mark.parametrize("name", ["setup.cfg", "launch/constraints.txt"])
    def test_installs_again_after_a_change(self, machine: Machine, name: str) -> None:
        machine.run("launch/quickstart.sh")
        machine.installs()
        with (machine.root / name).open("a") as file:
            file.write("# changed\n")
        machine.run("launch/quickstart.sh")
        assert machine.installs() == 1

    def test_extra_is_installed_once_and_serves_the_quickstart(self, machine: Machine) -> None:
        assert machine.run("launch/test.sh").returncode == 0
        (install,) = [call for call in machine.calls() if " -m pip install " in call]
        assert install.endswith(f"--editable {machine.root}[dev]")
        assert machine.run("launch/test.sh").returncode == 0
        assert machine.run("launch/quickstart.sh").returncode == 0
        assert machine.installs() == 0

    def test_quickstart_does_not_stand_for_the_extra(self, machine: Machine) -> None:
        machine.run("launch/quickstart.sh")
        machine.installs()
        machine.run("launch/test.sh")
        assert machine.installs() == 1

    @pytest.mark.parametrize("damage", ["python", "cut off", "empty"])
    def test_damaged_environment_is_made_anew(self, machine: Machine, damage: str) -> None:
        machine.run("launch/quickstart.sh")
        venv = machine.root / ".venv"
        if damage == "python":
            (venv / "bin" / "python").unlink()
        elif damage == "cut off":
            (venv / ".incomplete").touch()
        else:
            shutil.rmtree(venv)
            venv.mkdir()
        machine.calls()
        assert machine.run("launch/quickstart.sh").returncode == 0
        calls = machine.calls()
        assert sum(" -m venv " in call for call in calls) == 1
        assert sum(" -m pip install " in call for call in calls) == 1

    def test_failed_install_is_tried_again(self, machine: Machine) -> None:
        machine.network_down.touch()
        assert machine.run("launch/quickstart.sh").returncode == 1
        assert not (machine.root / "runs").exists()
        machine.network_down.unlink()
        machine.calls()
        assert machine.run("launch/quickstart.sh").returncode == 0
        assert machine.installs() == 1

    def test_other_python_makes_it_anew(self, machine: Machine) -> None:
        machine.run("launch/quickstart.sh")
        machine.calls()
        other = machine.add_python("python3.12", "3.12")
        assert machine.run("launch/quickstart.sh", PYTHON=str(other)).returncode == 0
        assert any(call.startswith("python3.12 -m venv") for call in machine.calls())


class TestQuickstart:
    @pytest.fixture(autouse=True)
    def python(self, machine: Machine) -> None:
        machine.add_python("python3", "3.11")

    def test_runs_from_any_folder_and_names_what_it_wrote(self, machine: Machine) -> None:
        elsewhere = machine.folder / "elsewhere"
        elsewhere.mkdir()
        run = machine.run("launch/quickstart.sh", cwd=elsewhere)
        assert (run.returncode, run.stderr) == (0, "")
        runs = machine.root / "runs" / "posgen_quick"
        assert run.stdout.splitlines()[-2:] == [
            f"Table: {runs}/report.md",
            f"Plot:  {runs}/accuracy.png",
        ]
        assert list(elsewhere.iterdir()) == []

    def test_hands_its_arguments_on(self, machine: Machine) -> None:
        machine.run("launch/quickstart.sh", "--config.num_seeds=1", "--config.tasks=cot")
        (call,) = [call for call in machine.calls() if call.startswith("rrope ")]
        assert call == (
            f"rrope posgen --config={machine.root}/configs/posgen_quick.py"
            f" --workdir={machine.root}/runs/posgen_quick --config.num_seeds=1 --config.tasks=cot"
        )


class TestTest:
    @pytest.fixture(autouse=True)
    def python(self, machine: Machine) -> None:
        machine.add_python("python3", "3.11")

    def test_lint_types_tests_in_this_order(self, machine: Machine) -> None:
        assert machine.run("launch/test.sh", "-m", "not slow").returncode == 0
        calls = machine.calls()
        assert calls[calls.index("ruff check .") :] == [
            "ruff check .",
            "ruff format --check .",
            "mypy ",
            f"{PYTEST} -m not slow",
        ]

    def test_launchers_are_left_out_where_they_have_not_changed(self, machine: Machine) -> None:
        git = shutil.which("git")
        assert git is not None
        (machine.folder / "bin" / "git").symlink_to(git)
        identity = ("-c", "user.name=a", "-c", "user.email=a@b.example")
        for words in (("init", "-q"), ("add", "-A"), (*identity, "commit", "-qm", "all")):
            subprocess.run([git, *words], cwd=machine.root, check=True)

        def marked(**environment: str) -> bool:
            machine.calls()
            assert machine.run("launch/test.sh", **environment).returncode == 0
            return f"{UNOPTIMIZED} -m not long and not heavy and not launch" in machine.calls()

        assert marked()
        assert not marked(CI="true")
        (machine.root / "launch" / "new.sh").touch()
        assert not marked()


class TestCi:
    def test_steps(self, machine: Machine) -> None:
        machine.add_python("python3", "3.11")
        machine.add_python("python3.12", "3.12")
        machine.add_model()
        run = machine.run(".ci/run")
        assert (run.returncode, run.stderr) == (0, "")
        calls = machine.calls()
        tests = [call for call in calls if " -m pytest" in call]
        older = [call for call in tests if "tests/model" in call]
        assert len(older) == ("held to" in run.stdout and "left out, XLA" not in run.stdout)
        assert [call for call in tests if call not in older] == [
            f"{UNOPTIMIZED} -m not long",
            "python -m pytest -m smoke -W default",
            "python -m pytest --numprocesses=auto --maxprocesses=2 --dist=loadfile"
            " --no-loadscope-reorder -m peers and not long",
        ]
        assert (machine.root / ".venv-newest").is_dir()
        (site,) = [call for call in calls if " -m sphinx " in call]
        assert site == "python -m sphinx -W -E -q -b html docs build/site"
        assert any(call.endswith(f"--editable {machine.root}[docs]") for call in calls)
        assert re.search(r"everything passed in \d+ s", run.stdout)

    def test_newest_other_python_may_be_pyenvs(self, machine: Machine) -> None:
        machine.add_python("python3", "3.12")
        folder = machine.folder / ".pyenv" / "versions" / "3.13.0" / "bin"
        folder.mkdir(parents=True)
        machine.add_python("python3.13", "3.13").rename(folder / "python")
        run = machine.run(".ci/run")
        assert (run.returncode, run.stderr) == (0, "")
        assert f"smoke tests on {folder}/python" in run.stdout
        assert "peers: left out" in run.stdout

    def test_no_other_python(self, machine: Machine) -> None:
        machine.add_python("python3", "3.11")
        machine.add_model()
        run = machine.run(".ci/run")
        assert (run.returncode, run.stderr) == (0, "")
        assert "no other Python" in run.stdout

    def test_stops_at_the_first_failure(self, machine: Machine) -> None:
        machine.add_python("python3", "3.11")
        machine.network_down.touch()
        run = machine.run(".ci/run")
        assert run.returncode == 1
        assert "everything passed" not in run.stdout
        assert not any(" -m pytest" in call for call in machine.calls())

    def test_fails_as_the_site_does_which_runs_beside_others(self, machine: Machine) -> None:
        machine.add_python("python3", "3.11")
        machine.add_python("python3.12", "3.12")
        machine.add_model()
        machine.page_with_a_dead_link.touch()
        run = machine.run(".ci/run")
        assert run.returncode == 1
        assert "=== documentation site" in run.stdout
        assert "everything passed" not in run.stdout
