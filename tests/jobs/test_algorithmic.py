"""`rrope algorithmic` as its users run it: results, refusals, interruptions."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from rrope_jax import __main__ as cli
from rrope_jax.algorithmic.report import markdown, plots
from rrope_jax.algorithmic.results import results_from_json

ROOT = Path(__file__).parents[2]
TINY = Path(__file__).with_name("algorithmic_tiny.py")
ENVIRONMENT = os.environ | {
    "PYTHONPATH": str(ROOT),
    "JAX_PLATFORMS": "cpu",
    "JAX_NUM_CPU_DEVICES": "1",
    "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
}


def _start(workdir: Path) -> "subprocess.Popen[str]":
    words = ["algorithmic", f"--config={TINY}", f"--workdir={workdir}"]
    return subprocess.Popen(
        [sys.executable, "-m", "rrope_jax", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=workdir.parent,
        env=ENVIRONMENT,
    )


def _results(workdir: Path) -> dict[str, Any]:
    """results.json without the times, which differ from run to run."""
    results: dict[str, Any] = json.loads((workdir / "results.json").read_text())
    for cell in results["cells"]:
        assert cell.pop("seconds") > 0
    return results


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The workdir of an unbroken run."""
    workdir = tmp_path_factory.mktemp("finished") / "run"
    process = _start(workdir)
    _, error = process.communicate(timeout=600)
    assert process.returncode == 0, error
    return workdir


@pytest.mark.heavy
def test_results_have_every_length_of_every_task_and_make_the_report(finished: Path) -> None:
    results = _results(finished)
    assert results["complete"] is True
    cells = {(cell["task"], cell["method"]): cell for cell in results["cells"]}
    # Multiples of 3, odd for modular_arithmetic: 3, 5, 9, 11.
    lengths = {"reverse_string": [3, 6, 9, 12], "modular_arithmetic": [3, 5, 9, 11]}
    assert set(cells) == {(task, method) for task in lengths for method in ("rope", "yarn")}
    for (task, _), cell in cells.items():
        accuracy = cell["accuracy_by_length"]
        assert cell["lengths"] == lengths[task]
        assert cell["id_accuracy"] == pytest.approx(sum(accuracy[:2]) / 2)
        assert cell["ood_accuracy"] == pytest.approx(sum(accuracy[2:]) / 2)
        assert cell["validation_step"] == [10, 20]
    content = json.loads((finished / "results.json").read_text())
    read = results_from_json(content)
    assert json.loads(json.dumps(read.to_json())) == content
    assert markdown(read) == (finished / "report.md").read_text()
    assert plots(read).keys() == {"accuracy_by_length.png"}
    # Regular tasks come first, whatever the order of the config.
    report = markdown(read)
    assert report.index("| modular arithmetic |") < report.index("| reverse string |")


@pytest.mark.heavy
def test_killed_and_resumed_equals_unbroken(finished: Path, tmp_path: Path) -> None:
    workdir = tmp_path / "run"
    process = _start(workdir)
    while process.poll() is None and not list(workdir.glob("checkpoints/*/*")):
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, error = process.communicate(timeout=600)
    assert process.returncode == 143, error
    assert json.loads((workdir / "results.json").read_text())["complete"] is False
    again = _start(workdir)
    _, error = again.communicate(timeout=600)
    assert again.returncode == 0, error
    assert _results(workdir) == _results(finished)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["tasks=sorting"], "tasks: 'sorting' is unknown; choose from even_pairs"),
        (["tasks=solve_equation", "train_length=2", "test_step=1"], "the shortest solve_equation"),
        (["test_length=6"], "test_length=6 must be at least train_length=6 + test_step=3"),
        (["test_step=7"], "test_step=7 must be at most train_length=6"),
        (["test_rows=6"], "eval_batch_size=4 must divide test_rows=6"),
        (["model.vocab_size=9"], "vocab_size"),
        # 12 tokens, the separator and 12 of the answer
        (
            ["tasks=reverse_string", "positions.sampler=randomized", "positions.target_length=24"],
            "target_length=24 must be at least the sequence length (25)",
        ),
        (["positions.sampler=pose", "positions.target_length=8"], "target_length=8"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_written(
    overrides: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    workdir = tmp_path / "run"
    words = [f"--config={TINY}", f"--workdir={workdir}", *(f"--config.{o}" for o in overrides)]
    assert cli.main(["algorithmic", *words]) == 2
    assert message in capsys.readouterr().err
    assert not workdir.exists()
