"""`rrope posgen --compare` as its users run it."""

import json
from pathlib import Path

import pytest

from rrope_jax import __main__ as cli

RESULTS = Path(__file__).parents[2] / "docs" / "results"


@pytest.mark.slow
def test_runs_of_an_earlier_release_are_put_beside_their_predictions(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = [
        str(RESULTS / name) for name in ("posgen_quick_scaled_training", "posgen_quick_unclipped")
    ]
    assert cli.main(["posgen", f"--workdir={tmp_path / 'out'}", "--compare", *folders]) == 0
    assert "predicted.png" in capsys.readouterr().out
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    measured = {
        (row["table"], row["task"]): row
        for row in results["tables"]
        if row["seeds"] == [5, 6, 7, 8, 9]
    }
    resonance = measured["Resonance YaRN in training", "recursive"]
    assert resonance["predicted"]["cliff"] == 71
    assert resonance["cliff_hit"]
    assert resonance["mean"] == pytest.approx(0.822, abs=5e-4)
    assert "71" in (tmp_path / "out" / "report.md").read_text()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--compare"], "names no folder"),
        (["--compare", "nowhere"], "nowhere/results.json cannot be read"),
        (["--compare", str(RESULTS / "smollm2_compared")], "give workdirs of rrope posgen"),
    ],
)
def test_what_is_no_run_is_refused(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["posgen", f"--workdir={tmp_path / 'out'}", *words]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
