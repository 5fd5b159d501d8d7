"""The figure of `rrope inspect`: wavelengths against the contexts and the window."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rrope_jax.reporting.colours import BLUE, GREEN, INK, VERMILLION
from rrope_jax.reporting.figure import Figures, ReportFigure, pngs

_COLOURS: Mapping[str, str] = MappingProxyType(
    {"full_attention": BLUE, "sliding_attention": VERMILLION}
)


def plots(results: Mapping[str, Any]) -> dict[str, bytes]:
    """Returns the figure as PNG bytes by file name."""
    return pngs(_FIGURES, results)


def _draw(results: Mapping[str, Any]) -> Figure:
    figure = Figure(figsize=(7.2, 4.4))
    axes = figure.subplots()
    rotated = {k: found for k, found in results["layer_types"].items() if found["rope"] is not None}
    for name, found in rotated.items():
        colour = _COLOURS.get(name, GREEN)
        values = [(i, v) for i, v in enumerate(found["wavelengths"]) if v is not None]
        if (plain := found.get("wavelengths_without_scaling")) is not None:
            axes.plot(
                plain, "o", ms=4.5, mfc="none", mew=0.7, color=colour, label="without scaling"
            )
        axes.plot(*zip(*values, strict=True), "o", ms=3, color=colour, label=_label(name, found))
        if found["window"] is not None:
            _line(axes, found["window"], f"window {found['window']:,}", colour, "--")
        for one in found.get("against", ()):
            if not one["same"]:
                axes.axvline(one["feature"], color=colour, lw=0.8, ls=":")
    lengths: dict[int, str] = {}
    for found in rotated.values():
        if found["original_context"] is not None:
            lengths[found["original_context"]] = "original context"
    if results["context"] is not None:
        also = " and " if results["context"] in lengths else ""
        lengths[results["context"]] = f"{lengths.get(results['context'], '')}{also}context"
    for length, what in lengths.items():
        _line(axes, length, f"{what} {length:,}", INK, "-")
    axes.set_yscale("log")
    axes.set(xlabel="feature", ylabel="tokens per turn")
    axes.legend(loc="lower right")  # where no wavelength is
    return figure


def _label(name: str, found: Mapping[str, Any]) -> str:
    layers = found["layers"]
    count = "" if layers is None else f", {len(layers)} layers"
    scaling = "" if found["scaling"] == "none" else f", {found['scaling']}"
    return f"{name}{count}: theta {found['theta']:,.0f}{scaling}"


def _line(axes: Axes, length: int, name: str, colour: str, style: str) -> None:
    axes.axhline(length, color=colour, lw=1, ls=style)
    axes.annotate(
        name,
        xy=(0, length),
        xycoords=axes.get_yaxis_transform(),
        xytext=(4, 3),
        textcoords="offset points",
        fontsize=8.5,
        color=colour,
    )


_FIGURES: Figures = MappingProxyType(
    {
        "wavelengths.png": ReportFigure(
            "Wavelengths",
            "Tokens that each feature takes for one turn, by type of layer.",
            _draw,
        )
    }
)
