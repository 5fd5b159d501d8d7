"""Resonance: features that repeat exactly after a whole number of tokens.

A feature repeats after p tokens if its wavelength is p / q tokens: it then makes q whole turns. The
paper takes the nearest integer (q = 1) for every wavelength (arXiv 2403.00071, Algorithm 1). Its
Theorem 1 needs no more than p <= L: training on L tokens then shows every phase of the feature. So
p and q are free to be chosen, and a rule chooses them.

A rule is one function and one row of `RULES`. It takes a spec (any object with the fields that its
row reads) and the wavelengths of all features, after the scaling, and returns a `Period` for each.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rrope_jax.rope import coprime, design

_INT64_MAX = 2**63 - 1
# of an integer wavelength that comes from a list of factors, in float32 in some formats
_ROUNDING = 1e-6


class Period(NamedTuple):
    """After how many tokens a feature repeats exactly, and how often it turns within them.

    Attributes:
      tokens: p; 0 for a feature that does not repeat.
      turns: q, which shares no factor with p; 0 for a feature that does not repeat.
    """

    tokens: int
    turns: int


NEVER = Period(0, 0)


def wavelengths_of(inv_freq: NDArray[np.float64]) -> NDArray[np.float64]:
    """Tokens per full turn, 2 pi / inv_freq; infinite for a feature that never turns."""
    with np.errstate(divide="ignore"):
        return 2 * math.pi / inv_freq


def round_wavelengths(wavelengths: NDArray[np.float64]) -> NDArray[np.float64]:
    """Rounds wavelengths to the nearest whole number of tokens.

    Rounding in float32 can pick the wrong integer for wavelengths above about 131,000 tokens, where
    neighboring float32 numbers are at least 1/64 apart. Hence the float64.

    Args:
      wavelengths: float64[d/2], tokens; infinite for features that never turn.

    Returns:
      float64[d/2], integers; infinite entries stay infinite.

    Raises:
      ValueError: a wavelength rounds to less than 2 tokens. A wavelength of 1 would make the
        feature constant, and 0 is not a rotation.
    """
    rounded = np.rint(wavelengths)
    if np.any(rounded < 2):
        index = int(np.argmin(rounded))
        raise ValueError(
            f"resonance=True rounds the wavelength of feature {index}, {wavelengths[index]:.4g} "
            f"tokens, to {int(rounded[index])}; it must stay at least 2 tokens. Use larger scaling "
            "factors for this feature or set resonance=False."
        )
    return rounded


def _chosen(wavelengths: Sequence[float], longest: int | None) -> list[bool]:
    """Which features a rule changes: those that turn, up to a longest wavelength."""
    bound = _INT64_MAX if longest is None else longest * (1 + _ROUNDING)
    return [wavelength <= bound for wavelength in wavelengths]


def _integers(
    wavelengths: Sequence[float],
    longest: int | None,
    integers: Callable[[Sequence[float]], Sequence[int]],
) -> list[Period]:
    """Integers for the features that are chosen, from a function of their wavelengths."""
    chosen = _chosen(wavelengths, longest)
    found = iter(integers(list(itertools.compress(wavelengths, chosen))))
    return [Period(next(found), 1) if is_chosen else NEVER for is_chosen in chosen]


def _none(spec: Any, wavelengths: Sequence[float]) -> list[Period]:
    return [NEVER] * len(wavelengths)


def _nearest(spec: Any, wavelengths: Sequence[float]) -> list[Period]:
    """The nearest integers: the paper's rule."""
    return _integers(
        wavelengths,
        spec.resonance_limit,
        lambda chosen: [int(each) for each in round_wavelengths(np.array(chosen, np.float64))],
    )


def _rational(spec: Any, wavelengths: Sequence[float]) -> list[Period]:
    """The fraction of at most `resonance_period` tokens whose frequency is nearest.

    A larger P = `resonance_period` moves frequencies less: by at most 1 / (2 P) turns per token,
    and mostly by far less. With P = L, training sees every phase of every feature that turns
    within L.
    """

    def period(wavelength: float) -> Period:
        turns_per_token = (1 / Fraction(wavelength)).limit_denominator(spec.resonance_period)
        if turns_per_token.denominator < 2:
            raise ValueError(
                f"resonance='rational' moves a wavelength of {wavelength:.4g} tokens to 1, which "
                "is no rotation; use a larger resonance_period, or larger scaling factors"
            )
        return Period(turns_per_token.denominator, turns_per_token.numerator)

    chosen = _chosen(wavelengths, spec.resonance_period)
    return [
        period(wavelength) if is_chosen else NEVER
        for wavelength, is_chosen in zip(wavelengths, chosen, strict=True)
    ]


def _coprime(spec: Any, wavelengths: Sequence[float]) -> list[Period]:
    """Integers of which no two share a factor; see `coprime.near`."""
    limit = spec.resonance_limit
    return _integers(wavelengths, limit, lambda chosen: coprime.near(tuple(chosen), limit))


def _designed(spec: Any, wavelengths: Sequence[float]) -> list[Period]:
    """Integers that keep far distances apart from near ones; see `design.integers`."""
    return _integers(
        wavelengths,
        spec.resonance_period,
        lambda chosen: design.integers(
            tuple(chosen),
            first=spec.resonance_period,
            length=spec.resonance_length,
            near=spec.resonance_near,
            tolerance=spec.resonance_tolerance,
        ),
    )


@dataclasses.dataclass(frozen=True)
class Rule:
    """One rule.

    Attributes:
      periods: (spec, wavelengths of all features, infinite for one that never turns) -> a `Period`
        for each. Raises ValueError if there is none.
      reads: the spec fields that this rule reads.
      requires: the subset of `reads` without a usable default.
    """

    periods: Callable[[Any, Sequence[float]], list[Period]]
    reads: frozenset[str] = frozenset()
    requires: frozenset[str] = frozenset()


_LIMIT = frozenset({"resonance_limit"})
_PERIOD = frozenset({"resonance_period"})

RULES: dict[str, Rule] = {
    "none": Rule(_none),
    "nearest": Rule(_nearest, _LIMIT),
    "rational": Rule(_rational, _PERIOD, _PERIOD),
    "coprime": Rule(_coprime, _LIMIT),
    "designed": Rule(
        _designed,
        _PERIOD | {"resonance_length", "resonance_near", "resonance_tolerance"},
        _PERIOD | {"resonance_length"},
    ),
}

RULE_FIELDS = frozenset().union(*(row.reads for row in RULES.values()))
"""The fields that only some rules read."""


def rule_name(resonance: bool | str) -> str:
    """The key of `RULES` for a spec's `resonance`: True is the paper's rule, False is none."""
    if isinstance(resonance, bool):
        return "nearest" if resonance else "none"
    return resonance


def unread_by_rule(resonance: bool | str) -> frozenset[str]:
    """The `RULE_FIELDS` that a rule does not read; empty if the rule is unknown."""
    name = rule_name(resonance)
    return RULE_FIELDS - RULES[name].reads if name in RULES else frozenset()


def rule_of_list(spec: Any) -> dict[str, Any]:
    """The fields of the rule that finds a spec's periods again in its list of wavelengths.

    Integers are the nearest ones to themselves, however they were chosen. Empty without resonance.
    """
    if not spec.resonance:
        return {}
    if spec.resonance == "rational":
        return {"resonance": "rational", "resonance_period": spec.resonance_period}
    limit = spec.resonance_period if spec.resonance == "designed" else spec.resonance_limit
    return {"resonance": True} | ({} if limit is None else {"resonance_limit": limit})


def periods_of(spec: Any, wavelengths: NDArray[np.float64]) -> list[Period]:
    """The periods of all features of a spec.

    Args:
      spec: any object with `resonance` and the fields that its rule reads.
      wavelengths: float64[d/2], tokens, after the scaling.

    Raises:
      ValueError: the rule has no period for a feature.
    """
    return RULES[rule_name(spec.resonance)].periods(spec, wavelengths.tolist())
