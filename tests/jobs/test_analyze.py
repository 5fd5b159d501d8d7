"""`rrope analyze` as a user runs it."""

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from rrope_jax.__main__ import main
from rrope_jax.jobs import analyze_report

ROOT = Path(__file__).parents[2]
LLAMA2 = ROOT / "configs" / "analyze_llama2.py"
POSGEN = ROOT / "configs" / "analyze_posgen.py"
FILES = {
    "results.json",
    "report.md",
    "methods.png",
    "wavelengths.png",
    "feature_gap.png",
    "coincidence.png",
    "angles.png",
}


def analyze(workdir: Path, *words: str, config: Path = POSGEN) -> dict[str, Any]:
    code = main(["analyze", f"--config={config}", f"--workdir={workdir}", *words])
    assert code == 0
    results: dict[str, Any] = json.loads((workdir / "results.json").read_text())
    return results


@pytest.mark.smoke
def test_posgen_results(tmp_path: Path) -> None:
    results = analyze(tmp_path / "run")
    assert {path.name for path in (tmp_path / "run").iterdir()} >= FILES
    assert results["critical_dimension"] == 9
    assert results["uniqueness"] == 8 * 9 * 5 * 7 * 11 * 13 * 47
    features = results["features"]
    assert [feature["index"] for feature in features] == list(range(32))
    assert [feature["pre_critical"] for feature in features] == [True] * 9 + [False] * 23
    assert [feature["resonant_wavelength"] for feature in features[:3]] == [6, 8, 11]
    assert features[0]["wavelength"] == pytest.approx(2 * math.pi)
    assert [feature["feature_gap"] for feature in features[:9]] == [0.0] * 9
    assert all(feature["plain_feature_gap"] > 0 for feature in features)
    assert all(feature["feature_gap"] > 0 for feature in features[9:])
    assert results["methods"]["yarn"]["attention_factor"] == pytest.approx(0.1 * math.log(4) + 1)


def test_llama2_command(tmp_path: Path) -> None:
    """The words of the config's first lines, in a process of its own."""
    words = [f"--config={LLAMA2}", f"--workdir={tmp_path}/run"]
    done = subprocess.run(
        [sys.executable, "-m", "rrope_jax", "analyze", *words],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=True,
    )
    assert "46 of 64 features" in done.stderr
    assert "7.058e51" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert {Path(line.removeprefix("wrote ")).name for line in done.stdout.splitlines()} == FILES
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert isinstance(results["uniqueness"], int)
    assert f"{results['uniqueness']:.3e}" == "7.058e+51"


def test_overrides_reach_the_analysis(tmp_path: Path) -> None:
    results = analyze(
        tmp_path / "run",
        "--config.rope.scaling=linear",
        "--config.rope.resonance=False",
        "--config.train_length=128",
        "--config.methods=('ntk',)",
        "--config.feature=2",
    )
    assert results["rope"]["scaling"] == "linear"
    assert results["features"][0]["wavelength"] == pytest.approx(8 * math.pi)
    assert all(f["feature_gap"] == f["plain_feature_gap"] > 0 for f in results["features"])
    assert list(results["methods"]) == ["ntk"]
    assert results["drawn_feature"] == 2


def test_closest_coincidence(tmp_path: Path) -> None:
    """The tables of posgen_quick: wavelengths 6, 11 and 32, two of which share a multiple at 66."""
    results = analyze(
        tmp_path / "run",
        "--config.train_length=32",
        "--config.test_length=128",
        "--config.rope.head_dim=32",
        "--config.rope.original_context=32",
        "--config.near=6",
    )
    found = results["methods"]["resonance_yarn"]["coincidence"]
    assert 66 <= found["distance"] < 72
    assert found["similarity"] == pytest.approx(0.975, abs=1e-3)
    assert len(found["stretches"]) == 96
    assert f"| {found['distance']} (0.975) |" in (tmp_path / "run" / "report.md").read_text()


def test_layers_with_a_sliding_window_have_wavelengths_of_their_own(tmp_path: Path) -> None:
    one = analyze(tmp_path / "one")
    two = analyze(
        tmp_path / "two",
        "--config.rope.sliding_attention.theta=100",
        "--config.rope.sliding_attention.resonance=False",
    )
    assert "layer_types" not in one
    by_type = two.pop("layer_types")
    assert two.pop("rope")["sliding_attention"] == by_type["sliding_attention"]["rope"]
    assert two == {name: one[name] for name in two}  # full-attention layers are what is measured
    assert by_type["full_attention"]["rope"] == one["rope"]
    assert by_type["full_attention"]["wavelengths"][:3] == [6, 8, 11]
    expected = [2 * math.pi * 100 ** (feature / 32) for feature in range(32)]
    assert by_type["sliding_attention"]["wavelengths"] == pytest.approx(expected)
    report = (tmp_path / "two" / "report.md").read_text()
    assert "| feature | full_attention | sliding_attention |" in report
    assert "| 1 | 8 | 7.26 |" in report
    assert "Embedding of sliding_attention layers: head_dim 64, theta 100.0" in report


def test_a_rerun_writes_the_same_bytes(tmp_path: Path) -> None:
    before = analyze(tmp_path / "run") and _contents(tmp_path / "run")
    analyze(tmp_path / "run")
    assert _contents(tmp_path / "run") == before


def _contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_report_names_methods_and_figures(tmp_path: Path) -> None:
    analyze(tmp_path / "run")
    report = (tmp_path / "run" / "report.md").read_text()
    assert "| Resonance YaRN |" in report
    assert "| 0 | 6.28 | 6 | -4.507 % | yes |" in report
    for name in analyze_report.FIGURES:
        assert f"]({name})" in report
        assert (tmp_path / "run" / name).read_bytes().startswith(b"\x89PNG")


def test_methods_side_by_side(tmp_path: Path) -> None:
    methods = ("rope", "resonance_rope", "rational_rope", "nope", "cope")
    results = analyze(
        tmp_path / "run",
        f"--config.methods={methods}",
        "--config.rope.resonance_period=64",
        "--config.rope.clipped_features=16",
    )["methods"]
    angles = [results[method]["distinct_angles"] for method in methods]
    assert [each[0] for each in angles] == [256, 6, 44, 1, 256]  # 44 tokens of 7 turns
    assert results["rope"]["distortion"] == [0.0] * 32
    moved = [max(results[method]["distortion"][:9]) for method in methods[1:3]]
    assert moved[0] > 10 * moved[1] > 0
    ranks = [results[method]["effective_rank"] for method in methods]
    assert ranks[3] == pytest.approx(1, rel=1e-4)  # square roots of eigenvalues that round to 0
    assert ranks[0] > 10
    assert results["rope"]["context_bound"] == 256
    report = (tmp_path / "run" / "report.md").read_text()
    assert "| NoPE | none | none | 1.0 | 256 |" in report
    # the theta from which plain RoPE of 64 dimensions reaches 256 tokens
    assert "from a base of 1412 on" in report


def test_takes_the_config_of_another_command(tmp_path: Path) -> None:
    """Only rope, train_length, test_length and methods are read; the model gives the head size."""
    config = tmp_path / "train.py"
    config.write_text(
        "from ml_collections import ConfigDict\n"
        "def get_config():\n"
        "    return ConfigDict(dict(train_length=16, test_length=64, methods=('rope', 'yarn'),\n"
        "        rope=dict(theta=500.0, factor=4.0, original_context=16),\n"
        "        model=dict(d_model=64, num_heads=4), tasks=('cot',)))\n"
    )
    results = analyze(tmp_path / "run", config=config)
    assert results["rope"]["head_dim"] == 16
    assert results["rope"]["theta"] == 500.0


def test_features_that_never_turn(tmp_path: Path) -> None:
    config = tmp_path / "p_rope.py"
    config.write_text(
        "from ml_collections import ConfigDict\n"
        "def get_config():\n"
        "    return ConfigDict(dict(train_length=16, test_length=64, methods=('proportional',),\n"
        "        feature=0, rope=dict(head_dim=8, scaling='proportional', resonance=True,\n"
        "        partial_rotary_factor=0.5)))\n"
    )
    results = analyze(tmp_path / "run", config=config)
    last = results["features"][-1]
    assert (last["wavelength"], last["resonant_wavelength"]) == (None, None)
    assert (last["feature_gap"], last["pre_critical"]) == (0.0, False)
    assert "never turns" in (tmp_path / "run" / "report.md").read_text()


def test_works_without_a_pre_critical_feature(tmp_path: Path) -> None:
    results = analyze(tmp_path / "run", "--config.train_length=1")
    assert results["critical_dimension"] == 0
    assert results["uniqueness"] == 1
    assert results["methods"]["rope"]["coincidence"]["distance"] is None


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("--config.rope.scaling=yern", "config.rope: scaling='yern' is unknown; choose one of"),
        ("--config.rope.head_dim=63", "config.rope: head_dim=63 must be an even integer"),
        ("--config.rope.theta=1", "config.rope: theta=1.0 must be a finite number > 1"),
        ("--config.rope.factor=0.5", "method 'yarn': config.rope: factor=0.5 must be"),
        ("--config.train_length=0", "config: train_length=0 must be at least 1"),
        ("--config.test_length=64", "config: test_length=64 must exceed train_length=64"),
        ("--config.methods=('rope', 'yern')", "config: method 'yern' is unknown; choose from"),
        ("--config.methods=()", "config: methods=() must name at least one"),
        ("--config.methods=('longrope',)", "method 'longrope': config.rope: long_factor is not"),
        ("--config.near=65", "config: near=65 must be from 1 to train_length=64"),
        ("--config.test_length=2000000000", "config: test_length=2000000000 must be at most"),
        ("--config.rope.head_dim=2147483648", "head_dim=2147483648"),
        ("--config.feature=32", "config.feature = 32: there are features 0 to 31"),
        ("--config.rope.bogus=1", "config.rope has no key 'bogus'"),
    ],
)
def test_bad_config_is_one_line_and_writes_nothing(
    word: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = main(["analyze", f"--config={POSGEN}", f"--workdir={tmp_path}/run", word])
    assert code == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_workdir_of_another_setting_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    analyze(tmp_path / "run")
    capsys.readouterr()
    before = _contents(tmp_path / "run")
    words = [f"--config={POSGEN}", f"--workdir={tmp_path}/run", "--config.rope.theta=5e5"]
    assert main(["analyze", *words]) == 2
    assert "rope.theta is 10000.0 there and 500000.0 here" in capsys.readouterr().err
    assert _contents(tmp_path / "run") == before


@pytest.mark.parametrize(
    ("value", "text"),
    [(1, "1"), (999_999, "999999"), (1_694_200_000, "1.694e9"), (10**30 - 1, "1.000e30")],
)
def test_large_numbers_are_shortened(value: int, text: str) -> None:
    results = {"critical_dimension": 1, "features": [{}], "train_length": 4, "uniqueness": value}
    assert f"after {text} tokens" in analyze_report.headline(results)
