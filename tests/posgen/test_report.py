"""The PosGen report: statistics, the verdict rule, markdown and figures."""

import copy
import json
import math
import re
import statistics
import struct
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure

from rrope_jax.posgen import plots, published, report, summary
from rrope_jax.posgen.results import Cell, CellKey, Results, in_report_order
from rrope_jax.reporting.methods import method_colour, method_label, order_methods

RESULTS = Path(__file__).parents[2] / "docs" / "results"
TRAIN_LENGTH, TEST_LENGTH = 16, 48

# OOD accuracies by (task, method), one for each seed 0, 1, 2.
OOD = {
    ("recursive", "rope"): (0.60, 0.70, 0.80),
    ("recursive", "resonance_rope"): (0.62, 0.70, 0.81),
    ("cot", "rope"): (0.50, 0.54, 0.58),
    ("cot", "resonance_rope"): (0.90, 0.92, 0.94),
}


def make_cell(
    task: str,
    method: str,
    seed: int,
    ood: float,
    *,
    protocol: str = "scaled_training",
    trained_as: str | None = None,
    id_accuracy: float = 0.99,
) -> dict[str, Any]:
    by_position = [None] * 4 + [id_accuracy] * 12 + [ood] * 32
    return {
        "task": task,
        "method": method,
        "protocol": protocol,
        "trained_as": trained_as or method,
        "seed": seed,
        "id_accuracy": id_accuracy,
        "ood_accuracy": ood,
        "accuracy_by_position": by_position,
        "validation_loss": [2.8, 1.0 + 0.1 * seed, 0.1],
        "validation_step": [0, 100, 200],
        "steps": 200,
        "seconds": 1.5,
    }


def make_results(raw_cells: list[dict[str, Any]], **changes: Any) -> dict[str, Any]:
    """Complete results over the seeds of the cells; `changes` replace keys, also of the setting."""
    seeds = sorted({cell["seed"] for cell in raw_cells}) or [0]
    setting = {
        "modulus": 17,
        "j": 1,
        "k": 3,
        "train_length": TRAIN_LENGTH,
        "test_length": TEST_LENGTH,
        "num_seeds": len(seeds),
        "seeds": seeds,
        "splits": "disjoint",
        "rope": {"theta": 10000.0, "factor": None},
        "model": {"d_model": 64},
        "train": {"steps": 200, "batch_size": 32, "learning_rate": 3e-3},
        "is_paper": False,
    }
    results = {
        "name": "tiny",
        "setting": setting,
        "backend": "cpu",
        "versions": {"jax": "0.10.2"},
        "complete": True,
        "cells_expected": len(raw_cells),
        "cells": raw_cells,
    }
    for key, value in changes.items():
        (setting if key in setting else results)[key] = value
    return results


@pytest.fixture
def results() -> dict[str, Any]:
    raw_cells = [
        make_cell(task, method, seed, ood)
        for (task, method), by_seed in OOD.items()
        for seed, ood in enumerate(by_seed)
    ]
    return make_results(raw_cells)


# What is tested, of the content of results.json.


def cells_of(results: dict[str, Any]) -> tuple[Cell, ...]:
    return in_report_order(map(Cell.from_json, results["cells"]))


def summarise(results: dict[str, Any]) -> tuple[summary.MethodSummary, ...]:
    return summary.summarise(cells_of(results))


def resonance_differences(results: dict[str, Any]) -> tuple[summary.ResonanceDifference, ...]:
    return summary.resonance_differences(cells_of(results))


def markdown(results: dict[str, Any]) -> str:
    return report.markdown(Results.from_json(results))


def pngs(results: dict[str, Any]) -> dict[str, bytes]:
    return report.plots(Results.from_json(results))


def figures(results: dict[str, Any]) -> dict[str, Figure]:
    return plots.figures(Results.from_json(results))


def table_after(text: str, heading: str) -> list[dict[str, str]]:
    """Rows of the first markdown table below the heading, as column -> text."""
    lines = text[text.index(heading) :].splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("|"))
    rows = []
    for line in lines[start:]:
        if not line.startswith("|"):
            break
        rows.append([entry.strip() for entry in line.strip("|").split("|")])
    header, _, *body = rows
    return [dict(zip(header, row, strict=True)) for row in body]


# Statistics


def test_summary_of_three_seeds_by_hand(results: dict[str, Any]) -> None:
    rows = {(row.task, row.method): row for row in summarise(results)}
    # 0.6, 0.7, 0.8: squared deviations 0.01 + 0 + 0.01 over n - 1 = 2.
    ood = rows["recursive", "rope"].ood
    assert (ood.n, ood.minimum, ood.maximum) == (3, 0.6, 0.8)
    assert ood.mean == pytest.approx(0.7)
    assert ood.std == pytest.approx(0.1)
    assert rows["recursive", "rope"].id.mean == pytest.approx(0.99)
    assert rows["recursive", "rope"].seeds == (0, 1, 2)


def test_one_seed_has_no_standard_deviation() -> None:
    (row,) = summarise(make_results([make_cell("cot", "yarn", 0, 0.5)]))
    assert row.ood.n == 1
    assert row.ood.mean == 0.5
    assert math.isnan(row.ood.std)


def test_unmeasured_accuracies_are_left_out() -> None:
    found = summary.seed_statistics([0.25, math.nan, 0.75])
    assert (found.n, found.mean) == (2, 0.5)
    assert summary.seed_statistics([math.nan]).n == 0
    assert math.isnan(summary.seed_statistics([]).mean)


def test_rows_are_in_report_order_whatever_the_order_of_the_cells(results: dict[str, Any]) -> None:
    results["cells"].reverse()
    assert [(row.task, row.method) for row in summarise(results)] == [
        ("recursive", "rope"),
        ("recursive", "resonance_rope"),
        ("cot", "rope"),
        ("cot", "resonance_rope"),
    ]


def test_paired_difference_by_hand(results: dict[str, Any]) -> None:
    recursive, cot = resonance_differences(results)
    # Differences +0.02, 0, +0.01.
    assert recursive.scaling == "rope"
    assert recursive.mean == pytest.approx(0.01)
    assert recursive.std == pytest.approx(0.01)
    assert (recursive.n, recursive.wins) == (3, 2)
    pooled = math.sqrt((0.1**2 + statistics.variance((0.62, 0.70, 0.81))) / 2)
    assert recursive.spread == pytest.approx(pooled)
    assert recursive.verdict == "within spread"
    # Means 0.54 and 0.92, standard deviations 0.04 and 0.02.
    assert cot.mean == pytest.approx(0.38)
    assert cot.spread == pytest.approx(math.sqrt((0.04**2 + 0.02**2) / 2))
    assert cot.verdict == "above"


def test_pairs_use_only_the_seeds_that_both_variants_finished() -> None:
    plain = [make_cell("cot", "yarn", seed, ood) for seed, ood in enumerate((0.1, 0.5, 0.6))]
    resonance = [
        make_cell("cot", "resonance_yarn", seed, ood) for seed, ood in ((1, 0.4), (2, 0.3))
    ]
    (row,) = resonance_differences(make_results(plain + resonance))
    assert (row.n, row.wins) == (2, 0)
    assert row.mean == pytest.approx(-0.2)  # -0.1 and -0.3; seed 0 has no partner
    assert row.verdict == "below"


def test_pairs_do_not_cross_protocols_or_need_a_known_scaling() -> None:
    raw_cells = [
        make_cell("cot", "yarn", 0, 0.5, protocol="scaled_training"),
        make_cell("cot", "resonance_yarn", 0, 0.9, protocol="scaled_at_test"),
        make_cell("cot", "mine", 0, 0.5),
        make_cell("cot", "resonance_mine", 0, 0.75),
    ]
    (row,) = resonance_differences(make_results(raw_cells))
    assert (row.scaling, row.mean) == ("mine", 0.25)


@pytest.mark.parametrize(
    ("difference", "spread", "expected"),
    [
        (0.11, 0.10, "above"),
        (-0.11, 0.10, "below"),
        (0.09, 0.10, "within spread"),
        (-0.09, 0.10, "within spread"),
        (0.10, 0.10, "within spread"),
        (0.0, 0.0, "within spread"),
        (0.5, math.nan, "no spread known"),
    ],
)
def test_verdict_rule(difference: float, spread: float, expected: str) -> None:
    assert summary.verdict(difference, spread) == expected


# Reading


def test_a_cell_given_twice_is_refused(results: dict[str, Any]) -> None:
    results["cells"].append(results["cells"][0])
    with pytest.raises(ValueError, match=r"method='rope', seed=0.*appears twice"):
        summarise(results)


def test_a_cell_without_a_key_is_refused_by_name(results: dict[str, Any]) -> None:
    del results["cells"][3]["trained_as"]
    with pytest.raises(ValueError, match="no key 'trained_as'"):
        markdown(results)


def test_results_are_written_as_they_were_read(results: dict[str, Any]) -> None:
    """And with what earlier releases did not write."""
    results["cells"][1]["ood_accuracy"] = None
    again = Results.from_json(results).to_json()
    later = {"id_loss": None, "ood_loss": None, "train_loss": []}
    assert again == results | {"cells": [cell | later for cell in results["cells"]]}
    assert Results.from_json(again).to_json() == again
    assert Results.from_json(results).cells[0].accuracy_by_position[4:6] == (0.99, 0.99)


@pytest.mark.parametrize("path", sorted(RESULTS.glob("posgen_*/results.json")), ids=str)
def test_committed_report_is_that_of_its_results(path: Path) -> None:
    """And results.json is written as it was; a committed one may lack what no report needs."""
    content = json.loads(path.read_text())
    if "cells" not in content:
        pytest.skip("several runs, see test_published_numbers")
    assert (path.parent / "report.md").read_text() == markdown(content)
    again = Results.from_json(content).to_json()
    again["cells"] = [
        {key: value for key, value in written.items() if key in cell}
        for cell, written in zip(content["cells"], again["cells"], strict=True)
    ]
    assert json.dumps(again, allow_nan=False) == json.dumps(content)


def test_losses_and_steps_of_unequal_number_are_refused(results: dict[str, Any]) -> None:
    results["cells"][0]["validation_step"].pop()
    with pytest.raises(ValueError, match="3 entries in validation_loss and 2 in validation_step"):
        pngs(results)


def test_seeds_of_a_row_with_different_trainings_are_refused(results: dict[str, Any]) -> None:
    results["cells"][0]["trained_as"] = "yarn"
    with pytest.raises(ValueError, match=r"trained_as \['rope', 'yarn'\]"):
        summarise(results)


def test_missing_cells_come_from_the_grid_of_the_setting(results: dict[str, Any]) -> None:
    results["cells"] = [cell for cell in results["cells"] if cell["task"] == "recursive"][:-1]
    results.update(complete=False, cells_expected=12)
    last = CellKey("scaled_training", "recursive", "resonance_rope", 2)
    # Nothing names the other task, so its six cells are only counted.
    assert Results.from_json(results).missing_cells() == ((last,), 6)

    results["setting"]["tasks"] = ["recursive", "cot"]
    missing, unnamed = Results.from_json(results).missing_cells()
    assert unnamed == 0
    assert missing[0] == last
    assert {key.task for key in missing[1:]} == {"cot"}
    assert len(missing) == 7


# Markdown


def test_main_table_shows_mean_and_deviation_in_percent(results: dict[str, Any]) -> None:
    rows = table_after(markdown(results), "### OOD accuracy, 3 seeds")
    assert rows == [
        {"method": "RoPE", "Recursive": "70.00 ± 10.00", "Chain-of-Thought": "54.00 ± 4.00"},
        {
            "method": "Resonance RoPE",
            "Recursive": "71.00 ± 9.54",
            "Chain-of-Thought": "92.00 ± 2.00",
        },
    ]


def test_differences_table_states_rule_and_verdict(results: dict[str, Any]) -> None:
    text = markdown(results)
    rows = table_after(text, "### Does Resonance help?")
    assert [(row["task"], row["mean"], row["verdict"]) for row in rows] == [
        ("Recursive", "+1.00", "within spread"),
        ("Chain-of-Thought", "+38.00", "above"),
    ]
    assert rows[0]["higher in"] == "2 of 3"
    assert "pooled standard deviation" in text
    assert "Verdicts: above 1, within spread 1." in text


def test_every_seed_is_shown(results: dict[str, Any]) -> None:
    rows = table_after(markdown(results), "### Every seed")
    assert rows[0] == {
        "task": "Recursive",
        "method": "RoPE",
        "seed 0": "60.00 (99.00)",
        "seed 1": "70.00 (99.00)",
        "seed 2": "80.00 (99.00)",
    }
    assert len(rows) == len(OOD)


def test_header_says_what_was_run(results: dict[str, Any]) -> None:
    text = markdown(results)
    assert "positions 4 to 15" in text
    assert "positions 16 to 47" in text
    assert "guessing scores 5.88 %" in text
    values = {row["setting"]: row["value"] for row in table_after(text, "# PosGen: tiny")}
    assert values["train"] == "steps 200, batch_size 32, learning_rate 0.003"
    assert values["rope"] == "theta 10000.0"


@pytest.fixture
def half_learned(results: dict[str, Any]) -> dict[str, Any]:
    """Plain RoPE has not learned Chain-of-Thought where it was trained."""
    for cell in results["cells"]:
        if (cell["task"], cell["method"]) == ("cot", "rope"):
            cell["id_accuracy"] = 0.57
    return results


def test_task_that_is_not_learned_has_no_winner(half_learned: dict[str, Any]) -> None:
    text = markdown(half_learned)
    assert "no method is called better: RoPE on Chain-of-Thought (57.00)." in text
    rows = table_after(text, "### OOD accuracy, 3 seeds")
    assert [row["Chain-of-Thought"] for row in rows] == ["54.00 ± 4.00 †", "92.00 ± 2.00"]
    assert [row["Recursive"] for row in rows] == ["70.00 ± 10.00", "71.00 ± 9.54"]
    differences = table_after(text, "### Does Resonance help?")
    assert [row["verdict"] for row in differences] == ["within spread", "not learned"]
    assert "Verdicts: not learned 1, within spread 1." in text


def test_learned_tasks_carry_no_mark(results: dict[str, Any]) -> None:
    assert "†" not in markdown(results)


def test_paper_order_of_a_task_that_is_not_learned_is_not_given(
    half_learned: dict[str, Any],
) -> None:
    half_learned["setting"]["is_paper"] = True
    text = markdown(half_learned)
    orders = {row["task"]: row["ours"] for row in table_after(text, "Order of the means")}
    assert orders == {"Recursive": "Resonance RoPE > RoPE", "Chain-of-Thought": "not learned"}
    rows = table_after(text, "### Beside the paper's Table 1")
    assert rows[0]["Chain-of-Thought, ours"].endswith("†")


def test_plots_mark_what_is_not_learned(half_learned: dict[str, Any]) -> None:
    drawn = figures(half_learned)
    bars = drawn["ood_accuracy.png"]
    hatches = [bar.get_hatch() for bar in bars.subfigs[0].axes[0].patches]
    assert sum(hatch is not None for hatch in hatches) == 1
    assert "not learned in distribution" in legend_texts(bars)
    left, right = drawn["accuracy_by_position.png"].subfigs[0].axes
    assert left.get_xlabel() == "position"
    assert right.get_xlabel() == "position\nnot learned in distribution: 1 of 2"


def test_partial_results_carry_their_n_and_list_what_is_missing(results: dict[str, Any]) -> None:
    results["cells"] = results["cells"][:-2]
    results["complete"] = False
    text = markdown(results)
    assert "Partial run: 10 of 12 cells" in text
    rows = table_after(text, "### OOD accuracy, 3 seeds")
    assert rows[1]["Chain-of-Thought"] == "90.00 (n=1)"
    assert table_after(text, "## Missing cells") == [
        {
            "protocol": "scaled_training",
            "task": "Chain-of-Thought",
            "method": "Resonance RoPE",
            "seeds": "1, 2",
        }
    ]


def test_complete_results_speak_of_nothing_missing(results: dict[str, Any]) -> None:
    text = markdown(results)
    assert "Missing" not in text
    assert "Partial" not in text


def test_a_run_without_a_finished_cell_still_has_a_report() -> None:
    results = make_results([], complete=False, cells_expected=12)
    text = markdown(results)
    assert "Partial run: 0 of 12" in text
    assert "tell: 12." in text
    assert "png" not in text
    assert pngs(results) == {}


def test_one_seed_report_gives_no_deviation_and_no_verdict() -> None:
    raw_cells = [make_cell("cot", "yarn", 7, 0.5), make_cell("cot", "resonance_yarn", 7, 0.9)]
    text = markdown(make_results(raw_cells))
    rows = table_after(text, "### OOD accuracy, 1 seed")
    assert [row["Chain-of-Thought"] for row in rows] == ["50.00", "90.00"]
    (difference,) = table_after(text, "### Does Resonance help?")
    assert (difference["verdict"], difference["spread"]) == ("no spread known", "n/a")
    assert not re.search(r"\bnan\b", text)


def test_scaled_at_test_says_which_training_served_the_row() -> None:
    raw_cells = [
        make_cell("cot", method, 0, 0.5, protocol=protocol, trained_as=trained_as)
        for protocol, method, trained_as in [
            ("scaled_at_test", "rope", "rope"),
            ("scaled_at_test", "resonance_yarn", "resonance_rope"),
            ("scaled_training", "rope", "rope"),
        ]
    ]
    text = markdown(make_results(raw_cells))
    at_test = text.index("(`scaled_at_test`)")
    assert text.index("(`scaled_training`)") < at_test
    rows = table_after(text[at_test:], "### OOD accuracy")
    assert [(row["method"], row["trained as"]) for row in rows] == [
        ("RoPE", "RoPE"),
        ("Resonance YaRN", "Resonance RoPE"),
    ]
    assert "trained as" not in table_after(text, "### OOD accuracy")[0]


# The paper's table


def test_published_deviation_is_the_root_of_the_variance_of_a_fraction() -> None:
    assert published.TABLE_1["recursive", "rope"].std == pytest.approx(6.557, abs=1e-3)
    assert math.isclose(published.ZERO_VARIANCE_STD_BOUND, 0.707, abs_tol=1e-3)


def test_paper_setting_shows_the_published_table_beside_ours(results: dict[str, Any]) -> None:
    results["setting"]["is_paper"] = True
    text = markdown(results)
    rows = {row["method"]: row for row in table_after(text, "### Beside the paper's Table 1")}
    assert rows["RoPE"]["Recursive, paper"] == "65.29 ± 6.6"
    assert rows["RoPE"]["Recursive, ours"] == "70.00 ± 10.00"
    assert rows["Resonance YaRN"]["Chain-of-Thought, paper"] == "99.58 ± <0.7"
    assert rows["Resonance YaRN"]["Chain-of-Thought, ours"] == "n/a"
    assert "this project's reading" in text
    orders = {row["task"]: row for row in table_after(text, "Order of the means")}
    assert orders["Recursive"]["paper"] == "RoPE > Resonance RoPE"
    assert orders["Recursive"]["ours"] == "Resonance RoPE > RoPE"
    differences = table_after(text, "### Does Resonance help?")
    assert [row["paper's mean"] for row in differences] == ["-2.65", "+5.69"]


def test_another_setting_does_not_show_the_published_table(results: dict[str, Any]) -> None:
    text = markdown(results)
    assert "do not compare" in text
    assert "65.29" not in text


# Labels


def test_method_order_and_labels() -> None:
    shuffled = ["zz", "resonance_yarn", "yarn", "resonance_rope", "aa", "ntk", "rope"]
    ordered = order_methods(shuffled)
    assert ordered == ("rope", "resonance_rope", "ntk", "yarn", "resonance_yarn", "aa", "zz")
    assert method_label("resonance_yarn") == "Resonance YaRN"
    assert method_label("resonance_zz") == "Resonance zz"


@pytest.mark.parametrize("scaling", ["rope", "yarn", "ntk_by_parts", "unheard_of"])
def test_plain_variant_is_a_tint_of_the_resonance_colour(scaling: str) -> None:
    plain = np.array(method_colour(scaling))
    resonance = np.array(method_colour(f"resonance_{scaling}"))
    tint = (1 - plain) / (1 - resonance)
    assert np.all(plain > resonance)
    np.testing.assert_allclose(tint, tint[0])


# Figures


def png_size(data: bytes) -> tuple[int, int]:
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    assert data[12:16] == b"IHDR"
    width, height = struct.unpack(">II", data[16:24])
    return width, height


def legend_texts(figure: Figure) -> list[str]:
    (legend,) = figure.legends
    return [text.get_text() for text in legend.get_texts()]


def test_plots_are_the_pngs_that_the_report_shows(results: dict[str, Any]) -> None:
    images = pngs(results)
    text = markdown(results)
    assert set(images) == {
        "ood_accuracy.png",
        "accuracy_by_position.png",
        "validation_loss.png",
    }
    for name, data in images.items():
        width, height = png_size(data)
        assert width > 600
        assert height > 400
        assert f"]({name})" in text


def test_plots_depend_on_the_results_alone(results: dict[str, Any]) -> None:
    before = pngs(results)
    shuffled = copy.deepcopy(results)
    shuffled["cells"].reverse()
    with matplotlib.rc_context({"axes.facecolor": "black", "font.size": 30}):
        again = pngs(shuffled)
        assert matplotlib.rcParams["font.size"] == 30
    assert again == before
    assert not any(b"Software" in data for data in before.values())

    shuffled["cells"][0]["ood_accuracy"] = 0.1
    assert pngs(shuffled)["ood_accuracy.png"] != before["ood_accuracy.png"]


def test_bars_stand_at_the_means_with_seeds_as_dots(results: dict[str, Any]) -> None:
    figure = figures(results)["ood_accuracy.png"]
    (axes,) = figure.subfigs[0].axes
    heights = sorted(bar.get_window_extent().height for bar in axes.patches)
    pixels_per_point = axes.bbox.height / np.diff(axes.get_ylim())[0]
    assert heights == pytest.approx([pixels_per_point * mean for mean in (54, 70, 71, 92)])
    dots = [np.asarray(c.get_offsets()) for c in axes.collections if isinstance(c, PathCollection)]
    assert [list(dots_S2[:, 1]) for dots_S2 in dots] == [
        pytest.approx([100 * accuracy for accuracy in by_seed]) for by_seed in OOD.values()
    ]
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["Recursive", "Chain-of-Thought"]
    assert legend_texts(figure) == ["RoPE", "Resonance RoPE", "guessing, 1/17"]


def test_accuracy_by_position_marks_the_training_length(results: dict[str, Any]) -> None:
    figure = figures(results)["accuracy_by_position.png"]
    left, right = figure.subfigs[0].axes
    assert [left.get_title(), right.get_title()] == ["Recursive", "Chain-of-Thought"]
    assert "training length 16" in [text.get_text() for text in left.texts]
    by_label = {str(line.get_label()): line for line in left.lines}
    y_T = np.asarray(by_label["RoPE"].get_ydata())
    assert np.isnan(y_T[:4]).all()
    np.testing.assert_allclose(y_T[4:16], 99)
    np.testing.assert_allclose(y_T[16:], 70)


def test_loss_curves_are_of_methods_not_of_trainings() -> None:
    """One training serves both here, and is validated with the tables of each."""
    raw_cells = [
        make_cell("cot", method, seed, 0.5, protocol="scaled_at_test", trained_as="rope")
        | {"validation_loss": [2.8, middle + 0.1 * seed, 0.1]}
        for method, middle in (("rope", 1.0), ("yarn", 2.0))
        for seed in (0, 1, 2)
    ]
    figure = figures(make_results(raw_cells))["validation_loss.png"]
    (axes,) = figure.subfigs[0].axes
    assert axes.get_yscale() == "log"
    for line, middle in zip(axes.lines, (1.1, 2.1), strict=True):
        np.testing.assert_allclose(
            np.asarray(line.get_xydata()), [[0.0, 2.8], [100.0, middle], [200.0, 0.1]]
        )
    assert legend_texts(figure) == ["RoPE", "YaRN"]


def test_two_protocols_have_a_row_each_and_empty_panels_say_so() -> None:
    raw_cells = [
        make_cell("cot", "rope", 0, 0.5),
        make_cell("recursive", "rope", 0, 0.5),
        make_cell("cot", "rope", 0, 0.5, protocol="scaled_at_test"),
    ]
    figure = figures(make_results(raw_cells))["accuracy_by_position.png"]
    assert [row.get_suptitle() for row in figure.subfigs] == [
        "Scaled in training and test",
        "Scaled at test only",
    ]
    empty, _ = figure.subfigs[1].axes
    assert "no cell finished" in [text.get_text() for text in empty.texts]


def test_unknown_names_single_seeds_and_unmeasured_numbers_are_drawn() -> None:
    raw_cells = [
        make_cell("new_task", "resonance_new", 0, 0.5, protocol="new_protocol"),
        make_cell("cot", "yarn", 0, 0.5),
    ]
    raw_cells[0] |= {"ood_accuracy": None, "validation_loss": [], "validation_step": []}
    results = make_results(raw_cells)
    assert len(pngs(results)) == 3
    assert "## new_protocol (`new_protocol`)" in markdown(results)


def test_legends_stay_inside_narrow_figures() -> None:
    scalings = ("ntk_by_parts", "dynamic_ntk", "ntk")
    methods = [prefix + scaling for scaling in scalings for prefix in ("", "resonance_")]
    results = make_results([make_cell("cot", method, 0, 0.5) for method in methods])
    for figure in figures(results).values():
        figure.draw_without_rendering()
        box = figure.legends[0].get_window_extent()
        assert box.x0 >= 0
        assert box.x1 <= figure.bbox.width


def test_moving_mean_by_hand() -> None:
    values = np.array([0.0, 2.0, 4.0, np.nan, 8.0])
    # Window 3: neighbours on both sides, fewer at the ends, nan skipped.
    np.testing.assert_allclose(plots.moving_mean(values, 3), [1, 2, 3, 6, 8])
    np.testing.assert_allclose(plots.moving_mean(values[:3], 1), values[:3])
    # Window 2 reaches one entry ahead.
    np.testing.assert_allclose(plots.moving_mean(values[:3], 2), [1, 3, 4])


def test_smoothing_keeps_the_step_at_the_training_length() -> None:
    accuracy_T = np.concatenate([[np.nan] * 4, np.ones(12), np.zeros(32)])
    np.testing.assert_array_equal(plots.smooth_by_position(accuracy_T, 16), accuracy_T)
