"""The figure of a length sweep: accuracy by length, a panel for each task."""

from collections.abc import Sequence
from types import MappingProxyType

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rrope_jax.algorithmic.labels import guessing, level_label, order_algorithmic_tasks, task_name
from rrope_jax.algorithmic.results import LengthCell
from rrope_jax.posgen.labels import order_protocols, protocol_label
from rrope_jax.posgen.plots import draw_over_seeds, line_handles
from rrope_jax.posgen.results import Results
from rrope_jax.posgen.summary import have_learned
from rrope_jax.reporting.colours import INK
from rrope_jax.reporting.figure import Figures, ReportFigure, pngs
from rrope_jax.reporting.methods import method_label, order_methods
from rrope_jax.reporting.style import legend_below

_COLUMNS = 4


def _length_cells(results: Results) -> list[LengthCell]:
    return [cell for cell in results.cells if isinstance(cell, LengthCell)]


def _draw_panel(axes: Axes, cells: Sequence[LengthCell], train_length: int) -> None:
    """Draws the cells of a task under a protocol."""
    task = cells[0].task
    axes.axhline(100 * guessing(task), color=INK, lw=1, ls=":", zorder=1.5, label="guessing")
    low = []
    for method in order_methods(cell.method for cell in cells):
        of_method = [cell for cell in cells if cell.method == method]
        accuracy_SP = np.array([cell.accuracy_by_length for cell in of_method])
        draw_over_seeds(axes, np.array(of_method[0].lengths), 100 * accuracy_SP, method)
        if not have_learned(of_method):
            low.append(method_label(method))
    axes.axvline(train_length, color=INK, lw=1)
    axes.set_title(f"{task_name(task)}\n{level_label(task)}", fontsize=10)
    axes.set(xlim=(0, cells[0].lengths[-1]), ylim=(0, 103))
    note = f"not learned: {', '.join(low)}" if low else ""
    axes.set_xlabel("\n".join(["question length", note]) if note else "question length")


def _draw_accuracy_by_length(results: Results) -> Figure:
    cells = _length_cells(results)
    tasks = order_algorithmic_tasks(cell.task for cell in cells)
    protocols = order_protocols(cell.protocol for cell in cells)
    columns = min(_COLUMNS, len(tasks))
    lines = -(-len(tasks) // columns)
    figure = Figure(figsize=(max(5.5, 3.1 * columns), 3.0 * lines * len(protocols) + 0.5))
    rows = figure.subfigures(len(protocols), 1, squeeze=False)[:, 0]
    for row, protocol in zip(rows, protocols, strict=True):
        if len(protocols) > 1:
            row.suptitle(protocol_label(protocol), fontsize=12, fontweight="bold")
        panels = row.subplots(lines, columns, sharey=True, squeeze=False)
        for axes in panels[:, 0]:
            axes.set_ylabel("accuracy, %")
        for axes in panels.flat[len(tasks) :]:
            axes.set_visible(False)
        for axes, task in zip(panels.flat, tasks, strict=False):
            of_panel = [c for c in cells if (c.protocol, c.task) == (protocol, task)]
            if of_panel:
                _draw_panel(axes, of_panel, results.setting["train_length"])
    legend_below(figure, line_handles(order_methods(cell.method for cell in cells)))
    return figure


FIGURES: Figures = MappingProxyType(
    {
        "accuracy_by_length.png": ReportFigure(
            "Accuracy by question length",
            "Lines are means over seeds, bands reach from the lowest to the highest seed; the "
            "vertical line is the longest question in training, the dotted line a uniform guess.",
            _draw_accuracy_by_length,
        ),
    }
)


def plots(results: Results) -> dict[str, bytes]:
    """Draws all of `FIGURES` as PNG bytes by file name; nothing if no cell has finished."""
    return pngs(FIGURES, results.in_report_order()) if results.cells else {}
