"""The numbers in README and findings are those of the committed runs on several processors."""

import json
import re
from pathlib import Path

import pytest

from rrope_jax.posgen.summary import MethodSummary, ResonanceDifference
from rrope_jax.reporting.methods import method_label
from tests.benchmarks.posgen_processors import differences, markdown, summaries

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "docs" / "results" / "posgen_processors"
COLLECTED = json.loads((FOLDER / "results.json").read_text())
TASKS = ("recursive", "cot")
METHODS = ("rope", "resonance_rope", "yarn", "resonance_yarn")


def _rows(task: str, method: str) -> list[MethodSummary]:
    of_all = [row for rows in summaries(COLLECTED).values() for row in rows]
    return [row for row in of_all if (row.task, row.method) == (task, method)]


def _pairs(task: str, scaling: str) -> list[ResonanceDifference]:
    of_all = [row for rows in differences(COLLECTED).values() for row in rows]
    return [row for row in of_all if (row.task, row.scaling) == (task, scaling)]


def test_report_is_that_of_the_results() -> None:
    assert (FOLDER / "report.md").read_text() == markdown(COLLECTED)


@pytest.mark.parametrize("page", ["README.md", "docs/resonance_on_posgen.md"])
@pytest.mark.parametrize("method", METHODS)
def test_table_spans_the_means_of_all_processors(page: str, method: str) -> None:
    text = (ROOT / page).read_text()
    line = re.search(rf"^\| {method_label(method)} \| (\d.* to .*) \|$", text, re.M)
    assert line is not None
    entries = line[1].split(" | ")
    expected = []
    for task in TASKS:
        means = [100 * row.ood.mean for row in _rows(task, method)]
        assert len(means) == len(COLLECTED["processors"])
        expected.append(f"{min(means):.1f} to {max(means):.1f}")
    assert entries == [*expected, "not learned"]


def test_what_is_called_learned_is_learned_everywhere() -> None:
    for method in METHODS:
        assert all(row.learned for task in TASKS for row in _rows(task, method))
        assert not any(row.learned for row in _rows("semi_recursive", method))


def test_resonance_is_ahead_in_chain_of_thought_in_every_seed_of_every_run() -> None:
    for scaling in ("rope", "yarn"):
        for pair in _pairs("cot", scaling):
            assert (pair.verdict, pair.wins) == ("above", pair.n)


def test_resonance_is_never_behind_in_recursive() -> None:
    assert all(
        pair.mean > 0 for scaling in ("rope", "yarn") for pair in _pairs("recursive", scaling)
    )
    assert all(pair.wins == pair.n for pair in _pairs("recursive", "rope"))
