"""DPRoPE: whether interpolating a feature disturbs the distribution of its angles less than not."""

import functools
import math

import numpy as np
from numpy.typing import NDArray

_INTERVALS = 360
# what an interval without an angle counts as: the least normal number of float16
_EMPTY = 2.0**-14
# of sums over intervals, which then decide nothing
_ROUNDING = 1e-9


@functools.lru_cache(maxsize=64)
def interpolated(inv_freq: tuple[float, ...], *, context: int, factor: float) -> NDArray[np.bool_]:
    """Which features to interpolate: Wu et al., arXiv 2410.01490, as in 1180301012/DPRoPE.

    The angles of a feature at positions 0 to L - 1, counted in 360 equal intervals of the circle,
    are a distribution. Its angles at positions up to s L, with the frequency as it is or divided by
    s, are two others. The one with the smaller Kullback-Leibler divergence from the first is taken;
    if they are equal up to rounding, the frequency stays.

    Args:
      inv_freq: radians per token, of all features.
      context: L, in tokens.
      factor: s.

    Returns:
      bool[d/2], read-only.
    """
    extended = round(context * factor)

    def is_better(frequency: float) -> bool:
        before = _distribution(frequency, context)
        kept, divided = (
            _divergence(before, _distribution(each, extended))
            for each in (frequency, frequency / factor)
        )
        return divided < kept * (1 - _ROUNDING)

    chosen = np.array([is_better(frequency) for frequency in inv_freq])
    chosen.setflags(write=False)
    return chosen


def _distribution(frequency: float, length: int) -> NDArray[np.float64]:
    """The share of positions below a length whose angle is in each interval."""
    angles = np.arange(length, dtype=np.float64) * frequency % (2 * math.pi)
    intervals = np.minimum((angles * (_INTERVALS / (2 * math.pi))).astype(np.int64), _INTERVALS - 1)
    return (np.bincount(intervals, minlength=_INTERVALS) + _EMPTY) / length


def _divergence(before: NDArray[np.float64], after: NDArray[np.float64]) -> float:
    """The Kullback-Leibler divergence of two distributions over intervals."""
    return float(np.sum(before * np.log(before / after)))
