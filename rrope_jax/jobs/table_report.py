"""The report of `rrope table`."""

import math
from collections.abc import Sequence
from pathlib import PurePath
from types import MappingProxyType

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from rrope_jax.evaluation.plots import length_text
from rrope_jax.evaluation.units import seconds_of
from rrope_jax.jobs.table_rows import Accuracy, Row, TextLoss, contexts_of, tasks_of
from rrope_jax.posgen import labels
from rrope_jax.posgen.summary import SeedStatistics
from rrope_jax.reporting.colours import INK, PALETTE
from rrope_jax.reporting.figure import Figures, ReportFigure, plots_section, pngs
from rrope_jax.reporting.style import legend_below
from rrope_jax.reporting.table import pivot_table

_TRAINED_AS, _SECONDS, _TEXT_SECONDS = "trained as", "s a training", "s of text"
_LINEAR = 0.01  # nats; differences below are drawn on a linear scale


def markdown(rows: Sequence[Row]) -> str:
    """The text of report.md."""
    parts = [
        f"# {len(rows)} methods",
        *_notes(rows),
        pivot_table("method", _columns(rows), {row.name: _cells(row, rows) for row in rows}),
        *plots_section(FIGURES),
    ]
    return "\n\n".join(parts) + "\n"


def _notes(rows: Sequence[Row]) -> list[str]:
    notes = []
    if protocols := dict.fromkeys(protocol for protocol, _ in tasks_of(rows)):
        seeds = {a.summary.ood.n for row in rows for a in row.accuracies}
        notes.append(
            "PosGen: accuracy in percent at positions beyond the training length, mean ± sample "
            f"standard deviation over {' or '.join(map(str, sorted(seeds)))} seeds, and in "
            "brackets that within it. † Not learned: below 90 % already there. "
            + " ".join(labels.PROTOCOL_NOTES.get(protocol, "") for protocol in protocols)
        )
    if contexts_of(rows):
        documents = sorted({loss.documents for row in rows for loss in row.losses})
        notes.append(
            f"Text: loss minus that of {rows[0].name} on the same tokens, in nats a token, mean ± "
            f"sample standard deviation over {' or '.join(map(str, documents))} document"
            f"{'' if documents == [1] else 's'}; of "
            f"{rows[0].name} the loss itself."
        )
    return notes


def _columns(rows: Sequence[Row]) -> list[str]:
    of_trainings = [_TRAINED_AS, _SECONDS] if tasks_of(rows) else []
    return [
        *(_task_title(key, rows) for key in tasks_of(rows)),
        *of_trainings,
        *(_context_title(key, rows) for key in contexts_of(rows)),
        *([_TEXT_SECONDS] if any(_text_seconds(row) is not None for row in rows) else []),
    ]


def _task_title(key: tuple[str, str], rows: Sequence[Row]) -> str:
    protocol, task = key
    several = len({protocol for protocol, _ in tasks_of(rows)}) > 1
    title = labels.task_label(task)
    return f"{title} ({labels.protocol_label(protocol).lower()})" if several else title


def _context_title(key: tuple[str, int], rows: Sequence[Row]) -> str:
    checkpoint, context = key
    several = len({checkpoint for checkpoint, _ in contexts_of(rows)}) > 1
    title = length_text(context)
    return f"{PurePath(checkpoint).name} at {title}" if several else title


def _cells(row: Row, rows: Sequence[Row]) -> dict[str, str]:
    cells = {_task_title((a.protocol, a.task), rows): _accuracy_text(a) for a in row.accuracies}
    if row.accuracies:
        trained_as = dict.fromkeys(each.summary.trained_as for each in row.accuracies)
        cells[_TRAINED_AS] = ", ".join(trained_as)
        cells[_SECONDS] = f"{np.mean([each.seconds for each in row.accuracies]):.0f}"
    for loss in row.losses:
        cells[_context_title((loss.checkpoint, loss.context), rows)] = _loss_text(loss)
    if (seconds := _text_seconds(row)) is not None:
        cells[_TEXT_SECONDS] = f"{seconds:.0f}"
    return cells


def _text_seconds(row: Row) -> float | None:
    """The seconds of all evaluations of a row; None without any, or if one is not known."""
    return seconds_of(map(vars, row.losses)) if row.losses else None


def _accuracy_text(accuracy: Accuracy) -> str:
    mark = "" if accuracy.summary.learned else " †"
    return f"{_percent(accuracy.summary.ood)} ({100 * accuracy.summary.id.mean:.1f}){mark}"


def _percent(statistics: SeedStatistics) -> str:
    spread = "" if math.isnan(statistics.std) else f" ± {100 * statistics.std:.1f}"
    return f"{100 * statistics.mean:.1f}{spread}"


def _loss_text(loss: TextLoss) -> str:
    if loss.difference is None:
        return f"{loss.loss:.4f}"
    spread = "" if loss.std is None else f" ± {loss.std:.4f}"
    return f"{loss.difference:+.4f}{spread}"


def _draw(rows: Sequence[Row]) -> Figure:
    """One panel of accuracies and one for each checkpoint, with a line for each method."""
    protocols = list(dict.fromkeys(protocol for protocol, _ in tasks_of(rows)))
    checkpoints = list(dict.fromkeys(checkpoint for checkpoint, _ in contexts_of(rows)))
    count = len(protocols) + len(checkpoints)
    figure = Figure(figsize=(1.8 + 3.6 * count, 1.6 + 0.24 * len(rows)))
    panels = iter(figure.subplots(1, count, sharey=True, squeeze=False)[0])
    handles: dict[str, Line2D] = {}
    for protocol in protocols:
        handles |= _draw_accuracies(next(panels), rows, protocol)
    for checkpoint in checkpoints:
        handles |= _draw_losses(next(panels), rows, checkpoint)
    first = figure.axes[0]
    first.set_yticks(range(len(rows)), [row.name for row in rows])
    first.set_ylim(len(rows) - 0.5, -0.5)
    legend_below(figure, [handles[label] for label in handles])
    return figure


def _draw_accuracies(axes: Axes, rows: Sequence[Row], protocol: str) -> dict[str, Line2D]:
    tasks = [task for of, task in tasks_of(rows) if of == protocol]
    handles = {}
    for index, task in enumerate(tasks):
        colour, shift = PALETTE[index % len(PALETTE)], 0.22 * (index - (len(tasks) - 1) / 2)
        for height, row in enumerate(rows):
            for each in row.accuracies:
                if (each.protocol, each.task) == (protocol, task):
                    y = height + shift
                    seeds = 100 * np.array(each.ood_of_seeds)
                    filled = colour if each.summary.learned else "white"
                    axes.plot(seeds, [y] * len(seeds), "|", color=colour, ms=5, alpha=0.6)
                    axes.plot(100 * each.summary.ood.mean, y, "o", color=colour, mfc=filled, ms=4)
        label = labels.task_label(task)
        handles[label] = Line2D([], [], marker="o", ls="", ms=4, color=colour, label=label)
    axes.set_xlim(0, 101)
    axes.set_xlabel("accuracy beyond the training length, %")
    axes.set_title(labels.protocol_label(protocol), loc="left")
    return handles


def _draw_losses(axes: Axes, rows: Sequence[Row], checkpoint: str) -> dict[str, Line2D]:
    contexts = [context for of, context in contexts_of(rows) if of == checkpoint]
    handles = {}
    for index, context in enumerate(contexts):
        shade = 0.75 * (1 - index / max(len(contexts) - 1, 1))  # darker for longer contexts
        colour = (shade, shade, shade)
        for height, row in enumerate(rows):
            for each in row.losses:
                if (each.checkpoint, each.context) == (checkpoint, context):
                    axes.errorbar(
                        each.difference or 0, height, xerr=each.std, color=colour, fmt="s", ms=4
                    )
        label = f"text, {length_text(context)}"
        handles[label] = Line2D([], [], marker="s", ls="", ms=4, color=colour, label=label)
    axes.set_xscale("symlog", linthresh=_LINEAR)
    axes.axvline(0, color=INK, lw=0.8)
    axes.set_xlabel(f"loss minus that of {rows[0].name}, nats")
    axes.set_title(PurePath(checkpoint).name, loc="left")
    return handles


FIGURES: Figures = MappingProxyType(
    {
        "methods.png": ReportFigure(
            "Every method",
            "PosGen: dots are means over seeds, strokes are seeds, hollow dots are tasks not "
            "learned in distribution. Text: the loss beside the base method's, on a scale that is "
            f"linear to {_LINEAR:g} nats.",
            _draw,
        ),
    }
)


def plots(rows: Sequence[Row]) -> dict[str, bytes]:
    """File name -> PNG figure."""
    return pngs(FIGURES, rows)
