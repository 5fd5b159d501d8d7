"""The methods of `rrope analyze` side by side: tables and a figure with one row for each."""

import dataclasses
from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rrope_jax.reporting.methods import method_colour, method_label, order_methods
from rrope_jax.reporting.table import table
from rrope_jax.rope.methods import is_resonance

_Measured = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Quantity:
    """One number for each method.

    Attributes:
      title: Its name.
      of: The results of a method -> the number; None if there is none.
      form: Format of the number.
      logarithmic: Whether it is drawn on a logarithmic axis.
    """

    title: str
    of: Callable[[_Measured], float | None]
    form: str
    logarithmic: bool = False

    def text(self, measured: _Measured) -> str:
        """The number of a method as text."""
        value = self.of(measured)
        return "none" if value is None else format(value, self.form)


def _largest_gap(measured: _Measured) -> float | None:
    return _largest(measured, "feature_gap")


def _largest_distortion(measured: _Measured) -> float | None:
    return _largest(measured, "distortion")


def _largest(measured: _Measured, name: str) -> float | None:
    """The largest entry of a list among the pre-critical features."""
    values = np.array(measured[name])[np.array(measured["pre_critical"])]
    return float(values.max()) if values.size else None


def _fewest_angles(measured: _Measured) -> int | None:
    """The fewest angles of a feature that turns."""
    return min((count for count in measured["distinct_angles"] if count > 1), default=None)


QUANTITIES = (
    Quantity("largest gap", _largest_gap, ".4g"),
    Quantity("closest coincidence", lambda measured: measured["coincidence"]["similarity"], ".3f"),
    Quantity("largest distortion", _largest_distortion, ".4g"),
    Quantity("fewest angles", _fewest_angles, "d", logarithmic=True),
    Quantity("effective rank", lambda measured: measured["effective_rank"], ".1f"),
    Quantity(
        "context bound, tokens", lambda measured: measured["context_bound"], "d", logarithmic=True
    ),
)
"""What the figure shows, from left to right."""


def gap_table(results: Mapping[str, Any]) -> str:
    """What is new to a model at the test length."""
    header = (
        "method",
        "pre-critical features",
        "largest gap among them",
        "mean gap of the others",
        "uniqueness, tokens",
        "closest coincidence",
        "attention factor",
    )
    rows = []
    for method in order_methods(results["methods"]):
        measured = results["methods"][method]
        gap, pre_critical = np.array(measured["feature_gap"]), np.array(measured["pre_critical"])
        rows.append(
            (
                method_label(method),
                str(measured["critical_dimension"]),
                QUANTITIES[0].text(measured),
                f"{gap[~pre_critical].mean():.4g}" if not pre_critical.all() else "none",
                power(measured["uniqueness"]) if is_resonance(method) else "none",
                _coincidence(measured["coincidence"]),
                f"{measured['attention_factor']:.4f}",
            )
        )
    return table(header, rows)


def resolution_table(results: Mapping[str, Any]) -> str:
    """What a method's tables tell apart, and what its rule of resonance moved."""
    shown = QUANTITIES[2:]
    rows = [
        (method_label(method), *(each.text(results["methods"][method]) for each in shown))
        for method in order_methods(results["methods"])
    ]
    return table(("method", *(each.title for each in shown)), rows)


def resolution_caption(results: Mapping[str, Any]) -> str:
    """Explains `resolution_table`."""
    train_length, test_length = results["train_length"], results["test_length"]
    base = results["least_theta"]
    least = (
        ""
        if base is None
        else f" Plain RoPE of this head size reaches {test_length} from a base of {base:.4g} on."
    )
    return (
        "The distortion is the chord by which the rule of resonance moves a pre-critical feature "
        f"at a distance of {max(train_length - 1, 1)} tokens. The fewest angles are those that the "
        f"most repetitive feature takes at {test_length} positions. The effective rank is that of "
        f"the table of cosines and sines at {train_length} positions, at most the number of "
        "rotated dimensions. Up to the context bound, tables favor similar tokens over others at "
        f"every distance (arXiv 2405.14591); it is {test_length} if they do throughout.{least}"
    )


def _coincidence(measured: _Measured) -> str:
    if measured["distance"] is None:
        return "none"
    return f"{measured['distance']} ({measured['similarity']:.3f})"


def power(value: int) -> str:
    """Formats an integer; from a million on, with four digits: 7.058e51."""
    return str(value) if value < 10**6 else f"{Decimal(value):.3e}".replace("+", "")


def draw_methods(results: Mapping[str, Any]) -> Figure:
    """Draws each quantity as bars, one for each method."""
    methods = order_methods(results["methods"])
    figure = Figure(figsize=(11.0, 0.27 * len(methods) + 1.1))
    panels = figure.subplots(1, len(QUANTITIES), sharey=True)
    for axes, quantity in zip(panels, QUANTITIES, strict=True):
        _draw_bars(axes, quantity, [results["methods"][method] for method in methods], methods)
    panels[0].set_yticks(range(len(methods)), [method_label(method) for method in methods])
    panels[0].set_ylim(len(methods) - 0.4, -0.6)  # the first method on top
    return figure


def _draw_bars(
    axes: Axes, quantity: Quantity, measured: list[_Measured], methods: tuple[str, ...]
) -> None:
    values = [quantity.of(each) or 0 for each in measured]
    colours = [method_colour(method) for method in methods]
    axes.barh(range(len(values)), values, color=colours, height=0.62)
    largest = max(values) or 1.0
    if quantity.logarithmic:
        axes.set_xscale("symlog", linthresh=1)
        axes.set_xlim(0, 30 * largest)
    else:
        axes.set_xlim(0, 1.45 * largest)
    for index, each in enumerate(measured):
        axes.annotate(
            quantity.text(each),
            (values[index], index),
            xytext=(3, 0),
            textcoords="offset points",
            va="center",
            fontsize=7.5,
        )
    axes.set_title(quantity.title, fontsize=9, loc="left")
    axes.set_xticks([])
    axes.set_xticks([], minor=True)
    axes.grid(visible=False)
    axes.tick_params(axis="y", length=0)
    axes.spines["bottom"].set_visible(False)
