"""The rrope command, run as a user runs it and with stand-in jobs."""

import os
import re
import signal
import subprocess
import sys
import types
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

import rrope_jax
from rrope_jax import __main__ as cli
from rrope_jax.cli.errors import UsageError

ROOT = Path(__file__).parents[1]


def _rrope(*words: str, cwd: Path = ROOT) -> "subprocess.CompletedProcess[str]":
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-m", "rrope_jax", *words],
        capture_output=True,
        text=True,
        cwd=cwd,
        env=environment,
        check=False,
    )


@pytest.fixture
def job(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[Sequence[str]], int]], str]:
    """Adds a command that runs a given function, and returns its name."""

    def add(main: Callable[[Sequence[str]], int]) -> str:
        module = types.ModuleType("stand_in_job")
        module.main = main  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, module.__name__, module)
        monkeypatch.setitem(cli.COMMANDS, "job", cli._Command(module.__name__, "stands in"))
        return "job"

    return add


def test_help_lists_every_command() -> None:
    shown = _rrope("--help")
    assert shown.returncode == 0
    assert shown.stderr == ""
    for name, command in cli.COMMANDS.items():
        assert name in shown.stdout
        assert command.summary in shown.stdout


def test_version() -> None:
    assert _rrope("--version").stdout.strip() == f"rrope_jax {rrope_jax.__version__}"


def test_help_does_not_import_jax() -> None:
    code = "import sys; from rrope_jax.__main__ import main; main(['--help']); print(*sys.modules)"
    modules = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    ).stdout.split()
    assert "rrope_jax.__main__" in modules
    assert "jax" not in modules


def test_no_command_is_bad_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 2
    assert "posgen" in capsys.readouterr().err


def test_unknown_command_names_the_known_ones(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["posgne"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("rrope: unknown command 'posgne'")
    assert all(name in error for name in cli.COMMANDS)
    assert error.count("\n") == 1


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_help_of_a_command(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main([command, "--help"])
    shown = capsys.readouterr()
    assert (stopped.value.code, shown.err) == (0, "")
    assert shown.out.startswith(f"usage: rrope {command}")
    for flag in cli.COMMANDS[command].requires:
        assert re.search(rf"--{flag}=\w+\n.*\(required\)", shown.out)


def test_help_of_a_command_as_a_process() -> None:
    shown = _rrope("analyze", "--help")
    assert (shown.returncode, shown.stderr) == (0, "")
    assert shown.stdout.startswith("usage: rrope analyze")


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_missing_flags_are_named(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([command]) == 2
    missing = re.match(rf"rrope {command}: --(\w+) is missing", capsys.readouterr().err)
    assert missing is not None
    assert missing[1] in cli.COMMANDS[command].requires


def _bad_usages() -> Iterator[tuple[str, list[str], str]]:
    """A command, words that it refuses, and what its message has to name."""
    for command, row in cli.COMMANDS.items():
        words = {flag: f"--{flag}=absent" for flag in row.requires}
        yield command, list(words.values()), "absent"
        words.pop("config", None)  # a config that is not there is what is said first
        yield command, [*words.values(), "--colour=red"], "--colour"


@pytest.mark.parametrize(("command", "words", "expected"), list(_bad_usages()))
def test_bad_usage_is_one_line_and_writes_nothing(
    command: str,
    words: list[str],
    expected: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main([command, *words]) == 2
    _check_one_line(command, *capfd.readouterr(), expected)
    assert list(tmp_path.iterdir()) == []


def test_bad_usage_as_a_process(tmp_path: Path) -> None:
    run = _rrope("train", "--config=absent", "--workdir=absent", cwd=tmp_path)
    assert run.returncode == 2
    _check_one_line("train", run.stdout, run.stderr, "absent")
    assert list(tmp_path.iterdir()) == []


def _check_one_line(command: str, out: str, error: str, expected: str) -> None:
    assert out == ""
    assert error.startswith(f"rrope {command}: ")
    assert error.count("\n") == 1
    assert expected in error


def test_job_gets_its_words_and_gives_the_exit_code(
    job: Callable[[Callable[[Sequence[str]], int]], str],
) -> None:
    seen: list[str] = []

    def main(argv: Sequence[str]) -> int:
        seen.extend(argv)
        return 7

    assert cli.main([job(main), "--steps=3", "-v"]) == 7
    assert seen == ["--steps=3", "-v"]


def test_usage_error_of_a_job_is_exit_2(
    job: Callable[[Callable[[Sequence[str]], int]], str], capsys: pytest.CaptureFixture[str]
) -> None:
    def main(argv: Sequence[str]) -> int:
        raise UsageError("config.rope.theta = 0: must be above 1")

    assert cli.main([job(main)]) == 2
    assert capsys.readouterr().err == "rrope job: config.rope.theta = 0: must be above 1\n"


def test_other_errors_of_a_job_are_not_hidden(
    job: Callable[[Callable[[Sequence[str]], int]], str],
) -> None:
    def main(argv: Sequence[str]) -> int:
        raise ValueError("a defect")

    with pytest.raises(ValueError, match="a defect"):
        cli.main([job(main)])


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signal_ends_a_job_in_one_line(
    number: signal.Signals,
    code: int,
    job: Callable[[Callable[[Sequence[str]], int]], str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    tidied = []

    def main(argv: Sequence[str]) -> int:
        try:
            os.kill(os.getpid(), number)
            signal.pause()
        finally:
            tidied.append(True)
        return 0

    before = signal.getsignal(number)
    assert cli.main([job(main)]) == code
    assert tidied == [True]
    error = capsys.readouterr().err
    assert error.startswith(f"rrope job: stopped by {number.name}")
    assert error.count("\n") == 1
    assert signal.getsignal(number) is before
