"""The report of predicted against measured accuracy: text and figures.

Nothing here writes files: `markdown` returns text, and `plots` PNG bytes by file name.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

from rrope_jax.posgen import labels
from rrope_jax.posgen.comparison import (
    CLIFF_DROP,
    CLIFF_TOLERANCE,
    CLIFF_WINDOW,
    NUMBERS,
    TableRow,
    chance_of_hit,
    correlations,
)
from rrope_jax.posgen.plots import smooth_by_position
from rrope_jax.posgen.summary import LEARNED_ID_ACCURACY
from rrope_jax.reporting.colours import BLUE, GREEN, INK, VERMILLION
from rrope_jax.reporting.figure import Figures, ReportFigure, plots_section, pngs
from rrope_jax.reporting.style import legend_below
from rrope_jax.reporting.table import NOT_AVAILABLE, table

_COLOURS = (BLUE, VERMILLION, GREEN)
_MARKERS = ("o", "s", "^", "D", "v")
_PANEL_COLUMNS = 4


def markdown(rows: Sequence[TableRow]) -> str:
    """Returns the text of report.md, which links to the images of `plots` by file name."""
    parts = [
        "# PosGen: predicted against measured",
        "Predictions come from the tables alone (`rrope_jax/posgen/prediction.py`). *Retention*: "
        "the share of a query's weight that is left on the token it needs, mean over the unseen "
        "positions; higher should be better. *Worst*: the closest coincidence of an unseen "
        "distance with a near one. *Gap* and *angles*: the largest feature gap and the number of "
        "distinct angles of the features that turn within the training length, which would matter "
        "instead if unseen angles or few angles did. OOD accuracy is in percent, mean ± sample "
        "standard deviation over seeds.",
        f"A measured cliff is where the mean accuracy over {CLIFF_WINDOW} positions is lowest "
        f"against that of the {CLIFF_WINDOW} before, if by {100 * CLIFF_DROP:.0f} points or more. "
        f"It hits if it is at most {CLIFF_TOLERANCE} positions from the predicted one; a predicted "
        "one in brackets is too near to an end to be measured.",
    ]
    for setting, task in dict.fromkeys((row.setting, row.task) for row in rows):
        of_task = [row for row in rows if (row.setting, row.task) == (setting, task)]
        parts += [
            f"## {setting}: {labels.task_label(task)}",
            _accuracies(of_task),
            *_cliffs(of_task),
            *_correlations(of_task),
            *_every_seed(of_task),
        ]
    if rows:
        parts += plots_section(FIGURES)
    return "\n\n".join(parts) + "\n"


def _accuracies(rows: Sequence[TableRow]) -> str:
    return table(
        ("tables", "n", "OOD", "in distribution", *_NUMBER_TITLES, "predicted cliff", "cliff"),
        [
            (
                row.label,
                str(row.ood.n),
                _mean_std(row),
                f"{100 * row.id.mean:.1f}" + ("" if row.learned else " (not learned)"),
                f"{100 * row.prediction.retention:.1f}",
                f"{row.prediction.worst:.3f}",
                f"{row.prediction.gap:.3f}",
                str(row.prediction.angles),
                f"{row.prediction.cliff}"
                if row.cliff_is_measurable
                else f"({row.prediction.cliff})",
                _cliff_text(row),
            )
            for row in rows
        ],
    )


_NUMBER_TITLES = ("retention", "worst", "gap", "angles")


def _mean_std(row: TableRow) -> str:
    text = f"{100 * row.ood.mean:.1f}"
    return text if math.isnan(row.ood.std) else f"{text} ± {100 * row.ood.std:.1f}"


def _cliff_text(row: TableRow) -> str:
    if row.cliff is None:
        return "none"
    position, drop = row.cliff
    verdict = {True: ", hit", False: ", miss", None: ""}[row.cliff_hit]
    return f"{position} ({100 * drop:.0f} points{verdict})"


def _cliffs(rows: Sequence[TableRow]) -> list[str]:
    judged = [row for row in rows if row.cliff_hit is not None]
    if not judged:
        return []
    hits = sum(bool(row.cliff_hit) for row in judged)
    chance = sum(map(chance_of_hit, judged))
    return [
        f"Cliffs: {hits} of {len(judged)} are where they were predicted; a position at random hits "
        f"{chance:.1f} of them."
    ]


def _correlations(rows: Sequence[TableRow]) -> list[str]:
    found = correlations(rows)
    if not found:
        return []
    lines = [
        (
            each.tables,
            NUMBERS[each.number][0],
            "positive" if NUMBERS[each.number][1] > 0 else "negative",
            str(each.count),
            str(each.seeds),
            _signed(each.rho),
            NOT_AVAILABLE
            if math.isnan(each.low)
            else f"{_signed(each.low)} to {_signed(each.high)}",
            NOT_AVAILABLE if math.isnan(each.p) else f"{each.p:.4f}",
        )
        for each in found
    ]
    return [
        "Rank correlation (Spearman) of each number with the OOD accuracy over n tables, means of "
        "the seeds that all of them have, with a 90 % interval by bootstrap over seeds, and the "
        "share of permutations of the tables that come as far in the predicted direction:",
        table(
            ("tables", "number", "predicted", "n", "seeds", "correlation", "interval", "p"),
            lines,
            text_columns=3,
        ),
    ]


def _signed(value: float) -> str:
    return NOT_AVAILABLE if math.isnan(value) else f"{value:+.2f}"


def _every_seed(rows: Sequence[TableRow]) -> list[str]:
    seeds = sorted({cell.seed for row in rows for cell in row.cells})
    lines = []
    for row in rows:
        cells = {cell.seed: cell for cell in row.cells}
        entries = [
            f"{100 * cells[seed].ood_accuracy:.1f}"
            + ("*" if cells[seed].id_accuracy < LEARNED_ID_ACCURACY else "")
            if seed in cells
            else NOT_AVAILABLE
            for seed in seeds
        ]
        lines.append((row.label, *entries))
    return [
        "OOD accuracy of every seed; * broken, below "
        f"{100 * LEARNED_ID_ACCURACY:.0f} % in distribution:",
        table(("tables", *(f"seed {seed}" for seed in seeds)), lines),
    ]


def _pairs(rows: Sequence[TableRow]) -> list[tuple[str, str]]:
    return list(dict.fromkeys((row.setting, row.task) for row in rows))


def _groups(rows: Sequence[TableRow]) -> dict[str, tuple[str, str]]:
    """Color and marker of each group of rows."""
    names = dict.fromkeys(row.group for row in rows)
    looks = zip(itertools.cycle(_COLOURS), itertools.cycle(_MARKERS), strict=False)
    return dict(zip(names, looks, strict=False))


def _title(row: TableRow, rows: Sequence[TableRow]) -> str:
    several = len({each.setting for each in rows}) > 1
    return (f"{row.setting}: " if several else "") + labels.task_label(row.task)


def _draw_scatter(rows: Sequence[TableRow]) -> Figure:
    pairs, looks = _pairs(rows), _groups(rows)
    figure = Figure(figsize=(3.6 * len(NUMBERS), 3.3 * len(pairs) + 0.4))
    panels = figure.subplots(len(pairs), len(NUMBERS), squeeze=False, sharey="row")
    for (setting, task), of_pair in zip(pairs, panels, strict=True):
        shown = [row for row in rows if (row.setting, row.task) == (setting, task)]
        for axes, (number, (name, sign)) in zip(of_pair, NUMBERS.items(), strict=True):
            for row in shown:
                colour, marker = looks[row.group]
                axes.errorbar(
                    getattr(row.prediction, number),
                    100 * row.ood.mean,
                    0 if math.isnan(row.ood.std) else 100 * row.ood.std,
                    color=colour,
                    marker=marker,
                    ms=5,
                    lw=0.8,
                    alpha=0.85,
                )
            if number == "angles":
                axes.set_xscale("log")
                axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
                axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
                axes.xaxis.set_minor_formatter(NullFormatter())
            direction = "higher is better" if sign > 0 else "lower is better"
            axes.set_xlabel(f"{name}, {direction}")
        of_pair[0].set_title(_title(shown[0], rows), loc="left")
        of_pair[0].set_ylabel("measured OOD accuracy, %")
    legend_below(figure, _handles(looks))
    return figure


def _handles(looks: Mapping[str, tuple[str, str]]) -> list[Line2D]:
    return [
        Line2D([], [], color=colour, marker=marker, lw=0, label=name)
        for name, (colour, marker) in looks.items()
    ]


def _draw_accuracy(rows: Sequence[TableRow]) -> Figure:
    pairs, looks = _pairs(rows), _groups(rows)
    names = list(dict.fromkeys(row.label for row in rows))
    figure = Figure(figsize=(max(6.5, 4.2 * len(pairs) + 1.5), 0.24 * len(names) + 1.6))
    panels = figure.subplots(1, len(pairs), squeeze=False, sharey=True)[0]
    for (setting, task), axes in zip(pairs, panels, strict=True):
        shown = [row for row in rows if (row.setting, row.task) == (setting, task)]
        for row in shown:
            y = -names.index(row.label)
            colour, marker = looks[row.group]
            accuracy_S = [100 * cell.ood_accuracy for cell in row.cells]
            axes.plot(accuracy_S, [y] * len(accuracy_S), "|", color=colour, ms=7, alpha=0.7)
            axes.plot(100 * row.ood.mean, y, marker, color=colour, ms=6)
        axes.set_title(_title(shown[0], rows), loc="left")
        axes.set_xlabel("OOD accuracy, %")
        axes.grid(axis="x")
        axes.set_yticks([-index for index in range(len(names))], names)
    legend_below(figure, _handles(looks))
    return figure


def _draw_by_position(rows: Sequence[TableRow]) -> Figure:
    """One panel a table and setting, one line a task."""
    panels_of = list(dict.fromkeys((row.setting, row.label) for row in rows))
    tasks = labels.order_tasks(row.task for row in rows)
    colours = dict(zip(tasks, itertools.cycle(_COLOURS), strict=False))
    count = math.ceil(len(panels_of) / _PANEL_COLUMNS)
    figure = Figure(figsize=(3.0 * _PANEL_COLUMNS, 1.9 * count + 0.5))
    axes_of = figure.subplots(count, _PANEL_COLUMNS, squeeze=False, sharey=True).ravel()
    for axes in axes_of[len(panels_of) :]:
        axes.set_visible(False)
    several = len({row.setting for row in rows}) > 1
    for axes, (setting, label) in zip(axes_of, panels_of, strict=False):
        for row in rows:
            if (row.setting, row.label) == (setting, label):
                _draw_positions(axes, row, colours[row.task])
        axes.set_title(f"{setting}: {label}" if several else label, loc="left", fontsize=9)
        axes.set_ylim(0, 104)
    for axes in axes_of[::_PANEL_COLUMNS]:
        axes.set_ylabel("accuracy, %")
    handles = [Line2D([], [], color=colours[task], label=labels.task_label(task)) for task in tasks]
    handles.append(Line2D([], [], color=INK, ls=(0, (2, 1.5)), label="predicted cliff"))
    handles.append(Line2D([], [], color=INK, lw=0, marker="v", label="measured cliff"))
    legend_below(figure, handles)
    return figure


def _draw_positions(axes: Axes, row: TableRow, colour: str) -> None:
    for cell in row.cells:
        smooth = smooth_by_position(np.array(cell.accuracy_by_position), row.train_length)
        axes.plot(np.arange(smooth.size), 100 * smooth, color=colour, lw=0.6, alpha=0.45)
    smooth = smooth_by_position(row.accuracy_by_position, row.train_length)
    axes.plot(np.arange(smooth.size), 100 * smooth, color=colour, lw=1.7)
    axes.axvline(row.train_length, color=INK, lw=0.8)
    axes.axvline(row.prediction.cliff, color=colour, lw=1.2, ls=(0, (2, 1.5)))
    if row.cliff is not None:
        axes.plot(row.cliff[0], 3, "v", color=colour, ms=5)


FIGURES: Figures = MappingProxyType(
    {
        "predicted.png": ReportFigure(
            "Predicted against measured",
            "Each point is the mean of a table's seeds with one sample standard deviation.",
            _draw_scatter,
        ),
        "ood_accuracy.png": ReportFigure(
            "Accuracy beyond the training length",
            "Symbols are means over seeds, strokes single seeds.",
            _draw_accuracy,
        ),
        "accuracy_by_position.png": ReportFigure(
            "Accuracy by position",
            "Thick lines are means over seeds, thin ones single seeds, smoothed over 8 positions. "
            "The upright line is the training length.",
            _draw_by_position,
        ),
    }
)


def plots(rows: Sequence[TableRow]) -> dict[str, bytes]:
    """Draws the figures; returns PNG bytes by file name, deterministic for given rows."""
    return pngs(FIGURES, rows) if rows else {}
