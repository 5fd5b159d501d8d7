"""The report of `rrope analyze`: markdown and figures.

Nothing here writes files: `markdown` returns text, and `plots` PNG bytes by file name.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from rrope_jax.jobs.analyze_methods import (
    draw_methods,
    gap_table,
    power,
    resolution_caption,
    resolution_table,
)
from rrope_jax.reporting.colours import BLUE, INK, VERMILLION
from rrope_jax.reporting.figure import Figures, ReportFigure, pngs
from rrope_jax.reporting.methods import method_colour, method_label, order_methods
from rrope_jax.reporting.table import table
from rrope_jax.rope import analysis
from rrope_jax.rope.methods import is_resonance, plain_variant

_SEEN, _UNSEEN = BLUE, VERMILLION
_LEFT_OUT, _SHADE = "#fbe3d3", "#f2f2f2"
# Half the height of the plot of angles, in tokens along the circle.
_WINDOW = 1.6


def headline(results: Mapping[str, Any]) -> str:
    """Summarizes the results in one sentence."""
    return (
        f"{results['critical_dimension']} of {len(results['features'])} features are pre-critical "
        f"at {results['train_length']} tokens; with whole wavelengths they repeat together after "
        f"{power(results['uniqueness'])} tokens"
    )


def markdown(results: Mapping[str, Any]) -> str:
    """Returns the report as markdown, with links to the figures in the same folder."""
    train_length, test_length = results["train_length"], results["test_length"]
    shown = [
        f"## {figure.title}\n\n![{figure.title}]({name})\n\n{figure.caption}\n"
        for name, figure in FIGURES.items()
    ]
    return "\n".join(
        [
            f"# Rotary features from {train_length} to {test_length} tokens\n",
            f"{headline(results)}.\n",
            *(
                f"Embedding{of_layers}: {_fields(fields)}.\n"
                for of_layers, fields in _embeddings(results).items()
            ),
            "## Methods\n",
            gap_table(results),
            "\nA feature is pre-critical when its wavelength is at most the training length: then "
            "training has gone round its whole circle. The gap is the chord, on a circle of radius "
            f"1, from the phase of the worst position in {train_length} to {test_length - 1} to "
            "the nearest phase seen in training. Uniqueness is the least common multiple of the "
            "pre-critical wavelengths after rounding; without rounding nothing repeats exactly. "
            f"The closest coincidence is the distance in {train_length} to {test_length - 1} that "
            f"looks most like one of {_near(results)} to the pre-critical features, with the mean "
            "cosine of their angle differences: 1 is indistinguishable.\n",
            f"{resolution_table(results)}\n",
            f"{resolution_caption(results)}\n",
            *shown,
            "## Features\n",
            _features_table(results),
            *_layer_types(results),
            "",
        ]
    )


def _embeddings(results: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The fields of the embeddings, by the words for their layers."""
    by_type = results.get("layer_types")
    if not by_type:
        return {"": results["rope"]}
    return {f" of {name} layers": found["rope"] for name, found in by_type.items()}


def _fields(fields: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in fields.items() if value is not None)


def _layer_types(results: Mapping[str, Any]) -> list[str]:
    if "layer_types" not in results:
        return []
    return ["\n## Wavelengths by layer type\n", _layer_types_table(results)]


def _layer_types_table(results: Mapping[str, Any]) -> str:
    """Wavelengths, which are those that the layers use: rounded where there is resonance."""
    by_type = results["layer_types"]
    columns = [found["wavelengths"] for found in by_type.values()]
    rows = [
        (str(index), *("" if each is None else _whole(each) for each in row))
        for index, row in enumerate(itertools.zip_longest(*columns))
    ]
    factors = [f"{found['attention_factor']:.4f}" for found in by_type.values()]
    return table(("feature", *by_type), [*rows, ("attention factor", *factors)])


def _whole(wavelength: float) -> str:
    return _tokens(int(wavelength) if float(wavelength).is_integer() else wavelength)


def _near(results: Mapping[str, Any]) -> str:
    return "0" if results["near"] == 1 else f"0 to {results['near'] - 1}"


def _features_table(results: Mapping[str, Any]) -> str:
    header = (
        "feature",
        "wavelength",
        "rounded",
        "change",
        "pre-critical",
        "gap",
        "gap after rounding",
    )
    rows = [
        (
            str(feature["index"]),
            _tokens(feature["wavelength"]),
            _tokens(feature["resonant_wavelength"]),
            f"{_change(feature):+.3f} %",
            "yes" if feature["pre_critical"] else "no",
            f"{feature['plain_feature_gap']:.4g}",
            f"{feature['resonant_feature_gap']:.4g}",
        )
        for feature in results["features"]
    ]
    return table(header, rows)


def _tokens(wavelength: float) -> str:
    if isinstance(wavelength, int):
        return f"{wavelength}"
    return f"{wavelength:.2f}" if math.isfinite(wavelength) else "never turns"


def _change(feature: Mapping[str, Any]) -> float:
    """Relative change of a wavelength by rounding, in percent."""
    if not math.isfinite(feature["wavelength"]):
        return 0.0
    return 100 * float(feature["resonant_wavelength"] / feature["wavelength"] - 1)


def _draw_wavelengths(results: Mapping[str, Any]) -> Figure:
    features = [f for f in results["features"] if math.isfinite(f["wavelength"])]
    index = [feature["index"] for feature in features]
    figure = Figure(figsize=(7.2, 5.4))
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(2, 1))
    top.scatter(
        index,
        [feature["wavelength"] for feature in features],
        s=34,
        facecolors="none",
        edgecolors=_UNSEEN,
        linewidths=1.1,
        label="wavelength",
    )
    top.scatter(
        index,
        [feature["resonant_wavelength"] for feature in features],
        s=9,
        color=_SEEN,
        label="rounded to whole tokens",
    )
    for length, name, line in (
        (results["train_length"], "training length", "-"),
        (results["test_length"], "test length", ":"),
    ):
        top.axhline(length, color=INK, lw=1, ls=line)
        top.annotate(
            f"{name} {length}",
            xy=(0, length),
            xycoords=top.get_yaxis_transform(),
            xytext=(4, 3),
            textcoords="offset points",
            fontsize=8.5,
        )
    top.set_yscale("log")
    top.set_ylabel("tokens per turn")
    top.legend(loc="lower right")
    bottom.bar(index, [_change(feature) for feature in features], color=_SEEN, width=0.7)
    bottom.axhline(0, color=INK, lw=0.8)
    bottom.set(xlabel="feature", ylabel="change by\nrounding, %")
    bottom.set_xlim(-1, len(results["features"]))
    top.annotate(
        "pre-critical",
        xy=(-0.5, 1),
        xycoords=("data", "axes fraction"),
        xytext=(0, 3),
        textcoords="offset points",
        fontsize=8.5,
    )
    for axes in (top, bottom):
        _shade_pre_critical(axes, [f["pre_critical"] for f in results["features"]])
    return figure


def _shade_pre_critical(axes: Axes, pre_critical: Sequence[bool]) -> None:
    for index, shaded in enumerate(pre_critical):
        if shaded:
            axes.axvspan(index - 0.5, index + 0.5, color=_SHADE, lw=0, zorder=0)


def _methods_by_scaling(results: Mapping[str, Any]) -> dict[str, list[str]]:
    """Groups methods by panel: a scaling with and without resonance."""
    by_scaling: dict[str, list[str]] = {}
    for method in order_methods(results["methods"]):
        by_scaling.setdefault(plain_variant(method), []).append(method)
    return by_scaling


def _draw_feature_gap(results: Mapping[str, Any]) -> Figure:
    by_scaling = _methods_by_scaling(results)
    columns = min(len(by_scaling), 2)
    rows = math.ceil(len(by_scaling) / columns)
    figure = Figure(figsize=(max(5.5, 4.2 * columns), 2.7 * rows + 0.6))
    panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).ravel()
    for axes, methods in zip(panels, by_scaling.values(), strict=False):
        for method in methods:
            gap = np.array(results["methods"][method]["feature_gap"])
            resonance = is_resonance(method)
            axes.plot(
                gap,
                marker="o" if resonance else "D",
                markersize=3.2 if resonance else 3.6,
                linewidth=0.9,
                color=method_colour(method),
                label=method_label(method),
            )
        axes.set_yscale("symlog", linthresh=1e-4, linscale=0.6)
        axes.set_ylim(-2e-5, 4)
        axes.set_yticks(
            [0, 1e-4, 1e-3, 1e-2, 1e-1, 1], ["0", "0.0001", "0.001", "0.01", "0.1", "1"]
        )
        axes.minorticks_off()
        axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2, borderaxespad=0)
        _shade_pre_critical(axes, results["methods"][methods[0]]["pre_critical"])
    for axes in panels[len(by_scaling) :]:
        axes.remove()
    figure.supxlabel("feature", fontsize=9.5)
    figure.supylabel("gap (chord on the unit circle)", fontsize=9.5)
    return figure


def _draw_coincidence(results: Mapping[str, Any]) -> Figure:
    by_scaling = _methods_by_scaling(results)
    figure = Figure(figsize=(7.6, 1.9 * len(by_scaling) + 0.8))
    panels = figure.subplots(len(by_scaling), 1, sharex=True, sharey=True, squeeze=False).ravel()
    for axes, methods in zip(panels, by_scaling.values(), strict=True):
        for method in methods:
            stretches = results["methods"][method]["coincidence"]["stretches"]
            axes.plot(
                [start for start, _ in stretches],
                [most for _, most in stretches],
                linewidth=1.2,
                color=method_colour(method),
                label=method_label(method),
            )
        axes.axhline(1, color=INK, lw=0.8)
        axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2, borderaxespad=0)
    figure.supylabel("mean cosine", fontsize=9.5)
    panels[-1].set(
        xlabel="distance, tokens", xlim=(results["train_length"], results["test_length"])
    )
    return figure


def _draw_angles(results: Mapping[str, Any]) -> Figure:
    feature = results["features"][results["drawn_feature"]]
    plain, rounded = feature["wavelength"], feature["resonant_wavelength"]
    train_length, test_length = results["train_length"], results["test_length"]
    distances = analysis.unseen_distances(plain, train_length, test_length)
    worst = 360 / plain * math.fmod(train_length + int(np.argmax(distances)), plain)
    seen_angle = 360 / plain * np.fmod(np.arange(train_length), plain)
    below, above = np.min((worst - seen_angle) % 360), np.min((seen_angle - worst) % 360)

    figure = Figure(figsize=(7.6, 5.8))
    panels = figure.subplots(2, 1, sharex=True, sharey=True)
    panels[0].axhspan(worst - below, worst + above, color=_LEFT_OUT, lw=0, zorder=0)
    for axes, wavelength, name, gap in (
        (panels[0], plain, "wavelength", feature["plain_feature_gap"]),
        (panels[1], rounded, "rounded to", feature["resonant_feature_gap"]),
    ):
        position = np.arange(test_length)
        angle = 360 / wavelength * np.fmod(position, wavelength)
        angle = worst + (angle - worst + 180) % 360 - 180  # the window may span 0 degrees
        near = np.abs(angle - worst) < _WINDOW * 360 / plain
        seen = position < train_length
        size = 26 if near.sum() < 200 else 4
        for drawn, colour in ((near & seen, _SEEN), (near & ~seen, _UNSEEN)):
            axes.scatter(position[drawn], angle[drawn], s=size, color=colour, lw=0)
        axes.axvline(train_length, color=INK, lw=1)
        title = f"Feature {feature['index']}, {name} {_tokens(wavelength)} tokens: gap {gap:.3g}"
        axes.set_title(title, loc="left")
        axes.set_ylabel("angle, degrees")
    panels[1].set_ylim(worst - _WINDOW * 360 / plain, worst + _WINDOW * 360 / plain)
    panels[1].set(xlabel="position", xlim=(-0.01 * test_length, 1.01 * test_length))
    handles = [
        Line2D([], [], ls="", marker="o", color=_SEEN, label="training positions"),
        Line2D([], [], ls="", marker="o", color=_UNSEEN, label="unseen positions"),
        Patch(color=_LEFT_OUT, label="arc without training, around the worst angle"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=3)
    return figure


FIGURES: Figures = MappingProxyType(
    {
        "methods.png": ReportFigure(
            "Methods side by side",
            "What the two tables say of each method, with the largest gap and distortion of "
            "pre-critical features.",
            draw_methods,
        ),
        "wavelengths.png": ReportFigure(
            "Wavelengths before and after rounding",
            "Shaded features are pre-critical. Rounding moves a wavelength by half a token at "
            "most, which only the fastest features notice.",
            _draw_wavelengths,
        ),
        "feature_gap.png": ReportFigure(
            "Feature gap",
            "For each feature, how far the worst unseen position is from anything seen in "
            "training. Shaded features are pre-critical. The scale is linear below 0.0001.",
            _draw_feature_gap,
        ),
        "coincidence.png": ReportFigure(
            "Coincidences",
            "How much each unseen distance looks like a near one to the pre-critical features "
            "(1: the same angles in all of them). Long ranges are drawn by the highest value of "
            "each stretch.",
            _draw_coincidence,
        ),
        "angles.png": ReportFigure(
            "Angles of one feature",
            "A part of the circle, three tokens wide, around the unseen angle that is furthest "
            "from training (compare the paper's Figure 1).",
            _draw_angles,
        ),
    }
)


def plots(results: Mapping[str, Any]) -> dict[str, bytes]:
    """Returns the figures as PNG bytes by file name, deterministic for given results."""
    return pngs(FIGURES, results)
