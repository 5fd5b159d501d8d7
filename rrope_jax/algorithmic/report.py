"""The report of a length sweep.

Nothing here writes files: `markdown` returns text, and `plots` PNG bytes by file name.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

from rrope_jax.algorithmic.labels import (
    guessing,
    level_label,
    order_algorithmic_tasks,
    task_name,
)
from rrope_jax.algorithmic.plots import FIGURES, plots
from rrope_jax.posgen.labels import order_protocols, protocol_label
from rrope_jax.posgen.report import (
    mean_std,
    missing_section,
    ood_text,
    partial_note,
    percent,
    setting_table,
)
from rrope_jax.posgen.results import Cell, Results
from rrope_jax.posgen.summary import LEARNED_ID_ACCURACY, MethodSummary, by_row, summarise
from rrope_jax.reporting.figure import plots_section
from rrope_jax.reporting.methods import method_label, order_methods
from rrope_jax.reporting.table import NOT_AVAILABLE, table

__all__ = ["markdown", "plots"]

_SWEEP = ("train_length", "test_length", "test_step", "test_rows")


def _header(results: Results) -> list[str]:
    setting = results.setting
    parts = [f"# Algorithmic tasks: {results.name}", *partial_note(results)]
    parts.append(
        f"Models are trained on questions of up to {setting['train_length']} tokens, drawn afresh "
        f"in every step, and tested on every {setting['test_step']}th length up to "
        f"{setting['test_length']} (rounded down to one that the task has), with "
        f"{setting['test_rows']} questions each. Accuracy is that of answer tokens, teacher-forced "
        "(token by token, with the right answer so far in the input), and a mean over lengths: *in "
        f"distribution* up to {setting['train_length']}, *beyond* those above. A cell is one "
        "trained model tested under one method. All accuracies are in percent; ± is the sample "
        "standard deviation over seeds."
    )
    keys = ("seeds", *_SWEEP, "rope", "positions", "model", "train")
    return [*parts, setting_table(results, keys)]


def _accuracy_table(
    rows: Sequence[MethodSummary], entry: Callable[[MethodSummary | None], str]
) -> str:
    """Makes a table of tasks by methods; `entry` formats each summary (None if there is none)."""
    summaries: Mapping[tuple[str, str], MethodSummary] = {(r.task, r.method): r for r in rows}
    methods = order_methods(row.method for row in rows)
    lines = [
        [
            level_label(task),
            task_name(task),
            *(entry(summaries.get((task, method))) for method in methods),
            percent(guessing(task)),
        ]
        for task in order_algorithmic_tasks(row.task for row in rows)
    ]
    header = ["level", "task", *map(method_label, methods), "guessing"]
    return table(header, lines, text_columns=2)


def _training_note(rows: Sequence[MethodSummary]) -> list[str]:
    """Says which methods were trained as others."""
    pairs = dict.fromkeys((r.method, r.trained_as) for r in rows if r.method != r.trained_as)
    if not pairs:
        return []
    names = "; ".join(f"{method_label(a)} as {method_label(b)}" for a, b in pairs)
    return [f"Trained under the tables of another method: {names}."]


def _not_learned(rows: Sequence[MethodSummary]) -> list[str]:
    if all(row.learned for row in rows):
        return []
    return [
        f"† Not learned: below {100 * LEARNED_ID_ACCURACY:.0f} % already in distribution, so that "
        "the accuracy beyond says nothing about extrapolation."
    ]


def _seeds_section(cells: Sequence[Cell], seeds: Sequence[int]) -> list[str]:
    lines = []
    for (_, task, method), of_row in by_row(cells).items():
        by_seed = {
            cell.seed: f"{percent(cell.ood_accuracy)} ({percent(cell.id_accuracy)})"
            for cell in of_row
        }
        entries = (by_seed.get(seed, NOT_AVAILABLE) for seed in seeds)
        lines.append([task_name(task), method_label(method), *entries])
    return [
        "### Every seed",
        "Accuracy beyond the training length, in brackets in distribution.",
        table(["task", "method", *(f"seed {seed}" for seed in seeds)], lines, text_columns=2),
    ]


def _protocol_section(protocol: str, results: Results) -> list[str]:
    """Returns the section of a protocol; `results` contains only cells of this protocol."""
    cells, num_seeds = results.cells, results.setting["num_seeds"]
    rows = summarise(cells)
    return [
        f"## {protocol_label(protocol)} (`{protocol}`)",
        *_training_note(rows),
        f"### Beyond the training length, {num_seeds} {'seed' if num_seeds == 1 else 'seeds'}",
        _accuracy_table(rows, lambda row: ood_text(row, num_seeds)),
        *_not_learned(rows),
        "### In distribution",
        _accuracy_table(rows, lambda row: mean_std(row.id if row else None, num_seeds)),
        *_seeds_section(cells, sorted({*results.setting["seeds"], *(c.seed for c in cells)})),
    ]


def markdown(results: Results) -> str:
    """Returns the text of report.md, which links to the images of `plots` by file name.

    Args:
      results: Complete or partial results, with cells that are `LengthCell`s.

    Raises:
      ValueError: A cell appears twice, or seeds of a row were trained as different methods.
    """
    results = results.in_report_order()
    tasks = order_algorithmic_tasks(cell.task for cell in results.cells)
    by_level = sorted(results.cells, key=lambda cell: tasks.index(cell.task))
    results = dataclasses.replace(results, cells=tuple(by_level))
    parts = _header(results)
    for protocol in order_protocols(cell.protocol for cell in results.cells):
        parts += _protocol_section(protocol, results.of_protocol(protocol))
    if results.cells:
        parts += plots_section(FIGURES)
    parts += missing_section(results)
    return "\n\n".join(parts) + "\n"
