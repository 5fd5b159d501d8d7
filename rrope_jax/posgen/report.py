"""The PosGen report.

Nothing here writes files: `markdown` returns text, and `plots` PNG bytes by file name.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from rrope_jax.posgen import labels, published
from rrope_jax.posgen.plots import FIGURES, plots
from rrope_jax.posgen.results import Cell, Results
from rrope_jax.posgen.summary import (
    LEARNED_ID_ACCURACY,
    MethodSummary,
    ResonanceDifference,
    SeedStatistics,
    by_row,
    resonance_differences,
    summarise,
)
from rrope_jax.reporting.figure import plots_section
from rrope_jax.reporting.methods import method_label, order_methods
from rrope_jax.reporting.table import NOT_AVAILABLE, table
from rrope_jax.rope.methods import resonance_variant

__all__ = ["markdown", "plots"]

_NOT_LEARNED = "†"


def percent(fraction: float) -> str:
    """Formats a fraction in percent, without the sign."""
    return NOT_AVAILABLE if math.isnan(fraction) else f"{100 * fraction:.2f}"


def _points(fraction: float) -> str:
    return NOT_AVAILABLE if math.isnan(fraction) else f"{100 * fraction:+.2f}"


def mean_std(statistics: SeedStatistics | None, num_seeds: int) -> str:
    """Formats `mean ± std`, followed by n if it is not the setting's number of seeds."""
    if statistics is None or statistics.n == 0:
        return NOT_AVAILABLE
    text = percent(statistics.mean)
    if statistics.n > 1:
        text += f" ± {percent(statistics.std)}"
    return text if statistics.n == num_seeds else f"{text} (n={statistics.n})"


def ood_text(row: MethodSummary | None, num_seeds: int) -> str:
    """Formats the OOD `mean ± std`, marked if the task is not learned in distribution."""
    if row is None:
        return NOT_AVAILABLE
    text = mean_std(row.ood, num_seeds)
    return text if row.learned else f"{text} {_NOT_LEARNED}"


def _setting_value(value: Any) -> str:
    """Formats a value of the table of settings."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {item}" for key, item in value.items() if item is not None)
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value))
    return str(value)


def partial_note(results: Results) -> list[str]:
    """Says how many cells of an unfinished run there are; empty for a complete one."""
    if results.complete:
        return []
    return [
        f"**Partial run: {len(results.cells)} of {results.cells_expected} cells are finished."
        "** What is missing is listed at the end; a number from fewer seeds carries its n."
    ]


def setting_table(results: Results, keys: Sequence[str]) -> str:
    """Makes the table of some keys of the setting, the backend and the versions."""
    setting = results.setting
    shown = {key: setting[key] for key in keys}
    if setting.get("matmul_precision") is not None:  # earlier releases have no such key
        shown["float32 products"] = setting["matmul_precision"]
    shown |= {"backend": results.backend, "versions": results.versions}
    rows = [(key, _setting_value(value)) for key, value in shown.items()]
    return table(("setting", "value"), rows, text_columns=2)


def _header(results: Results) -> list[str]:
    setting = results.setting
    train_length, test_length = setting["train_length"], setting["test_length"]
    context = setting["j"] + setting["k"]
    parts = [f"# PosGen: {results.name}", *partial_note(results)]
    parts.append(
        f"Each token is a function of j + k = {setting['j']} + {setting['k']} earlier ones modulo "
        f"{setting['modulus']}, so guessing scores {percent(1 / setting['modulus'])} %. Models "
        f"are trained on sequences of {train_length} tokens and tested, teacher-forced, on "
        f"{test_length}: *in distribution* means positions {context} to {train_length - 1}, "
        f"*OOD* positions {train_length} to {test_length - 1}. A cell is one trained model tested "
        "under one method. All accuracies are in percent; ± is the sample standard deviation "
        "over seeds."
    )
    parts.append(setting_table(results, ("seeds", "splits", "rope", "model", "train")))
    if not setting["is_paper"]:
        parts.append(
            "This is another setting than the paper's (usually a smaller one): its numbers do not "
            "compare with the paper's Table 1 one for one."
        )
    return parts


def _by_task_and_method(
    rows: Iterable[MethodSummary],
) -> dict[tuple[str, str], MethodSummary]:
    return {(row.task, row.method): row for row in rows}


def _accuracy_table(
    rows: Sequence[MethodSummary], entry: Callable[[MethodSummary | None], str]
) -> str:
    """Makes a table of methods by tasks; `entry` formats each summary (None if no seed finished).

    If any model was trained as another method than the one tested, a column says so.
    """
    summaries = _by_task_and_method(rows)
    tasks = labels.order_tasks(row.task for row in rows)
    show_training = any(row.trained_as != row.method for row in rows)
    lines = []
    for method in order_methods(row.method for row in rows):
        line = [method_label(method)]
        if show_training:
            trainings = order_methods(r.trained_as for r in rows if r.method == method)
            line.append(" / ".join(map(method_label, trainings)))
        line += [entry(summaries.get((task, method))) for task in tasks]
        lines.append(line)
    text = ["method", "trained as"] if show_training else ["method"]
    return table([*text, *map(labels.task_label, tasks)], lines, text_columns=len(text))


def _not_learned(rows: Sequence[MethodSummary]) -> str | None:
    low = [row for row in rows if not row.learned]
    if not low:
        return None
    names = "; ".join(
        f"{method_label(row.method)} on {labels.task_label(row.task)} ({percent(row.id.mean)})"
        for row in low
    )
    return (
        f"{_NOT_LEARNED} Not learned: below {100 * LEARNED_ID_ACCURACY:.0f} % already in "
        "distribution, so that the OOD accuracy says nothing about extrapolation, and no method is "
        f"called better: {names}."
    )


def _published_difference(task: str, scaling: str) -> str:
    plain = published.TABLE_1.get((task, scaling))
    resonance = published.TABLE_1.get((task, resonance_variant(scaling)))
    if plain is None or resonance is None:
        return NOT_AVAILABLE
    return f"{resonance.mean - plain.mean:+.2f}"


def _differences_section(differences: Sequence[ResonanceDifference], is_paper: bool) -> list[str]:
    header = ["task", "scaling", "verdict", "mean", "spread", "std", "n", "higher in"]
    if is_paper:
        header.append("paper's mean")
    lines = []
    for row in differences:
        line = [
            labels.task_label(row.task),
            method_label(row.scaling),
            row.verdict,
            _points(row.mean),
            percent(row.spread),
            percent(row.std),
            str(row.n),
            f"{row.wins} of {row.n}",
        ]
        if is_paper:
            line.append(_published_difference(row.task, row.scaling))
        lines.append(line)
    verdicts = [row.verdict for row in differences]
    counts = ", ".join(f"{name} {verdicts.count(name)}" for name in sorted(set(verdicts)))
    return [
        "### Does Resonance help?",
        "OOD accuracy with Resonance minus that of the same scaling without it, in percentage "
        "points, paired by seed over the n seeds that both finished: mean and standard deviation "
        "of the differences, and in how many seeds Resonance is higher. *spread* is the pooled "
        "standard deviation of the two variants over these seeds. The verdict is a rule and no "
        "significance test: not learned where one of the two has not learned the task in "
        "distribution, else above or below when the mean difference is larger than the spread, "
        "otherwise within spread.",
        table(header, lines, text_columns=3),
        f"Verdicts: {counts}.",
    ]


def _published_text(entry: published.PublishedAccuracy | None) -> str:
    if entry is None:
        return NOT_AVAILABLE
    if entry.variance == 0:
        return f"{entry.mean:.2f} ± <{published.ZERO_VARIANCE_STD_BOUND:.1f}"
    return f"{entry.mean:.2f} ± {entry.std:.1f}"


def _order(means: Mapping[str, float]) -> str:
    return " > ".join(map(method_label, sorted(means, key=lambda m: -means[m])))


def _paper_section(rows: Sequence[MethodSummary], num_seeds: int) -> list[str]:
    summaries = _by_task_and_method(rows)
    tasks = labels.order_tasks(task for task, _ in published.TABLE_1)
    methods = order_methods(method for _, method in published.TABLE_1)
    lines = []
    for method in methods:
        line = [method_label(method)]
        for task in tasks:
            ours = summaries.get((task, method))
            line.append(_published_text(published.TABLE_1.get((task, method))))
            line.append(ood_text(ours, num_seeds))
        lines.append(line)
    sources = ("paper", "ours")
    header = ["method", *(f"{labels.task_label(task)}, {s}" for task in tasks for s in sources)]

    orders = []
    for task in tasks:
        # Both orders cover the same methods: those of the paper that are finished here too.
        ours_means = {
            method: summaries[task, method].ood.mean
            for method in methods
            if (task, method) in summaries and summaries[task, method].ood.n > 0
        }
        paper_means = {method: published.TABLE_1[task, method].mean for method in ours_means}
        if len(ours_means) > 1:
            learned = all(summaries[task, method].learned for method in ours_means)
            ours_order = _order(ours_means) if learned else "not learned"
            orders.append((labels.task_label(task), _order(paper_means), ours_order))
    parts = [
        "### Beside the paper's Table 1",
        "OOD accuracy as published (arXiv 2403.00071v2) and here. The paper prints a variance over "
        "5 seeds; the standard deviation shown for it is this project's reading (variance of the "
        "accuracy as a fraction, printed in percent: 0.43 is sqrt(0.0043), 6.6 points).",
        table(header, lines),
    ]
    if orders:
        parts += [
            "Order of the means, best first, whatever the spread:",
            table(("task", "paper", "ours"), orders, text_columns=3),
        ]
    return parts


def _seeds_section(cells: Sequence[Cell], seeds: Sequence[int]) -> list[str]:
    lines = []
    for (_, task, method), of_row in by_row(cells).items():
        by_seed = {
            cell.seed: f"{percent(cell.ood_accuracy)} ({percent(cell.id_accuracy)})"
            for cell in of_row
        }
        entries = (by_seed.get(seed, NOT_AVAILABLE) for seed in seeds)
        lines.append([labels.task_label(task), method_label(method), *entries])
    return [
        "### Every seed",
        "OOD accuracy, in brackets in distribution.",
        table(["task", "method", *(f"seed {seed}" for seed in seeds)], lines, text_columns=2),
    ]


def _protocol_section(protocol: str, results: Results) -> list[str]:
    """Returns the section of a protocol; `results` contains only cells of this protocol."""
    cells, setting = results.cells, results.setting
    rows, differences = summarise(cells), resonance_differences(cells)
    num_seeds = setting["num_seeds"]
    parts = [f"## {labels.protocol_label(protocol)} (`{protocol}`)"]
    if protocol in labels.PROTOCOL_NOTES:
        parts.append(labels.PROTOCOL_NOTES[protocol])
    parts += [
        f"### OOD accuracy, {num_seeds} {'seed' if num_seeds == 1 else 'seeds'}",
        _accuracy_table(rows, lambda row: ood_text(row, num_seeds)),
    ]
    if not_learned := _not_learned(rows):
        parts.append(not_learned)
    parts += [
        "### In-distribution accuracy",
        _accuracy_table(rows, lambda row: mean_std(row.id if row else None, num_seeds)),
    ]
    if differences:
        parts += _differences_section(differences, setting["is_paper"])
    if setting["is_paper"]:
        parts += _paper_section(rows, num_seeds)
    return parts + _seeds_section(
        cells, sorted({*setting["seeds"], *(cell.seed for cell in cells)})
    )


def missing_section(results: Results) -> list[str]:
    """Lists the cells that a partial run has not finished; empty for a complete one."""
    missing, unnamed = results.missing_cells()
    seeds: dict[tuple[str, str, str], list[str]] = {}
    for protocol, task, method, seed in missing:
        seeds.setdefault((protocol, task, method), []).append(str(seed))
    lines = [
        (protocol, labels.task_label(task), method_label(method), ", ".join(of_method))
        for (protocol, task, method), of_method in seeds.items()
    ]
    parts = []
    if lines:
        parts.append(table(("protocol", "task", "method", "seeds"), lines, text_columns=4))
    if unnamed:
        parts.append(f"Cells expected whose names these results do not tell: {unnamed}.")
    return ["## Missing cells", *parts] if parts else []


def markdown(results: Results) -> str:
    """Returns the text of report.md, which links to the images of `plots` by file name.

    Args:
      results: Complete or partial results.

    Raises:
      ValueError: A cell appears twice, or seeds of a row were trained as different methods.
    """
    results = results.in_report_order()
    parts = _header(results)
    for protocol in labels.order_protocols(cell.protocol for cell in results.cells):
        parts += _protocol_section(protocol, results.of_protocol(protocol))
    if results.cells:
        parts += plots_section(FIGURES)
    parts += missing_section(results)
    return "\n\n".join(parts) + "\n"
