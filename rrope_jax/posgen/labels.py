"""How tasks, methods and protocols are ordered, named and coloured in tables and plots."""

import colorsys
import dataclasses
import zlib
from collections.abc import Iterable, Mapping
from types import MappingProxyType

from rrope_jax.rope.methods import is_resonance, plain_variant, resonance_variant


@dataclasses.dataclass(frozen=True)
class Scaling:
    """What a RoPE scaling looks like in a report.

    Attributes:
      label: name in tables and legends, without the word Resonance.
      colour: hex colour of the Resonance variant; the plain variant is a lighter tint of it.
    """

    label: str
    colour: str


# Order here is the order in every table and plot. The hues are those of Okabe and Ito's palette
# (blue, vermillion, green, purple first), darkened so that the tint still stands on white.
_SCALINGS: Mapping[str, Scaling] = MappingProxyType(
    {
        "rope": Scaling("RoPE", "#0060a0"),
        "linear": Scaling("PI", "#a8407c"),
        "ntk": Scaling("NTK-aware", "#4a4a4a"),
        "dynamic_ntk": Scaling("Dynamic NTK", "#7a6a00"),
        "ntk_by_parts": Scaling("NTK-by-parts", "#00705a"),
        "yarn": Scaling("YaRN", "#c04a00"),
        "llama3": Scaling("Llama 3", "#5b3fa0"),
        "longrope": Scaling("LongRoPE", "#8a1c1c"),
    }
)

# How much of the full colour is in the tint of a plain variant; the rest is white.
_TINT = 0.58

TASK_LABELS: Mapping[str, str] = MappingProxyType(
    {"recursive": "Recursive", "cot": "Chain-of-Thought", "semi_recursive": "Semi-recursive"}
)

PROTOCOL_LABELS: Mapping[str, str] = MappingProxyType(
    {
        "scaled_training": "Scaled in training and test",
        "scaled_at_test": "Scaled at test only",
    }
)

PROTOCOL_NOTES: Mapping[str, str] = MappingProxyType(
    {
        "scaled_training": "Every method is trained with the tables that it is tested with "
        "(the protocol in the paper's text).",
        "scaled_at_test": "Models are trained with unscaled tables and the scaling is switched on "
        "for the test (the protocol in the authors' code), so one training can serve several "
        "rows: the column *trained as* says which.",
    }
)


def method_label(method: str) -> str:
    """Name of a method in tables and legends; an unknown scaling is shown as it is written."""
    scaling = plain_variant(method)
    known = _SCALINGS.get(scaling)
    label = known.label if known else scaling
    return f"Resonance {label}" if is_resonance(method) else label


def method_colour(method: str) -> tuple[float, float, float]:
    """Colour of a method as RGB in [0, 1].

    The two variants of a scaling share a hue: Resonance dark, plain a tint of it. A scaling that
    the table does not know takes its hue from a checksum of its name, so it keeps its colour from
    one report to the next.
    """
    scaling = plain_variant(method)
    known = _SCALINGS.get(scaling)
    if known:
        red, green, blue = (int(known.colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
    else:
        hue = zlib.crc32(scaling.encode()) % 360 / 360
        red, green, blue = colorsys.hsv_to_rgb(hue, 0.75, 0.6)
    if is_resonance(method):
        return red, green, blue
    return 1 - (1 - red) * _TINT, 1 - (1 - green) * _TINT, 1 - (1 - blue) * _TINT


def task_label(task: str) -> str:
    """Name of a task in tables and panel titles."""
    return TASK_LABELS.get(task, task)


def protocol_label(protocol: str) -> str:
    """Name of a protocol in headings."""
    return PROTOCOL_LABELS.get(protocol, protocol)


def _in_order(names: Iterable[str], known: Iterable[str]) -> tuple[str, ...]:
    """Distinct names, known ones first in the order of `known`, then the rest alphabetically."""
    rank = {name: i for i, name in enumerate(known)}
    return tuple(sorted(set(names), key=lambda name: (rank.get(name, len(rank)), name)))


def order_methods(methods: Iterable[str]) -> tuple[str, ...]:
    """Distinct methods in report order: by scaling, the plain variant before Resonance."""
    known = [name for scaling in _SCALINGS for name in (scaling, resonance_variant(scaling))]
    return _in_order(methods, known)


def order_tasks(tasks: Iterable[str]) -> tuple[str, ...]:
    """Distinct tasks in report order (that of the paper's Table 1)."""
    return _in_order(tasks, TASK_LABELS)


def order_protocols(protocols: Iterable[str]) -> tuple[str, ...]:
    """Distinct protocols in report order."""
    return _in_order(protocols, PROTOCOL_LABELS)
