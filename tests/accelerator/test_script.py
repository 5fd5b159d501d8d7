"""The script behind launch/accelerator.sh: what calls leave for the next one, and what they say."""

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from rrope_jax.cli.errors import UsageError
from rrope_jax.run.workdir import Workdir
from tests.accelerator import device_tests, planned, precision, report, results, ruler
from tests.accelerator.__main__ import main
from tests.accelerator.call import ROOT, STORE, Call, OutOfTimeError, SkippedError
from tests.accelerator.parts import PARTS
from tests.accelerator.report import LIMIT

IDENTITY = {"platform": "cpu", "small": True}


@pytest.fixture
def workdir(tmp_path: Path) -> Workdir:
    return Workdir.claim(tmp_path / "work", IDENTITY)


def _call(workdir: Workdir, seconds: float = 100.0, part: str = "plan") -> Call:
    return Call(part, "cpu", small=False, workdir=workdir, deadline=time.time() + seconds)


class TestMeasurements:
    def test_are_made_once(self, workdir: Workdir) -> None:
        numbers = itertools.count()
        for _ in range(2):
            made = _call(workdir).measure("one", 1.0, lambda: {"number": next(numbers)})
            assert made["number"] == 0
        assert next(numbers) == 1

    def test_do_not_begin_without_their_time(self, workdir: Workdir) -> None:
        with pytest.raises(OutOfTimeError, match=r"one takes some 60 s, and \d+ s are left"):
            _call(workdir, 50.0).measure("one", 60.0, dict)
        assert not (workdir.path / "plan").exists()

    @pytest.mark.parametrize(
        ("error", "kind"), [(SkippedError("no torch"), "skipped"), (ValueError("no"), "failed")]
    )
    def test_that_fail_leave_the_others_alone(
        self, workdir: Workdir, error: Exception, kind: str
    ) -> None:
        def fails() -> dict[str, Any]:
            raise error

        assert str(error) in _call(workdir).measure("one", 0.0, fails)[kind]
        assert _call(workdir).measure("two", 0.0, lambda: {"is": 2})["is"] == 2

    def test_that_are_cut_off_leave_nothing(self, workdir: Workdir) -> None:
        def cut_off() -> dict[str, Any]:
            raise OutOfTimeError("later")

        with pytest.raises(OutOfTimeError):
            _call(workdir).measure("one", 0.0, cut_off)
        assert list((workdir.path).glob("plan/*")) == []

    def test_commands_end_in_time(self, workdir: Workdir) -> None:
        began = time.monotonic()
        with pytest.raises(OutOfTimeError):
            _call(workdir, 3.0).run(["-c", "import time; time.sleep(60)"])
        assert time.monotonic() - began < 30

    def test_a_failing_command_says_why(self, workdir: Workdir) -> None:
        with pytest.raises(RuntimeError, match=r"ended with 3: [\s\S]*the reason"):
            _call(workdir).run(["-c", "import sys; print('the reason', file=sys.stderr); exit(3)"])


def _seeds(*losses: float) -> dict[str, Any]:
    names = [name for name in precision.COMPARED if name != "train_loss"]
    return {"seeds": [{"train_loss": loss, **dict.fromkeys(names, 0.5)} for loss in losses]}


class TestCrashes:
    """What ends the process of a part is the result of the measurement that was being made."""

    def test_are_results(self, workdir: Workdir) -> None:
        workdir.write_text("plan/.running", "1B")
        assert results.fail_running(workdir, "plan", "its process ended with -6")
        assert "ended with -6" in workdir.read_json("plan/1B.json")["failed"]
        assert not results.fail_running(workdir, "plan", "again")  # it is told once

    def test_what_hangs_is_given_up_in_the_second_call(self, workdir: Workdir) -> None:
        for second in (False, True):
            workdir.write_text("plan/.running", "1B")
            assert results.cut_off(workdir, "plan") == second
            assert (workdir.path / "plan" / "1B.json").exists() == second

    def test_nothing_is_running_after_a_measurement(self, workdir: Workdir) -> None:
        call = _call(workdir)
        seen = call.measure("one", 0.0, lambda: {"is": (call.folder / ".running").read_text()})
        assert seen["is"] == "one"
        assert not results.fail_running(workdir, "plan", "no")


class TestPrecision:
    REFERENCE = _seeds(1.0, 2.0, 3.0)  # 2 with a spread of 1

    @pytest.mark.parametrize(
        ("bfloat16", "tensorfloat32", "mode"),
        [
            (_seeds(1.5, 2.5, 3.5), _seeds(9.0, 9.0, 9.0), "bfloat16"),
            (_seeds(3.0, 3.5, 4.0), _seeds(1.0, 2.0, 2.5), "tensorfloat32"),
            (_seeds(0.0, 0.5, 1.0), _seeds(4.0, 4.5, 5.0), "float32"),
            ({"failed": "no memory"}, _seeds(1.0, 2.0, 3.0), "tensorfloat32"),
        ],
    )
    def test_the_fastest_mode_within_the_spread(
        self, bfloat16: dict[str, Any], tensorfloat32: dict[str, Any], mode: str
    ) -> None:
        modes = {"bfloat16": bfloat16, "tensorfloat32": tensorfloat32, "float32": self.REFERENCE}
        decided = precision.decide(modes)
        assert decided["mode"] == mode
        assert list(decided["why_not"]) == list(precision.MODES)[: len(decided["why_not"])]

    def test_float32_where_there_is_nothing_to_compare_with(self) -> None:
        modes = dict.fromkeys(precision.MODES, self.REFERENCE)
        assert precision.decide(modes | {"float32": {"failed": "no"}})["mode"] == "float32"

    def test_it_says_what_differs(self) -> None:
        modes = dict.fromkeys(precision.MODES, self.REFERENCE)
        decided = precision.decide(modes | {"bfloat16": _seeds(4.0, 4.0, 4.0)})
        assert decided["why_not"] == {
            "bfloat16": "it differs by more than the spread: train_loss 4 for 2 ± 1"
        }


class TestFoldersOfResults:
    def test_are_enough_to_go_on_with(self, workdir: Workdir, tmp_path: Path) -> None:
        workdir.write_json("plan/tiny.json", {"skipped": "for a reason"})
        results.finish(workdir, "plan")
        cells = {"config.json": {"name": "x"}, "cells/cot-rope-0.json": [{"seed": 0}]}
        for name, value in cells.items():
            workdir.write_json(f"posgen_paper/workdir/{name}", value)
        results.record_call(workdir, 1.0, {"plan": {"state": "done", "seconds": 1.0}})
        report.publish(workdir, tmp_path / "out")

        other = Workdir.claim(tmp_path / "other", IDENTITY)
        results.adopt(other, tmp_path / "out")
        assert results.collect(other) == results.collect(workdir)
        assert results.is_done(other, "plan")
        assert other.read_json("posgen_paper/workdir/cells/cot-rope-0.json") == [{"seed": 0}]

    def test_replace_nothing(self, workdir: Workdir, tmp_path: Path) -> None:
        workdir.write_json("plan/tiny.json", {"skipped": "old"})
        report.publish(workdir, tmp_path / "out")
        workdir.write_json("plan/tiny.json", {"skipped": "new"})
        results.adopt(workdir, tmp_path / "out")
        assert workdir.read_json("plan/tiny.json") == {"skipped": "new"}

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (None, "is no folder of results"),
            ("{", "is damaged"),
            ('{"platform": "cpu"}', "is damaged"),
            (
                '{"platform": "gpu", "small": false, "parts": {}, "calls": []}',
                "is of .*gpu.*give a new folder",
            ),
        ],
    )
    def test_of_something_else_are_refused(
        self, workdir: Workdir, tmp_path: Path, content: str | None, message: str
    ) -> None:
        out = tmp_path / "out"
        out.mkdir()
        name = "thesis.tex" if content is None else "results.json"
        (out / name).write_text(content or "")
        with pytest.raises(UsageError, match=message):
            results.adopt(workdir, out)
        assert (out / name).read_text() == (content or "")

    def test_stay_below_their_limit(self, workdir: Workdir, tmp_path: Path) -> None:
        """Figures are what is left out."""
        grid = workdir.path / "posgen_paper" / "workdir"
        workdir.write_text("posgen_paper/workdir/report.md", "# PosGen")
        for name in ("a.png", "b.png", "c.png"):
            (grid / name).write_bytes(b"x" * (6 * 2**20))
        written = report.publish(workdir, tmp_path / "out")
        assert [path.name for path in written if path.suffix == ".png"] == ["a.png", "b.png"]
        assert sum(path.stat().st_size for path in written) < LIMIT


def test_reports_say_what_was_skipped_and_why(workdir: Workdir) -> None:
    workdir.write_json("beside/train_1k.json", {"skipped": "no torch"})
    workdir.write_json("plan/1B.json", {"failed": "out of memory"})
    log = {"precision": {"state": "left", "seconds": 0.0, "reason": "it needs 60 s"}}
    results.record_call(workdir, 1.0, log)
    text = report.markdown(results.collect(workdir))
    assert "train_1k skipped: no torch" in text
    assert "1B failed: out of memory" in text
    assert "| PosGen in fast products, beside float32 | left | it needs 60 s |" in text
    assert "| The paper's PosGen experiment | not begun |" in text


def test_outcomes_of_tests() -> None:
    xml = """<testsuites><testsuite>
      <testcase name="a"/><testcase name="b"><failure message="off by 2&#10;more"/></testcase>
      <testcase name="c"><skipped message="needs a TPU"/></testcase>
      <testcase name="d"><skipped message="needs a TPU"/></testcase>
    </testsuite></testsuites>"""
    assert device_tests.summarize(xml) == {
        "passed": 1,
        "failures": [{"test": "b", "message": "off by 2"}],
        "skips": {"needs a TPU": 2},
    }


def test_every_file_with_marked_tests_is_run() -> None:
    assert set(device_tests.files()) == {"attention", "decoding", "phases", "step"}


@pytest.mark.parametrize(
    ("kind", "chip"),
    [
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H200", "h200"),
        ("NVIDIA A100-SXM4-80GB", "a100"),
        ("TPU v5 lite", "v5e"),
        ("TPU v5", "v5p"),
        ("TPU v6 lite", "v6e"),
        ("NVIDIA GeForce RTX 4090", None),
    ],
)
def test_chips_by_what_jax_calls_them(kind: str, chip: str | None) -> None:
    assert planned.chip_of(kind) == chip


@pytest.mark.parametrize(
    ("gib", "name"),
    [(80, "llama3_8b"), (24, "llama3.2_1b"), (6, "smollm2_135m"), (None, "smollm2_135m")],
)
def test_the_model_of_ruler_leaves_room_for_caches(gib: int | None, name: str) -> None:
    assert ruler.largest({} if gib is None else {"bytes_limit": gib * 2**30}).name == name


# --- whole calls ---------------------------------------------------------------------------------


def _words(folder: Path, *flags: str) -> list[str]:
    module = [sys.executable, "-m", "tests.accelerator", "cpu", str(folder / "out")]
    return [*module, f"--work={folder / 'work'}", *flags]


@pytest.fixture
def environment() -> dict[str, str]:
    """Programs that compile fast, and are kept between calls."""
    fast = {
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    return os.environ | fast


def _run(folder: Path, *flags: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        _words(folder, *flags),
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--parts=tests,dance"], "there is no part 'dance'; the parts are device, tests,"),
        (["--again=sing"], "--again: there is no part 'sing'"),
        (["--minutes=0"], "--minutes=0 must be above 0"),
    ],
)
def test_flags_that_mean_nothing(tmp_path: Path, flags: list[str], message: str) -> None:
    run = _run(tmp_path, *flags)
    assert run.returncode == 2
    assert message in run.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_store_that_cannot_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(STORE, "hf://models")
    with pytest.raises(SystemExit, match="2"):
        main(["cpu", str(tmp_path / "out")])
    assert f"{STORE}=hf://models: hf://models names no bucket" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_platform_that_is_not_there_ends_the_call(tmp_path: Path) -> None:
    words = [word if word != "cpu" else "gpu" for word in _words(tmp_path)]
    run = subprocess.run(
        words,
        cwd=ROOT,
        env=os.environ | {"CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 2
    assert "device: failed after" in run.stderr
    found = json.loads((tmp_path / "out" / "results.json").read_text())
    assert found["calls"][0]["parts"]["device"]["state"] == "failed"
    assert not any(found["parts"][part] for part in PARTS if part != "device")


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.peers
def test_all_parts_in_one_call(tmp_path: Path) -> None:
    run = _run(tmp_path, "--minutes=30")
    assert run.returncode == 0, run.stderr
    found = json.loads((tmp_path / "out" / "results.json").read_text())
    assert {part: found["parts"][part]["outcome"] for part in PARTS} == dict.fromkeys(PARTS, "done")
    for name in device_tests.files():
        assert found["parts"]["tests"][name]["failures"] == []
    for part in ("precision", "posgen_paper", "beside", "plan", "weights", "ruler", "store"):
        for name, value in found["parts"][part].items():
            assert "failed" not in value, f"{part}/{name}: {value}"


@pytest.mark.long
def test_killed_in_the_grid_and_continued_elsewhere(
    tmp_path: Path, environment: dict[str, str]
) -> None:
    """By SIGTERM, by SIGKILL, and with nothing left but the folder of results."""
    flags = ["--parts=precision,posgen_paper", "--minutes=20"]
    with Workdir.claim(tmp_path / "work", IDENTITY) as workdir:
        for mode in precision.MODES:
            workdir.write_json(f"precision/{mode}.json", {"failed": "left out of this test"})
    cells = tmp_path / "work" / "posgen_paper" / "workdir" / "cells"

    def kill(number: signal.Signals, trainings: int) -> int:
        call = subprocess.Popen(
            _words(tmp_path, *flags),
            cwd=ROOT,
            env=environment,
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )
        while call.poll() is None and len(list(cells.glob("*.json"))) < trainings:
            time.sleep(0.1)
        if number == signal.SIGTERM:
            call.terminate()
        else:
            os.killpg(call.pid, number)
        return call.wait()

    assert kill(signal.SIGTERM, 2) == 128 + signal.SIGTERM
    first = json.loads((tmp_path / "out" / "results.json").read_text())
    assert first["parts"]["precision"]["outcome"] == "done"
    assert "grid" not in first["parts"]["posgen_paper"]
    assert kill(signal.SIGKILL, 4) == -signal.SIGKILL
    before = {path.name: path.read_bytes() for path in cells.glob("*.json")}
    assert 4 <= len(before) < 8

    shutil.rmtree(tmp_path / "work")  # another machine
    run = _run(tmp_path, *flags, **environment)
    assert run.returncode == 0, run.stderr
    found = json.loads((tmp_path / "out" / "results.json").read_text())
    assert found["parts"]["posgen_paper"]["grid"]["mode"] == "float32"
    assert found["parts"]["posgen_paper"]["grid"]["complete"]
    assert found["parts"]["posgen_paper"]["grid"]["trainings"] == 8
    assert found["parts"]["precision"] == first["parts"]["precision"]  # not made again
    for name, value in first["posgen_workdir"].items():
        assert found["posgen_workdir"][name] == value
    assert sum(path.stat().st_size for path in (tmp_path / "out").iterdir()) < LIMIT

    again = _run(tmp_path, *flags)
    assert again.returncode == 0
    assert again.stdout.count("left)") == 1  # only the device was looked at


@pytest.mark.slow
def test_a_call_that_is_too_short_leaves_the_rest(tmp_path: Path) -> None:
    run = _run(tmp_path, "--minutes=0.6", "--no-small", "--parts=plan")
    assert run.returncode == 75
    assert run.stdout.endswith("left for the next call, which is the same command: plan\n")
    report_text = (tmp_path / "out" / "report.md").read_text()
    assert "it needs 40 s" in report_text
