"""Figures of an evaluation, as PNG bytes."""

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rrope_jax.reporting.colours import INK
from rrope_jax.reporting.figure import Figures, ReportFigure, pngs
from rrope_jax.reporting.methods import method_colour

_DOCUMENT_ALPHA = 0.4
_LABEL_SHARE = 0.07  # of an axis, for the label of a context
_LEFT_SHARE = 0.7  # of an axis, left of which a label to the right of a line fits


def context_axis(axes: Axes, contexts: Sequence[int]) -> None:
    """Sets up a logarithmic axis of context lengths, with a tick at each."""
    axes.set_xscale("log", base=2)
    labeled = _apart(contexts)
    axes.set_xticks(labeled, [length_text(context) for context in labeled])
    axes.minorticks_off()
    axes.set_xlabel("context, tokens")


def position_axis(axes: Axes) -> None:
    """Sets up a linear axis of positions, with ticks at multiples of a power of two."""
    longest = axes.get_xlim()[1]
    step = 2 ** max(0, round(math.log2(longest / 8)))
    ticks = np.arange(0, longest, step)
    axes.set_xticks(ticks, [length_text(tick) for tick in ticks])
    axes.set_xlim(0, longest)


def length_text(tokens: float) -> str:
    """A length in short form: 32768 is `32K`."""
    return f"{tokens / 1024:g}K" if tokens >= 1024 and tokens % 1024 == 0 else f"{tokens:g}"


def _apart(contexts: Sequence[int]) -> list[int]:
    """The contexts whose labels do not overlap on a logarithmic axis, longest first."""
    least = math.log(max(contexts) / min(contexts)) * _LABEL_SHARE
    kept: list[int] = []
    for context in sorted(contexts, reverse=True):
        if not kept or math.log(kept[-1] / context) >= least:
            kept.append(context)
    return kept


def mark_original_context(axes: Axes, tokens: int) -> None:
    """Draws a vertical line at the context before any extension; call it last."""
    if tokens > 1.1 * axes.get_xlim()[1]:
        return  # far to the right of all curves
    axes.axvline(tokens, color=INK, lw=1, ls=":")
    place, _ = axes.transAxes.inverted().transform(axes.transData.transform((tokens, 1)))
    side = 1 if place < _LEFT_SHARE else -1
    axes.annotate(
        f"original context {length_text(tokens)}",
        xy=(tokens, 1),
        xycoords=axes.get_xaxis_transform(),
        xytext=(3 * side, -2),
        textcoords="offset points",
        va="top",
        ha="left" if side == 1 else "right",
        fontsize=8.5,
    )


def perplexity_axis(axes: Axes) -> None:
    """Sets up a logarithmic axis of perplexities, labeled with plain numbers."""
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    ticks = [base * 10.0**power for power in range(-1, 8) for base in (1, 1.5, 2, 3, 5, 7)]
    inside = [tick for tick in ticks if low <= tick <= high]
    if len(inside) < 3:
        inside = [float(f"{tick:.3g}") for tick in np.geomspace(low, high, 6)[1:-1]]
    axes.set_yticks(inside, [f"{tick:g}" for tick in inside])
    axes.minorticks_off()
    axes.set_ylabel("perplexity")


def _by_fragment(results: Mapping[str, Any]) -> dict[tuple[str, int], dict[int, float]]:
    """(document, start) -> context -> loss."""
    fragments: dict[tuple[str, int], dict[int, float]] = {}
    for entry in results["perplexity_by_document"]:
        key = (entry["document"], entry["start"])
        fragments.setdefault(key, {})[entry["context"]] = entry["loss"]
    return fragments


def _draw_perplexity(results: Mapping[str, Any]) -> Figure:
    figure = Figure(figsize=(6.4, 4.2))
    axes = figure.subplots()
    colour = method_colour(results["method"])
    fragments = _by_fragment(results)
    for (name, _), losses in fragments.items():
        contexts = sorted(losses)
        values = np.exp([losses[context] for context in contexts])
        axes.plot(contexts, values, color=colour, alpha=_DOCUMENT_ALPHA, lw=1)
        axes.annotate(
            name if len(name) <= 24 else f"{name[:23]}…",
            xy=(contexts[-1], values[-1]),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            fontsize=7,
            annotation_clip=False,
        )
    contexts = [entry["context"] for entry in results["perplexity"]]
    mean = [entry["perplexity"] for entry in results["perplexity"]]
    axes.plot(contexts, mean, color=colour, lw=2.2, marker="o", ms=4, label="all documents")
    context_axis(axes, contexts)
    perplexity_axis(axes)
    mark_original_context(axes, results["original_context"])
    axes.legend(loc="upper left")
    return figure


def position_curve(results: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Positions, and the mean loss over documents around each."""
    curves = results["loss_by_position"]
    return np.array(curves[0]["end"]), np.mean([curve["loss"] for curve in curves], axis=0)


def _draw_position(results: Mapping[str, Any]) -> Figure:
    figure = Figure(figsize=(6.4, 3.8))
    axes = figure.subplots()
    colour = method_colour(results["method"])
    for curve in results["loss_by_position"]:
        axes.plot(curve["end"], curve["loss"], color=colour, alpha=_DOCUMENT_ALPHA, lw=0.8)
    axes.plot(*position_curve(results), color=colour, lw=2)
    axes.set(xlabel="position, tokens", ylabel="loss, nats")
    position_axis(axes)
    mark_original_context(axes, results["original_context"])
    return figure


def passkey_grid(
    cells: Sequence[Mapping[str, Any]], value: str
) -> tuple[list[float], list[int], np.ndarray]:
    """Depths, contexts, and one value of the passkey cells, float64[depths, contexts]."""
    depths = sorted({cell["depth"] for cell in cells})
    contexts = sorted({cell["context"] for cell in cells})
    grid = np.full((len(depths), len(contexts)), np.nan)
    for cell in cells:
        grid[depths.index(cell["depth"]), contexts.index(cell["context"])] = cell[value]
    return depths, contexts, grid


def draw_passkey(axes: Axes, cells: Sequence[Mapping[str, Any]], value: str) -> None:
    """Draws a heat map over context and depth, of `accuracy` (%) or `log_probability` (nats)."""
    depths, contexts, grid = passkey_grid(cells, value)
    accuracy = value == "accuracy"
    shown = 100 * grid if accuracy else grid
    lowest = 0.0 if accuracy else min(-12.0, float(np.nanmin(grid)))
    highest = 100.0 if accuracy else 0.0
    axes.imshow(shown, aspect="auto", cmap="viridis", vmin=lowest, vmax=highest)
    axes.grid(visible=False)
    for row, column in np.argwhere(np.isfinite(grid)):
        bright = shown[row, column] > lowest + 0.6 * (highest - lowest)
        axes.text(
            column,
            row,
            f"{shown[row, column]:.0f}" if accuracy else f"{shown[row, column]:.1f}",
            ha="center",
            va="center",
            fontsize=8,
            color=INK if bright else "white",
        )
    axes.set_xticks(range(len(contexts)), [length_text(context) for context in contexts])
    axes.set_yticks(range(len(depths)), [f"{100 * depth:g} %" for depth in depths])
    axes.set(xlabel="context, tokens", ylabel="depth of the key")


def _draw_passkey(results: Mapping[str, Any]) -> Figure:
    figure = Figure(figsize=(8.4, 3.4))
    left, right = figure.subplots(1, 2, sharey=True)
    draw_passkey(left, results["passkey"], "accuracy")
    left.set_title("keys repeated, %", loc="left")
    draw_passkey(right, results["passkey"], "log_probability")
    right.set_title("log probability of the key, nats", loc="left")
    right.set_ylabel("")
    return figure


def draw_ruler_tasks(axes: Axes, cells: Sequence[Mapping[str, Any]]) -> None:
    """Draws a heat map of RULER's scores over context and task."""
    tasks = list(dict.fromkeys(cell["task"] for cell in cells))
    contexts = sorted({cell["context"] for cell in cells})
    grid = np.full((len(tasks), len(contexts)), np.nan)
    for cell in cells:
        grid[tasks.index(cell["task"]), contexts.index(cell["context"])] = cell["score"]
    axes.imshow(grid, aspect="auto", cmap="viridis", vmin=0, vmax=100)
    axes.grid(visible=False)
    for row, column in np.argwhere(np.isfinite(grid)):
        axes.text(
            column,
            row,
            f"{grid[row, column]:.0f}",
            ha="center",
            va="center",
            fontsize=8,
            color=INK if grid[row, column] > 60 else "white",
        )
    axes.set_xticks(range(len(contexts)), [length_text(context) for context in contexts])
    axes.set_yticks(range(len(tasks)), tasks)
    axes.set_xlabel("context, tokens")


def _draw_ruler(results: Mapping[str, Any]) -> Figure:
    tasks = {cell["task"] for cell in results["ruler"]}
    figure = Figure(figsize=(8.4, 1.6 + 0.26 * max(len(tasks), 6)))
    left, right = figure.subplots(1, 2)
    draw_ruler_tasks(left, results["ruler"])
    left.set_title("score by task, %", loc="left")
    draw_ruler_means(right, results, method_colour(results["method"]), None)
    contexts = [mean["context"] for mean in results["ruler_mean"]]
    context_axis(right, contexts)
    right.set_title("mean over tasks, %", loc="left")
    mark_original_context(right, results["original_context"])
    return figure


def draw_ruler_means(
    axes: Axes, results: Mapping[str, Any], colour: Any, label: str | None
) -> None:
    """Draws a run's mean score over tasks by context."""
    means = results["ruler_mean"]
    contexts, scores = [mean["context"] for mean in means], [mean["score"] for mean in means]
    axes.plot(contexts, scores, color=colour, lw=2, marker="o", ms=4, label=label)
    axes.set_ylim(0, 100)


FIGURES: Figures = MappingProxyType(
    {
        "perplexity.png": ReportFigure(
            "Perplexity over the context",
            "Thin lines are single documents.",
            _draw_perplexity,
            needs="perplexity",
        ),
        "loss_by_position.png": ReportFigure(
            "Loss along the longest context",
            "Mean loss of the tokens around each position, or of the last ones before it where "
            "only those are predicted. Thin lines are single documents.",
            _draw_position,
            needs="loss_by_position",
        ),
        "passkey.png": ReportFigure(
            "Passkey",
            "How often the key is repeated, and how probable the model finds it. A key of five "
            "digits drawn blindly would have -11.5 nats.",
            _draw_passkey,
            needs="passkey",
        ),
        "ruler.png": ReportFigure(
            "RULER",
            "Left, the score of each task; right, the mean over the tasks.",
            _draw_ruler,
            needs="ruler",
        ),
    }
)


def figures_of(results: Mapping[str, Any]) -> Figures:
    """The figures of the sections that the results have."""
    return {name: figure for name, figure in FIGURES.items() if results.get(figure.needs)}


def plots(results: Mapping[str, Any]) -> dict[str, bytes]:
    """File name -> PNG figure, for the sections that the results have."""
    return pngs(figures_of(results), results)
