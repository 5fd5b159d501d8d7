"""The figures of a report: what each shows, and how it is drawn and referred to."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from matplotlib.figure import Figure

from rrope_jax.reporting.style import png, style


@dataclasses.dataclass(frozen=True)
class ReportFigure:
    """A figure of a report.

    Attributes:
      title: its name.
      caption: what it shows.
      draw: draws it from the report's results.
      needs: the key of the results that it is drawn from; empty where it can always be drawn.
    """

    title: str
    caption: str
    draw: Callable[[Any], Figure]
    needs: str = ""


Figures = Mapping[str, ReportFigure]
"""The figures of a report by file name, in the order in which they are shown."""


def draw(figures: Figures, results: Any) -> dict[str, Figure]:
    """Draws figures, by file name."""
    with style():
        return {name: figure.draw(results) for name, figure in figures.items()}


def pngs(figures: Figures, results: Any) -> dict[str, bytes]:
    """Figures as PNG files by file name: the same bytes for the same results."""
    with style():
        return {name: png(figure.draw(results)) for name, figure in figures.items()}


def plots_section(figures: Figures) -> list[str]:
    """Paragraphs of markdown that show figures with their captions; none for no figure."""
    shown = [
        f"![{figure.title}]({name})\n\n*{figure.title}.* {figure.caption}"
        for name, figure in figures.items()
    ]
    return ["## Plots", *shown] if shown else []
