"""The style of all figures, and their conversion to PNG.

Figures use matplotlib's object interface and a fixed style on top of matplotlib's defaults, so
their bytes depend only on their content and the matplotlib release.
"""

import io
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any

import matplotlib
from matplotlib.artist import Artist
from matplotlib.figure import Figure

from rrope_jax.reporting.colours import INK

# Keys are Any because matplotlib 3.11 types them as literals, and 3.10 as strings.
_STYLE: Mapping[Any, Any] = MappingProxyType(
    {
        "axes.axisbelow": True,
        "axes.edgecolor": "#888888",
        "axes.grid": True,
        "axes.grid.axis": "y",
        "axes.labelcolor": INK,
        "axes.spines.right": False,
        "axes.spines.top": False,
        "axes.titlesize": 11,
        "figure.constrained_layout.use": True,
        "figure.constrained_layout.w_pad": 0.08,
        "figure.dpi": 150,
        "font.size": 9.5,
        "grid.color": "#e2e2e2",
        "grid.linewidth": 0.7,
        "legend.frameon": False,
        "text.color": INK,
        "xtick.color": INK,
        "ytick.color": INK,
    }
)


@contextmanager
def style() -> Iterator[None]:
    """Applies the fixed style instead of the user's matplotlibrc, which it restores on exit."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE)
        yield


def legend_below(figure: Figure, handles: Sequence[Artist]) -> None:
    """Adds a legend below the panels, with balanced rows.

    It has at most five columns, and only as many as fit the width of the figure.
    """
    for most in range(min(len(handles), 5), 0, -1):
        rows = math.ceil(len(handles) / most)
        columns = math.ceil(len(handles) / rows)
        legend = figure.legend(handles=handles, loc="outside lower center", ncols=columns)
        if columns == 1 or legend.get_window_extent().width <= figure.bbox.width:
            return
        legend.remove()


def png(figure: Figure) -> bytes:
    """Converts a figure to PNG bytes; call it inside `style()`."""
    buffer = io.BytesIO()
    # The Software entry would name the matplotlib release.
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()
