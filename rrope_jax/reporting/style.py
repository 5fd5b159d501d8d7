"""The look of every figure, and figures as PNG bytes.

Figures are drawn through matplotlib's object interface, with matplotlib's own defaults under a
fixed style, so that the bytes depend on what is drawn and the matplotlib release alone.
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

# Keys are Any because matplotlib 3.11 types them as literals and 3.10 as strings.
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
    """The fixed style, whatever the user's matplotlibrc says; the user's settings come back."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE)
        yield


def legend_below(figure: Figure, handles: Sequence[Artist]) -> None:
    """Legend below the panels, in few rows of equally many entries.

    It has at most five columns, and no more than the figure is wide for.
    """
    for most in range(min(len(handles), 5), 0, -1):
        rows = math.ceil(len(handles) / most)
        columns = math.ceil(len(handles) / rows)
        legend = figure.legend(handles=handles, loc="outside lower center", ncols=columns)
        if columns == 1 or legend.get_window_extent().width <= figure.bbox.width:
            return
        legend.remove()


def png(figure: Figure) -> bytes:
    """A figure as a PNG file; call it inside `style()`."""
    buffer = io.BytesIO()
    # Without the Software entry the bytes do not name the matplotlib release.
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()
