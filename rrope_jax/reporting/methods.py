"""Order, names and colors of RoPE methods in all tables and figures."""

import colorsys
import dataclasses
import zlib
from collections.abc import Iterable, Mapping
from types import MappingProxyType

from rrope_jax.reporting.colours import (
    BLUE,
    GREEN,
    GREY,
    INK,
    OLIVE,
    PURPLE,
    RED,
    VERMILLION,
    VIOLET,
)
from rrope_jax.rope.methods import is_resonance, plain_variant, rule_of, split_period, variants


@dataclasses.dataclass(frozen=True)
class ScalingLook:
    """The look of a RoPE scaling in reports.

    Attributes:
      label: Name in tables and legends, without the word Resonance.
      colour: Hex color of the Resonance variant; the plain variant is a lighter tint of it.
    """

    label: str
    colour: str


# In the order of every table and figure.
_SCALINGS: Mapping[str, ScalingLook] = MappingProxyType(
    {
        "rope": ScalingLook("RoPE", BLUE),
        "linear": ScalingLook("PI", PURPLE),
        "ntk": ScalingLook("NTK-aware", GREY),
        "dynamic_ntk": ScalingLook("Dynamic NTK", OLIVE),
        "ntk_by_parts": ScalingLook("NTK-by-parts", GREEN),
        "yarn": ScalingLook("YaRN", VERMILLION),
        "llama3": ScalingLook("Llama 3", VIOLET),
        "longrope": ScalingLook("LongRoPE", RED),
        "dynamic_yarn": ScalingLook("Dynamic YaRN", "#9c5a2e"),
        "dprope": ScalingLook("DPRoPE", "#3d7a1f"),
        "nope": ScalingLook("NoPE", INK),
        "abf": ScalingLook("ABF", "#0a7f9e"),
        "hardclip": ScalingLook("HardClip", "#b0307a"),
        "cope": ScalingLook("CoPE", "#d0467f"),
        "rope_id": ScalingLook("RoPE-ID", "#2f4f9f"),
        "self_extend": ScalingLook("SelfExtend", "#00808a"),
        "jet_long": ScalingLook("Jet-Long", "#8a6d3b"),
        "learned_rope": ScalingLook("Learned RoPE", "#1f8a8a"),
        "learned_yarn": ScalingLook("Learned YaRN", "#8a5a00"),
    }
)

# Share of the full color in the tint of a plain variant; the rest is white.
_TINT = 0.58
# Share of the color that is left in the shades of rules other than the paper's.
_SHADES: Mapping[bool | str, float] = MappingProxyType(
    {"rational": 0.75, "coprime": 0.5, "designed": 0.25}
)


def method_label(method: str) -> str:
    """Returns a method's name in tables and legends; unknown scalings keep their own names."""
    scaling = plain_variant(method)
    look = _SCALINGS.get(scaling)
    label = look.label if look else scaling
    rule = rule_of(method)
    if isinstance(rule, str):
        period = split_period(method)[1]
        return f"{rule.capitalize()}{'' if period is None else f' {period}'} {label}"
    return f"Resonance {label}" if rule else label


def method_colour(method: str) -> tuple[float, float, float]:
    """Returns a method's color as RGB values in [0, 1].

    The variants of a scaling share a hue: Resonance is dark, plain is a lighter tint, and other
    rules are darker shades. The hue of an unknown scaling comes from a checksum of its name, so it
    is the same in every report.
    """
    scaling = plain_variant(method)
    look = _SCALINGS.get(scaling)
    if look:
        red, green, blue = (int(look.colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
    else:
        hue = zlib.crc32(scaling.encode()) % 360 / 360
        red, green, blue = colorsys.hsv_to_rgb(hue, 0.75, 0.6)
    if is_resonance(method):
        shade = _SHADES.get(rule_of(method), 1.0)
        return red * shade, green * shade, blue * shade
    return 1 - (1 - red) * _TINT, 1 - (1 - green) * _TINT, 1 - (1 - blue) * _TINT


def order_methods(methods: Iterable[str]) -> tuple[str, ...]:
    """Sorts distinct methods in report order: by scaling, plain first, then by rule."""
    listed = [name for scaling in _SCALINGS for name in variants(scaling)]
    by_period = sorted(set(methods), key=lambda name: split_period(name)[1] or 0)
    bare = in_order((split_period(name)[0] for name in by_period), listed)
    return tuple(sorted(by_period, key=lambda name: bare.index(split_period(name)[0])))


def in_order(names: Iterable[str], listed: Iterable[str]) -> tuple[str, ...]:
    """Sorts distinct names: those in `listed` in its order, then the others alphabetically."""
    rank = {name: index for index, name in enumerate(listed)}
    return tuple(sorted(set(names), key=lambda name: (rank.get(name, len(rank)), name)))
