"""Integer wavelengths whose far distances look as little as possible like near ones.

A model that attends to near tokens confuses them with tokens at a distance at which most of its
features have the same angles as at a near one (docs/findings.md, `analysis.coincidence`). How alike
two distances are is a sum over features, which the choice of integers controls.
"""

import functools
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

# Limits on the integers that are tried for a feature, on the starts, and on the cosines computed.
_CANDIDATES = 65
_STARTS = 24
_WORK = 10**9
_SWEEPS = 12


@functools.lru_cache(maxsize=256)
def integers(
    wavelengths: tuple[float, ...], *, first: int, length: int, near: int, tolerance: float
) -> tuple[int, ...]:
    """Finds integers near the wavelengths that minimize the worst coincidence.

    This is the largest value of `likeness` over the far distances, [first, length), and the near
    ones, [0, near). Each integer differs from its wavelength by at most the tolerance, or is the
    nearest one, and none is above `first`, so that training sees all phases; at most 65 are tried
    per feature, the nearest ones.

    Coordinate descent changes one feature at a time until no change helps. It starts from the
    nearest integers and then from a fixed sequence of random ones, as many as the work for this
    length allows. So the result is deterministic, takes bounded time, and is never worse than the
    nearest integers.

    Args:
      wavelengths: of the features to design, in tokens.
      first: the least far distance, L in training on L tokens.
      length: the end of the far distances, exclusive.
      near: number of near distances.
      tolerance: largest relative change of a wavelength.

    Returns:
      An integer of at least 2 for each wavelength.
    """
    if not wavelengths:
        return ()
    candidates = [_candidates(wavelength, tolerance, first) for wavelength in wavelengths]
    apart = np.arange(max(first - near + 1, 1), length, dtype=np.int64)
    random = np.random.default_rng(0)
    # a sweep computes the cosines of all candidates at all distances
    sweep = max(apart.size * sum(map(len, candidates)), 1)
    starts = min(max(_WORK // (sweep * _SWEEPS), 1), _STARTS)
    best: tuple[float, tuple[int, ...]] | None = None
    for start in range(starts):
        chosen = [row[0] if start == 0 else int(random.choice(row)) for row in candidates]
        worst = _descend(chosen, candidates, apart)
        if best is None or (worst, tuple(chosen)) < best:
            best = worst, tuple(chosen)
    assert best is not None
    return best[1]


def likeness(periods: Sequence[int], apart: NDArray[np.int64]) -> NDArray[np.float64]:
    """The mean cosine over features of pairs of tokens so many tokens apart, float64[D].

    It is 1 where all features have made whole turns.

    Args:
      periods: whole wavelengths, in tokens.
      apart: consecutive distances, in tokens.
    """
    return np.asarray(np.mean([_cosines(period, apart) for period in periods], axis=0))


def _candidates(wavelength: float, tolerance: float, most: int) -> list[int]:
    """The integers to try for a wavelength, the nearest one first."""
    nearest = max(round(wavelength), 2)
    reach = min(int(tolerance * wavelength) + 1, _CANDIDATES // 2)
    allowed = [
        integer
        for integer in range(max(nearest - reach, 2), min(nearest + reach, most) + 1)
        if integer == nearest or abs(integer - wavelength) <= tolerance * wavelength
    ]
    return sorted(allowed, key=lambda integer: (abs(integer - wavelength), integer))


def _cosines(period: int, apart: NDArray[np.int64]) -> NDArray[np.float64]:
    """The cosines at consecutive distances, of which only one turn is computed."""
    turn = (apart[0] + np.arange(min(period, apart.size))) % period
    return np.resize(np.cos(2 * np.pi * turn / period), apart.size)


def _descend(
    chosen: list[int], candidates: Sequence[Sequence[int]], apart: NDArray[np.int64]
) -> float:
    """Improves integers in place, one feature at a time; returns their worst likeness."""
    total = np.sum([_cosines(period, apart) for period in chosen], axis=0)
    worst = float(total.max())
    for _ in range(_SWEEPS):
        before = worst
        for index, row in enumerate(candidates):
            others = total - _cosines(chosen[index], apart)
            for integer in row:
                changed = others + _cosines(integer, apart)
                if (peak := float(changed.max())) < worst - 1e-12:
                    worst, chosen[index], total = peak, integer, changed
        if worst == before:
            break
    return worst / len(chosen)
