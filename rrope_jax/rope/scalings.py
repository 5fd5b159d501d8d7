"""The scalings: how each one stretches the frequencies of plain RoPE.

Every scaling is one small function and one row of `SCALINGS`. A function takes a spec (any object
with the fields that its row reads, and the properties of `RopeSpec`) and returns the frequencies of
all rotated features in radians per token. A row lists the fields that the scaling reads, so that
setting any other field is an error and not a silent no-op. Resonance is not a scaling: it is
applied to whatever a scaling returns (`rrope_jax.rope.resonance`).

Symbols: d is the number of rotated dimensions, b is `theta`, s is `factor`, L is
`original_context`; feature i rotates the pair of dimensions (i, i + d/2).
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from rrope_jax.rope import distribution
from rrope_jax.rope.geometric import (
    Float64Array,
    abf,
    cope,
    geometric,
    hardclip,
    none,
    nope,
    plain,
    rope_id,
)

# Stands in for infinity, which JSON lacks, as the factor of a feature that never turns: its angle
# stays below 1e-20, so its cosine is 1 in any runtime.
NEVER_TURNS = 1e30


def _linear(spec: Any, seq_len: int | None) -> Float64Array:
    """Position interpolation: Chen et al., arXiv 2306.15595, equation 4."""
    return plain(spec) / float(spec.factor)


def stretched_theta(spec: Any, stretch: float) -> float:
    """The base at which the slowest feature is slowed down by exactly `stretch`."""
    dim = spec.rotary_dim
    return float(spec.theta * stretch ** (dim / (dim - 2)))


def _ntk(spec: Any, seq_len: int | None) -> Float64Array:
    """NTK-aware scaling: Peng et al., arXiv 2309.00071, definition 1."""
    return geometric(stretched_theta(spec, spec.factor), spec.rotary_dim)


def _dynamic_ntk(spec: Any, seq_len: int | None) -> Float64Array:
    """NTK-aware scaling by the current length, as transformers' `dynamic` computes it."""
    length = max(seq_len or 0, spec.original_context)
    stretch = spec.factor * length / spec.original_context - (spec.factor - 1)
    return geometric(stretched_theta(spec, stretch), spec.rotary_dim)


def _by_wavelength_ratio(spec: Any, low: float, high: float) -> Float64Array:
    """Interpolates features turning fewer than `low` times within L, keeps those above `high`."""
    inv_freq = plain(spec)
    turns = spec.original_context * inv_freq / (2 * math.pi)
    if low == high:  # a step, as in Llama 4 Scout
        keep = (turns >= low).astype(np.float64)
    else:
        keep = np.clip((turns - low) / (high - low), 0.0, 1.0)
    return np.asarray((1 - keep) * inv_freq / spec.factor + keep * inv_freq)


def _ntk_by_parts(spec: Any, seq_len: int | None) -> Float64Array:
    """NTK-by-parts with the printed ramp in L / wavelength: arXiv 2309.00071, definition 2."""
    return _by_wavelength_ratio(spec, spec.beta_slow, spec.beta_fast)


def _llama3(spec: Any, seq_len: int | None) -> Float64Array:
    """Llama 3.1's rule, the same ramp under other names: arXiv 2407.21783, section 3.4.2."""
    return _by_wavelength_ratio(spec, spec.low_freq_factor, spec.high_freq_factor)


def _index_ramp(spec: Any, fast: float, slow: float, *, truncate: bool) -> Float64Array:
    """A ramp over the feature index: 0 for features faster than `fast` turns in L, 1 below `slow`.

    The index at which a feature turns r times within L is d ln(L / (2 pi r)) / (2 ln b). The
    YaRN code and every runtime since interpolate in this index, not in the wavelength.
    """
    dim: int = spec.rotary_dim

    def index(turns: float) -> float:
        turned = math.log(spec.original_context / (2 * math.pi * turns))
        return dim * turned / (2 * math.log(spec.theta))

    low, high = index(fast), index(slow)
    if truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    if low == high:
        high += 0.001  # avoids division by zero, as in all runtimes
    return np.clip((np.arange(dim // 2, dtype=np.float64) - low) / (high - low), 0.0, 1.0)


def _yarn_by(spec: Any, factor: float) -> Float64Array:
    inv_freq = plain(spec)
    interpolate = _index_ramp(spec, spec.beta_fast, spec.beta_slow, truncate=spec.truncate)
    return inv_freq / float(factor) * interpolate + inv_freq * (1 - interpolate)


def _yarn(spec: Any, seq_len: int | None) -> Float64Array:
    """YaRN as its released code and the runtimes compute it (jquesnelle/yarn, transformers)."""
    return _yarn_by(spec, spec.factor)


def _current_factor(spec: Any, seq_len: int | None) -> float:
    """How many times the current length exceeds L, at least 1: arXiv 2309.00071, section 3.4."""
    return float(max(seq_len or 0, spec.original_context) / spec.original_context)


def _dynamic_yarn(spec: Any, seq_len: int | None) -> Float64Array:
    """YaRN by the current length: `LlamaDynamicYaRNScaledRotaryEmbedding` of jquesnelle/yarn."""
    return _yarn_by(spec, _current_factor(spec, seq_len))


def _part_ntk(spec: Any, seq_len: int | None) -> Float64Array:
    """The two-ramp predecessor of YaRN in its repository (`LlamaPartNTKScaledRotaryEmbedding`).

    Blends position interpolation, NTK-aware scaling and plain RoPE, with the ramps that its code
    hard-wires: 1.25 to 0.75 turns into the NTK-aware part and 16 to 2 turns into the plain one.
    """
    inv_freq = plain(spec)
    interpolate = _index_ramp(spec, 1.25, 0.75, truncate=True)
    blended = inv_freq / float(spec.factor) * interpolate + _ntk(spec, seq_len) * (1 - interpolate)
    slow = _index_ramp(spec, 16.0, 2.0, truncate=True)
    return blended * slow + inv_freq * (1 - slow)


def _longrope(spec: Any, seq_len: int | None) -> Float64Array:
    """One divisor per feature, from another list beyond L: arXiv 2402.13753, as in transformers."""
    long = seq_len is not None and seq_len > spec.original_context
    factors = np.asarray(spec.long_factor if long else spec.short_factor, np.float64)
    return np.where(factors < NEVER_TURNS, plain(spec) / factors, 0.0)


def _dprope(spec: Any, seq_len: int | None) -> Float64Array:
    """DPRoPE interpolates where that disturbs angles less: see `distribution.interpolated`."""
    inv_freq = plain(spec)
    interpolate = distribution.interpolated(
        tuple(inv_freq.tolist()), context=spec.original_context, factor=float(spec.factor)
    )
    return np.where(interpolate, inv_freq / float(spec.factor), inv_freq)


def _proportional(spec: Any, seq_len: int | None) -> Float64Array:
    """p-RoPE as in transformers: the slowest features do not turn at all.

    Unlike partial rotary, the fast features keep the frequencies of the full dimension.
    """
    inv_freq = plain(spec) / spec.extension
    turning = int(spec.partial_rotary_factor * spec.head_dim) // 2
    return np.where(np.arange(inv_freq.size) < turning, inv_freq, 0.0)


def _unit_temperature(spec: Any, seq_len: int | None) -> float:
    return 1.0


def _yarn_temperature(spec: Any, seq_len: int | None) -> float:
    """0.1 ln s + 1 (arXiv 2309.00071, equation 22), or the ratio of two such terms (DeepSeek)."""

    def mscale(weight: float) -> float:
        return 0.1 * weight * math.log(spec.factor) + 1.0

    if spec.mscale and spec.mscale_all_dim:
        return mscale(spec.mscale) / mscale(spec.mscale_all_dim)
    return mscale(1.0)


def _dynamic_yarn_temperature(spec: Any, seq_len: int | None) -> float:
    """0.1 ln s + 1 with the factor of the current length, as in jquesnelle/yarn."""
    return 0.1 * math.log(_current_factor(spec, seq_len)) + 1.0


def _longrope_temperature(spec: Any, seq_len: int | None) -> float:
    """sqrt(1 + ln s / ln L): arXiv 2402.13753, section 3.3, as in transformers."""
    return math.sqrt(1 + math.log(spec.extension) / math.log(spec.original_context))


@dataclasses.dataclass(frozen=True)
class Scaling:
    """One scaling.

    Attributes:
      inv_freq: (spec, current length or None) -> float64[d/2].
      reads: the spec fields that this scaling reads beyond those common to all scalings.
      requires: the subset of `reads` without a usable default.
      temperature: (spec, current length or None) -> the attention factor of a spec that does not
        set one.
      rotates_all: whether d is all of head_dim, so that `partial_rotary_factor` stops features
        instead of narrowing d.
      at_one_length: the scaling to export instead, if the frequencies change with every length;
        None if they do not.
    """

    inv_freq: Callable[[Any, int | None], Float64Array]
    reads: frozenset[str] = frozenset()
    requires: frozenset[str] = frozenset()
    temperature: Callable[[Any, int | None], float] = _unit_temperature
    rotates_all: bool = False
    at_one_length: str | None = None


_FACTOR = frozenset({"factor"})
_FACTOR_AND_CONTEXT = frozenset({"factor", "original_context"})
_BETAS = frozenset({"beta_fast", "beta_slow"})
_FACTOR_LISTS = frozenset({"short_factor", "long_factor"})
_CONTEXT = frozenset({"original_context"})
_BASE = frozenset({"abf_theta"})
_CLIPPED = frozenset({"clipped_features"})

SCALINGS: dict[str, Scaling] = {
    "none": Scaling(none),
    "linear": Scaling(_linear, _FACTOR, _FACTOR),
    "ntk": Scaling(_ntk, _FACTOR, _FACTOR),
    "dynamic_ntk": Scaling(
        _dynamic_ntk, _FACTOR_AND_CONTEXT, _FACTOR_AND_CONTEXT, at_one_length="ntk"
    ),
    "ntk_by_parts": Scaling(_ntk_by_parts, _FACTOR_AND_CONTEXT | _BETAS, _FACTOR_AND_CONTEXT),
    "part_ntk": Scaling(_part_ntk, _FACTOR_AND_CONTEXT, _FACTOR_AND_CONTEXT),
    "yarn": Scaling(
        _yarn,
        _FACTOR_AND_CONTEXT | _BETAS | {"truncate", "mscale", "mscale_all_dim"},
        _FACTOR_AND_CONTEXT,
        _yarn_temperature,
    ),
    "llama3": Scaling(
        _llama3,
        _FACTOR_AND_CONTEXT | {"low_freq_factor", "high_freq_factor"},
        _FACTOR_AND_CONTEXT,
    ),
    "longrope": Scaling(
        _longrope,
        _FACTOR_AND_CONTEXT | _FACTOR_LISTS,
        _FACTOR_LISTS | {"original_context"},
        _longrope_temperature,
    ),
    "proportional": Scaling(_proportional, _FACTOR, rotates_all=True),
    "dynamic_yarn": Scaling(
        _dynamic_yarn,
        _CONTEXT | _BETAS | {"truncate"},
        _CONTEXT,
        _dynamic_yarn_temperature,
        at_one_length="yarn",
    ),
    "dprope": Scaling(_dprope, _FACTOR_AND_CONTEXT, _FACTOR_AND_CONTEXT),
    "nope": Scaling(nope),
    "abf": Scaling(abf, _BASE, _BASE),
    "hardclip": Scaling(hardclip, _CLIPPED, _CLIPPED),
    "cope": Scaling(cope, _CLIPPED, _CLIPPED),
    "rope_id": Scaling(rope_id, _CONTEXT | {"shortest_wavelength"}, _CONTEXT),
}

SCALING_FIELDS = frozenset().union(*(row.reads for row in SCALINGS.values()))
"""The fields that only some scalings read."""


def unread_fields(scaling: str) -> frozenset[str]:
    """The `SCALING_FIELDS` that a scaling does not read; empty if the scaling is unknown."""
    return SCALING_FIELDS - SCALINGS[scaling].reads if scaling in SCALINGS else frozenset()
