"""Predicted against measured: statistics, cliffs, and how results are gathered."""

import dataclasses
import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import spearmanr

from rrope_jax.posgen import comparison, comparison_report
from rrope_jax.posgen.results import Cell, Results
from rrope_jax.rope import RopeSpec
from rrope_jax.rope.methods import parse_method
from rrope_jax.rope.spec import spec_for_method

_L, _TEST = 32, 64
_SETTING = {"train_length": _L, "test_length": _TEST, "j": 1, "k": 3, "modulus": 7}
_FIELDS = {
    "head_dim": 32,
    "factor": 4.0,
    "original_context": 32,
    "beta_fast": 2.0,
    "resonance_period": 32,
    "resonance_length": 64,
}
_RULES = ("", "resonance_", "rational_", "coprime_", "designed_")


def _spec_of(results: Results, protocol: str, method: str) -> RopeSpec:
    scaling, resonance = parse_method(method)
    return spec_for_method(_FIELDS, scaling, resonance=resonance)


def _cell(method: str, seed: int, protocol: str = "scaled_training", **fields: object) -> Cell:
    accuracy = [math.nan] * 4 + [1.0] * 28 + [1.0] * 12 + [0.5] * 20
    values: dict[str, object] = {
        "task": "recursive",
        "method": method,
        "protocol": protocol,
        "trained_as": method,
        "seed": seed,
        "id_accuracy": 1.0,
        "ood_accuracy": 0.6875,
        "accuracy_by_position": tuple(accuracy),
        "validation_step": (),
        "validation_loss": (),
    }
    return Cell(**values | fields)  # type: ignore[arg-type]


def _results(*cells: Cell, name: str = "tiny", **setting: object) -> Results:
    return Results(
        name=name,
        setting=_SETTING | setting,
        backend="",
        versions={},
        cells_expected=len(cells),
        complete=True,
        cells=cells,
    )


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=3, max_size=12))
def test_rank_correlation_is_that_of_scipy(pairs: list[tuple[int, int]]) -> None:
    x, y = np.array(pairs, np.float64).T
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        assert math.isnan(comparison.spearman(x, y))
    else:
        assert comparison.spearman(x, y) == pytest.approx(spearmanr(x, y).statistic)


def test_a_cliff_is_where_accuracy_falls_most() -> None:
    accuracy = np.ones(_TEST)
    accuracy[44:] = 0.75
    assert comparison.measured_cliff(accuracy, _L) == (44, 0.25)
    accuracy[50:] = 0.25  # the 8 before 50 have two of 1 and six of 0.75
    position, drop = comparison.measured_cliff(accuracy, _L) or (0, 0.0)
    assert (position, drop) == (50, pytest.approx(0.5625))


def test_there_is_no_cliff_where_accuracy_stays_or_within_training() -> None:
    accuracy = np.ones(_TEST)
    accuracy[:20] = 0.0
    assert comparison.measured_cliff(accuracy, _L) is None
    accuracy[44:] = 0.99
    assert comparison.measured_cliff(accuracy, _L) is None
    assert comparison.measured_cliff(accuracy[: _L + 10], _L) is None  # too short to tell


def test_protocols_and_runs_that_share_an_embedding_share_a_row() -> None:
    runs = [
        _results(_cell("rope", 0), _cell("rope", 0, "scaled_at_test"), _cell("yarn", 0)),
        _results(
            _cell("rope", 1),
            _cell("yarn", 1, "scaled_at_test", trained_as="rope"),
            _cell("rope", 1, task="semi_recursive"),
            _cell("learned_rope", 1),
        ),
    ]
    rows = comparison.table_rows(runs, _spec_of)
    assert [(row.label, [cell.seed for cell in row.cells]) for row in rows] == [
        ("RoPE", [0, 1]),
        ("YaRN in training", [0]),
        ("YaRN at test", [1]),
    ]
    assert [row.group for row in rows] == ["RoPE", "YaRN in training", "YaRN at test"]


def test_contradictions_between_runs_are_refused() -> None:
    again = _results(_cell("rope", 0, ood_accuracy=0.5))
    with pytest.raises(ValueError, match="two results for"):
        comparison.table_rows([_results(_cell("rope", 0)), again], _spec_of)
    with pytest.raises(ValueError, match="two runs are called 'tiny'"):
        comparison.table_rows([_results(), _results(modulus=17)], _spec_of)


def _rows_in_order(seeds: int = 3) -> tuple[comparison.TableRow, ...]:
    """Ten tables whose accuracy goes as their retention."""
    methods = [rule + scaling for scaling in ("rope", "yarn") for rule in _RULES]
    cells = [_cell(method, seed) for method, seed in itertools.product(methods, range(seeds))]
    rows = comparison.table_rows([_results(*cells)], _spec_of)
    return tuple(
        dataclasses.replace(
            row,
            cells=tuple(
                dataclasses.replace(cell, ood_accuracy=row.prediction.retention)
                for cell in row.cells
            ),
        )
        for row in rows
    )


def test_a_perfect_order_has_the_least_p() -> None:
    found = {(each.tables, each.number): each for each in comparison.correlations(_rows_in_order())}
    assert {tables for tables, _ in found} == {"all", "RoPE", "YaRN in training"}
    perfect = found["all", "retention"]
    assert (perfect.rho, perfect.low, perfect.high) == pytest.approx((1, 1, 1))
    assert perfect.p < 0.001
    assert found["all", "worst"].rho < 1


def test_one_seed_has_no_interval() -> None:
    assert all(math.isnan(each.low) for each in comparison.correlations(_rows_in_order(1)))


@pytest.mark.slow
def test_report_and_figures() -> None:
    rows = _rows_in_order()
    text = comparison_report.markdown(rows)
    assert "## tiny: Recursive" in text
    assert "| Designed RoPE | 3 | " in text
    assert "44 (50 points" in text
    images = comparison_report.plots(rows)
    assert all(f"]({name})" in text for name in images)
    assert all(image.startswith(b"\x89PNG") for image in images.values())
    assert comparison.to_json(rows)["tables"][0]["cliff"] == 44


def test_a_hit_is_near_the_prediction() -> None:
    row = _rows_in_order()[0]
    for cliff, hit in ((40, True), (48, True), (49, False), (39, False), (63, None), (33, None)):
        moved = dataclasses.replace(row.prediction, cliff=cliff)
        assert dataclasses.replace(row, prediction=moved).cliff_hit is hit, cliff
    at_44 = dataclasses.replace(row, prediction=dataclasses.replace(row.prediction, cliff=44))
    assert comparison.chance_of_hit(at_44) == pytest.approx(9 / 17)  # positions 40 to 56
