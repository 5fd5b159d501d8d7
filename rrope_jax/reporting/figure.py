"""The figures of a report: titles, captions and drawing functions."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from matplotlib.figure import Figure

from rrope_jax.reporting.style import png, style


@dataclasses.dataclass(frozen=True)
class ReportFigure:
    """A figure of a report.

    Attributes:
      title: Its title.
      caption: What it shows.
      draw: Draws it from the report's results.
      needs: Key of the results that it is drawn from; empty if it can always be drawn.
    """

    title: str
    caption: str
    draw: Callable[[Any], Figure]
    needs: str = ""


Figures = Mapping[str, ReportFigure]
"""The figures of a report by file name, in display order."""


def draw(figures: Figures, results: Any) -> dict[str, Figure]:
    """Draws figures; returns them by file name."""
    with style():
        return {name: figure.draw(results) for name, figure in figures.items()}


def pngs(figures: Figures, results: Any) -> dict[str, bytes]:
    """Draws figures; returns PNG bytes by file name, deterministic for given results."""
    with style():
        return {name: png(figure.draw(results)) for name, figure in figures.items()}


def plots_section(figures: Figures) -> list[str]:
    """Returns markdown paragraphs with the figures and their captions; empty without figures."""
    shown = [
        f"![{figure.title}]({name})\n\n*{figure.title}.* {figure.caption}"
        for name, figure in figures.items()
    ]
    return ["## Plots", *shown] if shown else []
