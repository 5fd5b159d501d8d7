"""The figures of the PosGen report."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import (
    LogLocator,
    MaxNLocator,
    MultipleLocator,
    NullFormatter,
    StrMethodFormatter,
)

from rrope_jax.posgen import labels
from rrope_jax.posgen.results import Cell, Results
from rrope_jax.posgen.summary import SeedStatistics, have_learned, seed_statistics
from rrope_jax.reporting.colours import INK
from rrope_jax.reporting.figure import Figures, ReportFigure, draw, pngs
from rrope_jax.reporting.methods import method_colour, method_label, order_methods
from rrope_jax.reporting.style import legend_below
from rrope_jax.rope.methods import is_resonance

SMOOTHING_WINDOW = 8

_HATCH = "////"
_NOT_LEARNED = "not learned in distribution"


def moving_mean(values: np.ndarray, window: int) -> np.ndarray:
    """Computes a centered moving mean, ignoring nan entries and shortening the window at the ends.

    Entry i is the mean of entries i - (window - 1) // 2 to i + window // 2.

    Args:
      values: float64[n].
      window: Number of entries to average, at least 1.

    Returns:
      float64[n], nan where the whole window is nan.
    """
    measured = ~np.isnan(values)
    sums = np.concatenate([[0.0], np.cumsum(np.where(measured, values, 0.0))])
    counts = np.concatenate([[0], np.cumsum(measured)])
    index = np.arange(values.size)
    start = np.maximum(index - (window - 1) // 2, 0)
    stop = np.minimum(index + window // 2 + 1, values.size)
    total, count = sums[stop] - sums[start], counts[stop] - counts[start]
    mean = np.full(values.size, np.nan)
    np.divide(total, count, out=mean, where=count > 0)
    return mean


def smooth_by_position(accuracy_T: np.ndarray, train_length: int) -> np.ndarray:
    """Smooths accuracies by position without blurring the edge at the training length.

    Positions before `train_length` and from `train_length` on are smoothed separately. Entries that
    are nan (the seed tokens) stay nan.

    Args:
      accuracy_T: float64[T], one accuracy per position.
      train_length: First out-of-distribution position.

    Returns:
      float64[T].
    """
    parts = (accuracy_T[:train_length], accuracy_T[train_length:])
    smooth_T = np.concatenate([moving_mean(part, SMOOTHING_WINDOW) for part in parts])
    return np.where(np.isnan(accuracy_T), np.nan, smooth_T)


def _line_style(method: str) -> dict[str, Any]:
    """Returns line properties: Resonance is dark and solid, the plain variant light and dashed."""
    return {
        "color": method_colour(method),
        "linestyle": "-" if is_resonance(method) else (0, (4, 1.5)),
        "linewidth": 1.8,
    }


def line_handles(methods: Sequence[str]) -> list[Artist]:
    """Returns lines for a legend of methods."""
    return [Line2D([], [], label=method_label(m), **_line_style(m)) for m in methods]


def _draw_guessing(axes: Axes, modulus: int) -> Line2D:
    """Draws the chance level; returns the line, labeled for a legend."""
    return axes.axhline(
        100 / modulus, color=INK, lw=1, ls=":", zorder=1.5, label=f"guessing, 1/{modulus}"
    )


def draw_over_seeds(axes: Axes, x_N: np.ndarray, y_SN: np.ndarray, method: str) -> None:
    """Draws the mean over seeds as a line, with a band from the lowest to the highest seed."""
    colour = method_colour(method)
    axes.fill_between(x_N, y_SN.min(axis=0), y_SN.max(axis=0), color=colour, alpha=0.18, lw=0)
    axes.plot(x_N, y_SN.mean(axis=0), label=method_label(method), **_line_style(method))


def _rows(cells: Sequence[Cell], figure: Figure) -> Iterator[tuple[SubFigure, list[Cell]]]:
    """Yields a row of the figure for each protocol, titled if there are several, and its cells."""
    protocols = labels.order_protocols(cell.protocol for cell in cells)
    rows = figure.subfigures(len(protocols), 1, squeeze=False)[:, 0]
    for row, protocol in zip(rows, protocols, strict=True):
        if len(protocols) > 1:
            row.suptitle(labels.protocol_label(protocol), fontsize=12, fontweight="bold")
        yield row, [cell for cell in cells if cell.protocol == protocol]


def _task_panels(
    cells: Sequence[Cell], y_label: str, *, share_y: bool
) -> tuple[Figure, list[tuple[Axes, list[Cell]]]]:
    """Makes a figure with a row for each protocol and a column for each task.

    Returns:
      The figure, and each panel with its finished cells.
    """
    tasks = labels.order_tasks(cell.task for cell in cells)
    num_rows = len({cell.protocol for cell in cells})
    figure = Figure(figsize=(max(5.5, 3.4 * len(tasks)), 3.4 * num_rows + 0.4))
    panels = []
    for row, of_row in _rows(cells, figure):
        row_axes = row.subplots(1, len(tasks), sharey=share_y, squeeze=False)[0]
        row_axes[0].set_ylabel(y_label)
        for axes, task in zip(row_axes, tasks, strict=True):
            axes.set_title(labels.task_label(task))
            of_panel = [cell for cell in of_row if cell.task == task]
            if not of_panel:
                axes.text(0.5, 0.5, "no cell finished", transform=axes.transAxes, ha="center")
            panels.append((axes, of_panel))
    return figure, panels


def _not_learned(of_methods: Sequence[Sequence[Cell]]) -> list[str]:
    """Returns label lines that say how many methods of a panel have not learned the task."""
    count = sum(not have_learned(of_method) for of_method in of_methods)
    if count == 0:
        return []
    return [_NOT_LEARNED + (f": {count} of {len(of_methods)}" if count < len(of_methods) else "")]


def _draw_ood_accuracy(results: Results) -> Figure:
    cells, setting = results.cells, results.setting
    tasks = labels.order_tasks(cell.task for cell in cells)
    methods = order_methods(cell.method for cell in cells)
    num_rows = len({cell.protocol for cell in cells})
    bar_width = min(0.84 / len(methods), 0.25)
    figure = Figure(figsize=(max(6.5, 0.55 * len(tasks) * len(methods) + 2), 3.5 * num_rows + 0.4))
    all_learned = True
    for row, of_row in _rows(cells, figure):
        axes = row.subplots()
        guessing = _draw_guessing(axes, setting["modulus"])
        for (t, task), (m, method) in itertools.product(enumerate(tasks), enumerate(methods)):
            of_bar = [c for c in of_row if (c.task, c.method) == (task, method)]
            accuracy_S = [100 * cell.ood_accuracy for cell in of_bar]
            statistics = seed_statistics(accuracy_S)
            if statistics.n > 0:
                x = t + (m - (len(methods) - 1) / 2) * bar_width
                learned = have_learned(of_bar)
                all_learned &= learned
                _draw_bar(axes, x, bar_width, accuracy_S, statistics, _bar_style(method, learned))
        axes.set_xticks(range(len(tasks)), [labels.task_label(task) for task in tasks], fontsize=11)
        axes.tick_params(axis="x", length=0)
        axes.set(xlim=(-0.5, len(tasks) - 0.5), ylim=(0, 112), yticks=range(0, 101, 20))
        axes.set_ylabel(f"accuracy beyond {setting['train_length']} tokens, %")
    bars = [Patch(label=method_label(m), **_bar_style(m, learned=True)) for m in methods]
    if not all_learned:
        bars.append(Patch(facecolor="white", edgecolor=INK, hatch=_HATCH, label=_NOT_LEARNED))
    legend_below(figure, [*bars, guessing])
    return figure


def _bar_style(method: str, learned: bool) -> dict[str, Any]:
    """Returns bar properties: filled, or hatched if the task is not learned, so not a result."""
    colour = method_colour(method)
    if learned:
        return {"color": colour}
    return {"facecolor": "white", "edgecolor": colour, "hatch": _HATCH}


def _draw_bar(
    axes: Axes,
    x: float,
    width: float,
    accuracy_S: Sequence[float],
    statistics: SeedStatistics,
    bar_style: Mapping[str, Any],
) -> None:
    """Draws a bar with its standard deviation, seeds as dots, and the mean above it."""
    axes.bar(x, statistics.mean, 0.92 * width, **bar_style)
    top = statistics.maximum
    if statistics.n > 1:
        axes.errorbar(
            x, statistics.mean, statistics.std, color=INK, capsize=3, lw=1.1, capthick=1.1
        )
        top = max(top, statistics.mean + statistics.std)
    # Seeds are side by side in a fixed order, so equal values stay visible without random jitter.
    offset_S = np.linspace(-0.25, 0.25, len(accuracy_S)) * width if len(accuracy_S) > 1 else 0
    axes.scatter(
        x + offset_S, accuracy_S, s=13, color="white", edgecolors=INK, linewidths=0.8, zorder=3
    )
    axes.annotate(
        f"{statistics.mean:.1f}",
        xy=(x, top),
        xytext=(0, 5),
        textcoords="offset points",
        ha="center",
        fontsize=8.5,
    )


def _draw_accuracy_by_position(results: Results) -> Figure:
    cells, setting = results.cells, results.setting
    train_length, test_length = setting["train_length"], setting["test_length"]
    # About four ticks, all at multiples of the training length.
    tick_step = train_length * max(1, round(test_length / train_length / 4))
    figure, panels = _task_panels(cells, "accuracy, %", share_y=True)
    for axes, of_panel in panels:
        guessing = _draw_guessing(axes, setting["modulus"])
        of_methods = {
            method: [cell for cell in of_panel if cell.method == method]
            for method in order_methods(cell.method for cell in of_panel)
        }
        for method, of_method in of_methods.items():
            accuracy_ST = np.array(
                [
                    smooth_by_position(np.array(cell.accuracy_by_position), train_length)
                    for cell in of_method
                ]
            )
            draw_over_seeds(axes, np.arange(accuracy_ST.shape[1]), 100 * accuracy_ST, method)
        axes.axvline(train_length, color=INK, lw=1)
        axes.annotate(
            f"training length {train_length}",
            xy=(train_length, 1),
            xycoords=axes.get_xaxis_transform(),
            xytext=(3, 2),
            textcoords="offset points",
            fontsize=8.5,
        )
        # Leave room above the axes for the training length label, which must not cover a line.
        axes.set_title(axes.get_title(), pad=18)
        axes.xaxis.set_major_locator(MultipleLocator(tick_step))
        axes.set(xlim=(0, test_length), ylim=(0, 103))
        axes.set_xlabel("\n".join(["position", *_not_learned(list(of_methods.values()))]))
    methods = order_methods(cell.method for cell in cells)
    legend_below(figure, [*line_handles(methods), guessing])
    return figure


def _losses_over_seeds(cells: Sequence[Cell]) -> tuple[np.ndarray, np.ndarray]:
    """Returns the validation steps common to all seeds, int[N], and the losses, float64[S, N]."""
    by_step = [dict(zip(cell.validation_step, cell.validation_loss, strict=True)) for cell in cells]
    step_N = sorted(set.intersection(*map(set, by_step)))
    return np.array(step_N), np.array([[losses[step] for step in step_N] for losses in by_step])


def _draw_validation_loss(results: Results) -> Figure:
    cells = results.cells
    figure, panels = _task_panels(cells, "validation loss", share_y=False)
    for axes, of_panel in panels:
        for method in order_methods(cell.method for cell in of_panel):
            step_N, loss_SN = _losses_over_seeds(
                [cell for cell in of_panel if cell.method == method]
            )
            draw_over_seeds(axes, step_N, loss_SN, method)
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
        axes.set(xlabel="training step")
    legend_below(figure, line_handles(order_methods(cell.method for cell in cells)))
    return figure


FIGURES: Figures = MappingProxyType(
    {
        "ood_accuracy.png": ReportFigure(
            "Accuracy beyond the training length",
            "Bars are means over seeds, error bars one sample standard deviation, dots single "
            "seeds; the dotted line is guessing. Hatched: not learned in distribution, no result.",
            _draw_ood_accuracy,
        ),
        "accuracy_by_position.png": ReportFigure(
            "Accuracy by position",
            "Lines are means over seeds, bands reach from the lowest to the highest seed. Each "
            f"seed is smoothed by a centred moving mean of {SMOOTHING_WINDOW} positions, shorter "
            "at the ends and never across the training length.",
            _draw_accuracy_by_position,
        ),
        "validation_loss.png": ReportFigure(
            "Validation loss during training",
            "Lines are means over seeds (the paper's Figure 3), bands reach from the lowest to the "
            "highest seed. A training that serves several methods is validated with the tables of "
            "each. The tasks' scales differ.",
            _draw_validation_loss,
        ),
    }
)


def figures(results: Results) -> dict[str, Figure]:
    """Draws all of `FIGURES`; returns them by file name, or nothing if no cell has finished.

    Raises:
      ValueError: A cell appears twice.
    """
    return draw(FIGURES, results.in_report_order()) if results.cells else {}


def plots(results: Results) -> dict[str, bytes]:
    """Like `figures`, but as PNG bytes, deterministic for given results."""
    return pngs(FIGURES, results.in_report_order()) if results.cells else {}
