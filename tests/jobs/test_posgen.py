"""`rrope posgen` as its users run it: results, refusals, interruptions."""

import contextlib
import json
import os
import random
import re
import runpy
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from rrope_jax import __main__ as cli
from rrope_jax.cli.settings import from_config
from rrope_jax.jobs.posgen_setting import PosgenSetting
from rrope_jax.posgen.published import is_paper
from rrope_jax.rope import query_temperature

ROOT = Path(__file__).parents[2]
TINY = Path(__file__).with_name("posgen_tiny.py")
Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module")
def environment() -> dict[str, str]:
    """One CPU device, and programs compiled quickly."""
    return os.environ | {
        "PYTHONPATH": str(ROOT),
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": "1",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    }


def _words(workdir: Path, *overrides: str) -> list[str]:
    return ["posgen", f"--config={TINY}", f"--workdir={workdir}", *overrides]


@pytest.fixture(scope="module")
def rrope(environment: dict[str, str]) -> Run:
    """Runs the command to its end, in a process of its own."""

    def run(workdir: Path, *overrides: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [sys.executable, "-m", "rrope_jax", *_words(workdir, *overrides)],
            capture_output=True,
            text=True,
            check=False,
            cwd=workdir.parent,
            env=environment,
        )

    return run


@pytest.fixture(scope="module")
def finished(
    rrope: Run, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, "subprocess.CompletedProcess[str]"]:
    """The workdir of an unbroken run, and what the run said."""
    workdir = tmp_path_factory.mktemp("finished") / "run"
    return workdir, rrope(workdir)


def _tree(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def _results(workdir: Path) -> dict[str, Any]:
    """results.json without the times, which differ from run to run."""
    results: dict[str, Any] = json.loads((workdir / "results.json").read_text())
    for cell in results["cells"]:
        assert cell.pop("seconds") > 0
    return results


@pytest.mark.smoke
class TestFinishedRun:
    def test_ends_well_and_names_what_it_wrote(
        self, finished: tuple[Path, "subprocess.CompletedProcess[str]"]
    ) -> None:
        workdir, run = finished
        assert run.returncode == 0, run.stderr
        written = [line.removeprefix("wrote ") for line in run.stdout.splitlines()]
        assert written[0] == str(workdir / "results.json")
        assert str(workdir / "report.md") in written
        assert sum(name.endswith(".png") for name in written) == 3
        assert all(Path(name).stat().st_size > 0 for name in written)

    def test_says_nothing_that_frightens(
        self, finished: tuple[Path, "subprocess.CompletedProcess[str]"]
    ) -> None:
        _, run = finished
        assert "backend cpu, 1 device, jax" in run.stderr
        assert "ETA" in run.stderr
        lowered = run.stderr.lower()
        assert [w for w in ("warn", "error", "traceback", "tpu", "cuda") if w in lowered] == []

    def test_cells_have_the_fields_of_the_contract(
        self, finished: tuple[Path, "subprocess.CompletedProcess[str]"]
    ) -> None:
        results = json.loads((finished[0] / "results.json").read_text())
        cells = {cell["method"]: cell for cell in results["cells"]}
        assert list(cells) == ["rope", "yarn", "resonance_rope", "resonance_yarn"]
        assert results["complete"] is True
        assert results["cells_expected"] == len(cells) == 4
        for method, cell in cells.items():
            assert cell["task"] == "cot"
            assert cell["seed"] == 0
            assert cell["protocol"] == "scaled_at_test"
            assert cell["trained_as"] == method.replace("yarn", "rope")
            assert 0 <= cell["id_accuracy"] <= 1
            assert 0 <= cell["ood_accuracy"] <= 1
            by_position = cell["accuracy_by_position"]
            assert by_position[:4] == [None] * 4
            assert cell["ood_accuracy"] == pytest.approx(sum(by_position[8:]) / 8)
            assert cell["id_accuracy"] == pytest.approx(sum(by_position[4:8]) / 4)
            assert cell["validation_step"] == [10, 20, 30]
            assert len(cell["validation_loss"]) == len(cell["train_loss"]) == 3
            assert cell["steps"] == 30
            assert cell["seconds"] > 0

    def test_setting_says_what_was_run(
        self, finished: tuple[Path, "subprocess.CompletedProcess[str]"]
    ) -> None:
        results = _results(finished[0])
        setting = results["setting"]
        assert results["name"] == "tiny"
        assert setting["seeds"] == [0]
        assert setting["modulus"] == 5
        assert setting["rope"]["factor"] == 2.0
        assert setting["rope_at_test"]["factor"] == 17 / 9
        assert setting["model"]["vocab_size"] == 6
        assert setting["train"]["weight_decay"] == 0.01  # a default
        assert setting["is_paper"] is False
        assert set(results["versions"]) == {"rrope_jax", "jax", "flax", "optax", "orbax-checkpoint"}

    def test_report_shows_every_method(
        self, finished: tuple[Path, "subprocess.CompletedProcess[str]"]
    ) -> None:
        text = (finished[0] / "report.md").read_text()
        methods = ("RoPE", "Resonance RoPE", "YaRN", "Resonance YaRN")
        assert [method for method in methods if f"| {method} |" not in text] == []
        assert "Partial run" not in text


def test_rerun_of_a_finished_run_trains_nothing(
    rrope: Run, finished: tuple[Path, "subprocess.CompletedProcess[str]"]
) -> None:
    workdir, _ = finished
    before, results = _tree(workdir), _results(workdir)
    times = {path: path.stat().st_mtime_ns for path in (workdir / "cells").iterdir()}
    (workdir / "report.md").unlink()
    again = rrope(workdir)
    assert again.returncode == 0, again.stderr
    assert "2 trainings, 2 of them done" in again.stderr
    assert "step" not in again.stderr.split("\n\n")[0]
    assert {path: path.stat().st_mtime_ns for path in times} == times
    assert _results(workdir) == results
    after = _tree(workdir)
    assert after.keys() == before.keys()
    assert after["report.md"] == before["report.md"]


class TestRefusals:
    """One line on stderr with key, value and mend; exit code 2; nothing written."""

    @pytest.mark.parametrize(
        ("overrides", "parts"),
        [
            (["--config.modulo=7"], ["config has no key 'modulo'", "'modulus'"]),
            (["--config.train.step=7"], ["config.train has no key 'step'", "'steps'"]),
            (["--config.modulus=seven"], ["config.modulus=seven", "int"]),
            (["--config.train.learning_rate=fast"], ["learning_rate=fast", "float"]),
            (["--config.tasks=cott"], ["'cott'", "recursive, cot, semi_recursive"]),
            (["--config.tasks=cot,cot"], ["tasks=('cot', 'cot')", "none twice"]),
            (["--config.methods=yarm"], ["'yarm'", "yarn", "resonance_"]),
            (["--config.protocols=scaled"], ["'scaled'", "scaled_training, scaled_at_test"]),
            (["--config.splits=overlap"], ["splits='overlap'", "disjoint, authors"]),
            (["--config.combination=sum"], ["combination='sum'", "modular_sum"]),
            (["--config.num_seeds=0"], ["num_seeds=0", "at least 1"]),
            (["--config.first_seed=-1"], ["first_seed=-1", "at least 0"]),
            (
                ["--config.first_seed=4294967295", "--config.num_seeds=2"],
                ["first_seed=4294967295", "2**32"],
            ),
            (["--config.first_seed=4294967296"], ["first_seed = 4294967296", "2**32"]),
            (["--config.lanes=-1"], ["lanes=-1", "at least 0"]),
            (["--config.mesh.ablation=0"], ["config.mesh", "ablation=0", "at least 1, or -1"]),
            (["--config.train_sequences=610"], ["626 distinct seeds", "only 625", "fewer"]),
            (["--config.k=11", "--config.train_length=13"], ["modulus=5", "12 tokens", "smaller"]),
            (["--config.modulus=3", "--config.splits=authors"], ["modulus=3", "'disjoint'"]),
            (["--config.test_length=8"], ["test_length=8", "train_length=8"]),
            (["--config.train_length=4"], ["train_length=4", "j+k=4"]),
            (["--config.train.validate_every=4"], ["validate_every=4", "steps=30", "steps=32"]),
            (["--config.train.steps_per_call=3"], ["steps_per_call=3", "validate_every=10"]),
            (["--config.train.batch_size=41"], ["batch_size=41", "train_sequences=40"]),
            (["--config.train.eval_batch_size=3"], ["eval_batch_size=3", "validation_sequences=8"]),
            (["--config.model.head_dim=7"], ["head_dim=7", "even"]),
            (["--config.model.activation=gelu"], ["activation='gelu'", "swiglu, geglu, relu"]),
            (["--config.rope.theta=0.5"], ["theta=0.5", "> 1"]),
            (["--config.rope.beta_fast=0.5"], ["beta_fast=0.5", "beta_slow"]),
            (["--config.rope.original_context=-3"], ["original_context=-3", "positive"]),
            (["--config.rope_at_test.factor=0.5"], ["config.rope_at_test", "factor=0.5", ">= 1"]),
            (["--config.positions.sampler=pos"], ["sampler='pos'", "pose"]),
            (["--config.positions.sampler=pose"], ["target_length"]),
        ],
        ids=lambda value: " ".join(value) if value[0].startswith("--") else None,
    )
    def test_bad_config(
        self,
        overrides: list[str],
        parts: list[str],
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        code = cli.main(_words(tmp_path / "run", *overrides))
        captured = capsys.readouterr()
        assert code == 2
        assert captured.out == ""
        assert captured.err.startswith("rrope posgen: ")
        assert captured.err.count("\n") == 1
        assert [part for part in parts if part not in captured.err] == []
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize(
        ("line", "parts"),
        [
            ("config.colour = 3", ["config.colour = 3", "no such key"]),
            ("config.model.width = 3", ["config.model.width = 3", "no such key"]),
            ("config.rope.base = 3.0", ["config.rope", "base = 3.0", "no such key"]),
            ("config.tasks = 3", ["config.tasks = 3", "sequence of str"]),
            ("config.rope = 3", ["config.rope = 3", "group"]),
            ("config.mesh = 3", ["config.mesh = 3", "group"]),
            ("config.mesh.data = 2", ["config.mesh.data = 2", "no such key", "ablation"]),
            ("config.rope_at_test = None", ["config.rope_at_test = None", "group"]),
            ("config.train = (1, 2)", ["config.train = (1, 2)", "group"]),
            ("del config.positions", ["config.positions", "missing"]),
            ("del config.num_seeds", ["config.num_seeds", "--config.num_seeds="]),
            ("del config.rope_at_test.factor; del config.rope.factor", ["'yarn'", "factor"]),
        ],
    )
    def test_bad_config_file(
        self, line: str, parts: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        file = tmp_path / "bad.py"
        file.write_text(
            f"import runpy\n\ndef get_config():\n"
            f"    config = runpy.run_path({str(TINY)!r})['get_config']()\n"
            f"    with config.unlocked(), config.ignore_type():\n        {line}\n"
            f"    return config\n"
        )
        code = cli.main(["posgen", f"--config={file}", f"--workdir={tmp_path / 'run'}"])
        captured = capsys.readouterr()
        assert code == 2
        assert captured.err.count("\n") == 1
        assert [part for part in parts if part not in captured.err] == []
        assert [path.name for path in tmp_path.iterdir()] == ["bad.py"]

    @pytest.mark.parametrize(
        ("override", "said"),
        [
            ("mesh.ablation=2", "config.mesh: ablation=2, but there are 1 devices; -1 takes all"),
            (
                "model.attention=cudnn",
                "config.model: attention='cudnn' cannot be used here: it needs a GPU",
            ),
        ],
    )
    def test_what_these_devices_cannot_do(
        self, override: str, said: str, rrope: Run, tmp_path: Path
    ) -> None:
        run = rrope(tmp_path / "run", f"--config.{override}")
        assert run.returncode == 2
        assert said in run.stderr
        assert run.stderr.count("\n") == 1
        assert list(tmp_path.iterdir()) == []

    def test_workdir_of_another_config(
        self, rrope: Run, finished: tuple[Path, "subprocess.CompletedProcess[str]"]
    ) -> None:
        workdir, _ = finished
        before = _tree(workdir)
        run = rrope(workdir, "--config.train.steps=40")
        assert run.returncode == 2
        assert "train.steps is 30 there and 40 here; give another --workdir" in run.stderr
        assert run.stderr.count("\n") == 1
        assert _tree(workdir) == before

    def test_workdir_that_cannot_be_made(self, rrope: Run, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        run = rrope(tmp_path / "file")
        assert run.returncode == 2
        assert f"--workdir={tmp_path / 'file'} cannot be used" in run.stderr
        assert run.stderr.count("\n") == 1
        assert _tree(tmp_path) == {"file": b""}


class TestShippedConfigs:
    @pytest.mark.parametrize("file", sorted((ROOT / "configs").glob("posgen_*.py")), ids=str)
    def test_can_be_planned(self, file: Path) -> None:
        config = runpy.run_path(str(file))["get_config"]()
        setting = from_config(PosgenSetting, config, "config")
        program = setting.program()
        planned = setting.trainings(program)
        assert {training.task for training in planned} == set(setting.grid.tasks)
        rope, at_test = setting.rope, setting.rope_at_test
        assert is_paper(program, rope, at_test) == (file.stem == "posgen_paper")
        assert not is_paper(program, {**rope, "theta": 500.0}, at_test)
        assert program.train.steps > 0

    @pytest.mark.parametrize(
        ("group", "fields", "carried"),
        [
            ("rope", {}, False),
            ("rope", {"position_temperature": "none"}, False),
            ("rope", {"position_temperature": "log_n", "temperature_context": 8}, True),
            ("rope_at_test", {"llama_4_scaling_beta": 0.1, "temperature_context": 8}, True),
        ],
    )
    def test_temperature_by_position(
        self, group: str, fields: dict[str, object], carried: bool
    ) -> None:
        config = runpy.run_path(str(TINY))["get_config"]()
        config.methods = ("yarn",)
        config[group].update(fields)
        setting = from_config(PosgenSetting, config, "config")
        program = setting.program()
        assert program.position_temperatures is carried
        (training,) = setting.trainings(program)
        tested = training.evaluations[0].spec
        assert (query_temperature(tested, 100) is not None) is carried

    @pytest.mark.parametrize(
        ("methods", "far"),
        [(("rope", "resonance_learned_yarn"), False), (("learned_rope", "self_extend"), True)],
    )
    def test_learned_methods_may_stand_beside_any(
        self, methods: tuple[str, ...], far: bool
    ) -> None:
        config = runpy.run_path(str(TINY))["get_config"]()
        config.methods = methods
        program = from_config(PosgenSetting, config, "config").program()
        assert program.far_pairs is far

    def test_paper_is_60_trainings_and_120_cells(self) -> None:
        config = runpy.run_path(str(ROOT / "configs" / "posgen_paper.py"))["get_config"]()
        setting = from_config(PosgenSetting, config, "config")
        program = setting.program()
        planned = setting.trainings(program)
        assert len(planned) == 60
        assert sum(len(training.evaluations) for training in planned) == 120
        assert program.task.train_length == 64


@pytest.mark.slow
def test_splits_of_the_authors_can_be_run(rrope: Run, tmp_path: Path) -> None:
    """Their seeds are a constant, which must not start the backend before its flags are set."""
    run = rrope(tmp_path / "run", "--config.splits=authors")
    assert run.returncode == 0, run.stderr
    assert _results(tmp_path / "run")["setting"]["splits"] == "authors"


@pytest.mark.slow
def test_divergence_is_told_and_keeps_what_is_finished(rrope: Run, tmp_path: Path) -> None:
    run = rrope(tmp_path / "run", "--config.train.learning_rate=1e38")
    assert run.returncode == 1
    last = run.stderr.splitlines()[-1]
    assert last.startswith("FloatingPointError: the training loss of cot-")
    assert "lower train.learning_rate" in last
    results = _results(tmp_path / "run")
    assert (results["complete"], results["cells"]) == (False, [])
    assert "Partial run: 0 of 4 cells" in (tmp_path / "run" / "report.md").read_text()


@pytest.mark.slow
def test_learned_frequencies_without_periods_are_told_in_one_line(
    rrope: Run, tmp_path: Path
) -> None:
    run = rrope(
        tmp_path / "run",
        "--config.methods=coprime_learned_rope",
        "--config.protocols=scaled_training",
        "--config.train.steps=4",
        "--config.train.validate_every=4",
        # of 16 features, several get as fast as is allowed, and only one can have a period of 2
        "--config.model.num_heads=1",
        "--config.model.head_dim=32",
        "--config.train.frequency_rate=1000",
        "--config.rope.resonance_limit=2",
    )
    assert (run.returncode, "Traceback" in run.stderr) == (1, False)
    last = run.stderr.splitlines()[-1]
    assert last.startswith("rrope posgen: method 'coprime_learned_rope' has no table for the ")
    assert "cot-learned_rope-0 has learned: resonance='coprime' finds no " in last
    assert "up to resonance_limit=2" in last
    results = _results(tmp_path / "run")
    assert (results["complete"], results["cells"]) == (False, [])


def _start(environment: dict[str, str], workdir: Path, *overrides: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "rrope_jax", *_words(workdir, *overrides)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=workdir.parent,
        env=environment,
    )


def _break(
    environment: dict[str, str],
    workdir: Path,
    number: signal.Signals,
    *overrides: str,
    saves: int,
    delay: float = 0.0,
) -> tuple[int, str]:
    """Starts the command and sends a signal some time after so many saves; code and stderr."""
    seen = _saved(workdir)
    old = len(seen)
    with _start(environment, workdir, *overrides) as process:
        while process.poll() is None:
            seen |= _saved(workdir)
            if len(seen) >= old + saves:
                time.sleep(delay)
                process.send_signal(number)
                break
            time.sleep(0.01)
        _, stderr = process.communicate()
    return process.returncode, stderr


def _saved(workdir: Path) -> set[Path]:
    """The checkpoints, by name only: one may be gone before it is looked at."""
    trainings = workdir / "checkpoints"
    saved: set[Path] = set()
    with contextlib.suppress(FileNotFoundError):
        for name in os.listdir(trainings):
            with contextlib.suppress(FileNotFoundError):  # of a training that has just finished
                saved |= {trainings / name / step for step in os.listdir(trainings / name)}
    return saved


def _finish(environment: dict[str, str], workdir: Path, *overrides: str) -> str:
    with _start(environment, workdir, *overrides) as process:
        _, stderr = process.communicate()
    assert process.returncode == 0, stderr
    return stderr


def _with_devices(environment: dict[str, str], devices: int) -> dict[str, str]:
    flags = f"{environment.get('XLA_FLAGS', '')} --xla_cpu_multi_thread_eigen=false".strip()
    return environment | {"XLA_FLAGS": flags, "JAX_NUM_CPU_DEVICES": str(devices)}


# four trainings, none of which is done before a signal comes
LONGER = ("--config.num_seeds=2", "--config.train.steps=60")


@pytest.fixture(scope="module")
def one_device(
    environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> list[dict[str, Any]]:
    """The cells of an unbroken run on one device."""
    workdir = tmp_path_factory.mktemp("one") / "run"
    _finish(_with_devices(environment, 1), workdir, *LONGER)
    cells: list[dict[str, Any]] = _results(workdir)["cells"]
    return cells


@pytest.mark.slow
class TestInterruption:
    """A run broken at any time ends, when the command is given again, as the unbroken one."""

    @pytest.mark.heavy
    def test_any_signal_at_any_time(
        self, environment: dict[str, str], one_device: list[dict[str, Any]], tmp_path: Path
    ) -> None:
        workdir, chance = tmp_path / "run", random.Random(0)
        cells: dict[Path, int] = {}
        signals = [signal.SIGINT, signal.SIGKILL, signal.SIGTERM, signal.SIGKILL]
        codes = []
        while 0 not in codes:
            number = signals[len(codes) % len(signals)]
            code, stderr = _break(
                _with_devices(environment, 1),
                workdir,
                number,
                *LONGER,
                saves=chance.randint(10, 30),
                delay=chance.uniform(0, 0.2),
            )
            for path, written in cells.items():
                assert path.stat().st_mtime_ns == written, f"{path.name} was made again"
            cells = {path: path.stat().st_mtime_ns for path in workdir.glob("cells/*.json")}
            codes.append(code)
            if number is not signal.SIGKILL and code != 0:
                assert code == 128 + number, stderr
                assert stderr.splitlines()[-1] == (
                    f"rrope posgen: stopped by {number.name}; the same command goes on from here"
                )
                assert "Traceback" not in stderr
                partial = json.loads((workdir / "results.json").read_text())
                # a signal may also come between the last results and the end of the process
                tested = 2 * len(cells)
                is_complete = tested == len(one_device)
                assert (partial["complete"], len(partial["cells"])) == (is_complete, tested)
        assert 3 <= len(codes) <= 20
        assert _results(workdir)["cells"] == one_device

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
    def test_signal_while_the_report_is_written(
        self, environment: dict[str, str], tmp_path: Path, number: signal.Signals
    ) -> None:
        """All cells are there and the plots take their time: the report is written whole."""
        workdir = tmp_path / "run"
        with _start(environment, workdir) as process:
            while process.poll() is None and len(list(workdir.glob("cells/*.json"))) < 2:
                time.sleep(0.001)
            time.sleep(0.1)  # the trainings are over, the plots are not
            process.send_signal(number)
            _, stderr = process.communicate()
        assert process.returncode == 128 + number, stderr
        assert _results(workdir)["complete"]
        assert "Partial run" not in (workdir / "report.md").read_text()

    def test_killed_while_starting(
        self,
        environment: dict[str, str],
        finished: tuple[Path, "subprocess.CompletedProcess[str]"],
        tmp_path: Path,
    ) -> None:
        workdir = tmp_path / "run"
        for delay in (0.5, 1.5, 2.5):
            with _start(environment, workdir) as process:
                time.sleep(delay)
                process.kill()
        _finish(environment, workdir)
        assert _results(workdir) == _results(finished[0])

    def test_damaged_checkpoint(
        self,
        environment: dict[str, str],
        finished: tuple[Path, "subprocess.CompletedProcess[str]"],
        tmp_path: Path,
    ) -> None:
        workdir = tmp_path / "run"
        _break(environment, workdir, signal.SIGTERM, saves=4)
        group = min((workdir / "checkpoints").iterdir())
        kept = sorted(group.iterdir(), key=lambda folder: int(folder.name))
        older, newest = kept
        assert int(older.name) > 0
        files = [path for path in newest.rglob("*") if path.is_file()]
        max(files, key=lambda path: path.stat().st_size).write_bytes(b"")
        stderr = _finish(environment, workdir)
        assert f"checkpoint {newest} cannot be read" in stderr
        assert _results(workdir) == _results(finished[0])

    def test_damaged_cells_are_made_again_and_cost_no_others(
        self,
        environment: dict[str, str],
        finished: tuple[Path, "subprocess.CompletedProcess[str]"],
        tmp_path: Path,
    ) -> None:
        workdir = tmp_path / "[run]"  # and whatever its name is
        shutil.copytree(finished[0], workdir)
        damaged, whole = sorted(workdir.glob("cells/*.json"))
        damaged.write_bytes(bytes(damaged.stat().st_size))
        left = workdir / "checkpoints" / whole.stem / "30"
        left.mkdir(parents=True)
        before = whole.stat().st_mtime_ns
        stderr = _finish(environment, workdir)
        assert f"{damaged} is damaged and made again" in stderr
        assert whole.stat().st_mtime_ns == before
        assert _results(workdir) == _results(finished[0])
        assert not any((workdir / "checkpoints").iterdir())


@pytest.mark.slow
def test_finished_trainings_keep_no_checkpoints(
    finished: tuple[Path, "subprocess.CompletedProcess[str]"],
) -> None:
    assert not any((finished[0] / "checkpoints").iterdir())


@pytest.mark.heavy
class TestOtherDevices:
    """Every run below is compared, bit for bit, with an unbroken one on one device."""

    @pytest.mark.long
    def test_a_run_that_goes_on_with_more_and_with_fewer(
        self, environment: dict[str, str], one_device: list[dict[str, Any]], tmp_path: Path
    ) -> None:
        workdir = tmp_path / "run"
        for devices, saves in ((2, 6), (8, 4)):
            code, stderr = _break(
                _with_devices(environment, devices),
                workdir,
                signal.SIGTERM,
                *LONGER,
                saves=saves,
            )
            assert code == 128 + signal.SIGTERM, stderr
            assert f"backend cpu, {devices} devices" in stderr
        _finish(_with_devices(environment, 1), workdir, *LONGER)
        assert _results(workdir)["cells"] == one_device

    def test_two_processes_of_which_one_is_stopped(
        self, environment: dict[str, str], one_device: list[dict[str, Any]], tmp_path: Path
    ) -> None:
        """Each has two devices, and one of these nothing to do. Both end when one does."""
        workdir = tmp_path / "run"
        with _two_processes(environment, workdir) as processes:
            while len(_saved(workdir)) < 3:
                assert [process.poll() for process in processes] == [None, None]
                time.sleep(0.01)
            processes[1].terminate()
            said = [process.communicate(timeout=60) for process in processes]
            assert [process.returncode for process in processes] == [42, 42], said
            assert re.search("process 1 .* told to stop", said[0][1])
        with _two_processes(environment, workdir) as processes:
            said = [process.communicate(timeout=600) for process in processes]
            assert [process.returncode for process in processes] == [0, 0], said
        assert "backend cpu, 4 devices" in said[0][1]
        assert "cannot be read" not in said[0][1]
        assert f"wrote {workdir / 'results.json'}" in said[0][0]
        assert said[1] == ("", "")
        results = _results(workdir)
        assert (results["complete"], results["cells"]) == (True, one_device)


@contextlib.contextmanager
def _two_processes(
    environment: dict[str, str], workdir: Path
) -> Iterator[list["subprocess.Popen[str]"]]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    common = _with_devices(environment, 2) | {
        "JAX_COORDINATOR_ADDRESS": address,
        "JAX_NUM_PROCESSES": "2",
    }
    words = (workdir, *LONGER, "--config.mesh.ablation=3")
    processes = [_start(common | {"JAX_PROCESS_ID": str(index)}, *words) for index in range(2)]
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.communicate()
