"""Which phases of each feature a model sees in training, and which are new at longer lengths.

A model trained at positions 0..L-1 first sees positions from L on at test time. At position n,
feature i of an embedding is a point on the unit circle at n / wavelength_i turns. It is
pre-critical if training covers the whole circle. Definitions: Wang et al., arXiv 2403.00071,
sections 3 to 5.

Phases are positions modulo wavelengths, which floating point computes without error. So at any
length, all results are exact up to the rounding of the float64 wavelengths.
"""

import math
from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from rrope_jax.rope import resonance
from rrope_jax.rope.fields import INT32_MAX, is_int
from rrope_jax.rope.frequencies import frequencies
from rrope_jax.rope.spec import RopeSpec

Float64Array = NDArray[np.float64]

# Limits on lengths whose positions are held in memory, and on pairs of distances to compare.
LONGEST = 2**24
MOST_PAIRS = 2**30
_FIRST_LOOK = 256
# Positions whose table is held in memory at a time.
_ROWS = 2**16
# Quick looks at some distances, which suffice to refuse most bases.
_NEARBY, _STRIDE = 128, 16


def critical_dimension(spec: RopeSpec, train_length: int, *, seq_len: int | None = None) -> int:
    """The number of pre-critical features: those with wavelength <= train_length.

    They need not come first if `longrope` factors are not monotonic. The paper writes
    wavelength < train_length; the two differ only for an integer wavelength equal to the length,
    whose phases the positions 0..train_length-1 visit exactly once.

    Args:
      spec: the embedding.
      train_length: L, in tokens.
      seq_len: the current length, for the scalings that depend on it (see `frequencies`).

    Raises:
      ValueError: train_length is not a positive integer.
    """
    return int(np.sum(is_pre_critical(spec, train_length, seq_len=seq_len)))


def is_pre_critical(
    spec: RopeSpec, train_length: int, *, seq_len: int | None = None
) -> NDArray[np.bool_]:
    """Which features are pre-critical, bool[d/2]. Arguments as for `critical_dimension`."""
    _check_length("train_length", train_length, 1, INT32_MAX)
    return np.asarray(frequencies(spec, seq_len).wavelengths <= train_length)


def feature_gap(
    spec: RopeSpec, train_length: int, test_length: int, *, seq_len: int | None = None
) -> Float64Array:
    """The largest distance of each feature at test time from its training phases (equation 8).

    For one feature and unit amplitude this is

        max over n in [L, L') of  min over m in [0, L) of  |e^(2 pi i n/w) - e^(2 pi i m/w)|

    with L = train_length, L' = test_length and w the wavelength: the chord on the unit circle
    from the phase of an unseen position to the nearest phase seen, between 0 and 2. The chord is
    the largest difference in one component over all inputs of unit length, so it bounds the paper's
    h for a pair of dimensions. The worst unseen position counts, as in the paper's proof of
    Theorem 1 (its equation, read literally, takes the best one). The attention factor is left out.

    The gap is exactly 0 for every feature that repeats within L, and has a closed form for other
    integer wavelengths. Otherwise all phases are sorted to find the nearest one.

    Args:
      spec: the embedding; the same frequencies serve training and test.
      train_length: L, in tokens.
      test_length: L', in tokens.
      seq_len: the current length, for the scalings that depend on it (see `frequencies`).

    Returns:
      float64[d/2].

    Raises:
      ValueError: not 1 <= train_length < test_length.
    """
    _check_length("train_length", train_length, 1, LONGEST)
    _check_length("test_length", test_length, train_length + 1, LONGEST)
    gaps = []
    table = frequencies(spec, seq_len)
    for wavelength, period, turns in zip(
        table.wavelengths.tolist(), table.periods.tolist(), table.turns.tolist(), strict=True
    ):
        if math.isinf(wavelength) or 0 < period <= train_length:  # no phase is new
            distance = 0.0
        elif turns == 1:
            distance = _worst_integer_distance(period, train_length, test_length)
        else:
            distance = float(np.max(unseen_distances(wavelength, train_length, test_length)))
        gaps.append(2 * math.sin(math.pi * distance / wavelength))
    return np.array(gaps)


def _worst_integer_distance(period: int, train_length: int, test_length: int) -> int:
    """The greatest of `unseen_distances` for an integer wavelength above train_length.

    Training does not reach the residues from train_length on. The farthest of them is midway
    between the last residue seen and the period, where the circle closes, or the last one that the
    test reaches.
    """
    worst = min((train_length - 1 + period) // 2, min(test_length, period) - 1)
    return min(worst - (train_length - 1), period - worst)


def unseen_distances(wavelength: float, train_length: int, test_length: int) -> Float64Array:
    """How far along the circle each unseen position is from the nearest phase seen in training.

    Phases are exact: the remainder of two floats is itself a float.

    Args:
      wavelength: in tokens, finite.
      train_length: positions in [0, train_length) are seen.
      test_length: positions in [train_length, test_length) are unseen.

    Returns:
      float64[test_length - train_length], in tokens.
    """
    seen = np.sort(np.fmod(np.arange(train_length, dtype=np.float64), wavelength))
    seen = np.concatenate([seen[-1:] - wavelength, seen, seen[:1] + wavelength])
    unseen = np.fmod(np.arange(train_length, test_length, dtype=np.float64), wavelength)
    above = np.searchsorted(seen, unseen)
    return np.asarray(np.minimum(seen[above] - unseen, unseen - seen[above - 1]))


def coincidence(
    spec: RopeSpec,
    train_length: int,
    test_length: int,
    *,
    near: int = 1,
    seq_len: int | None = None,
) -> Float64Array:
    """How closely the pre-critical features of each unseen distance match those of a near one.

    For every distance n in [L, L') between two tokens this is

        max over m in [0, near) of  mean over pre-critical features of  cos(2 pi (n - m) / w)

    with L = train_length and L' = test_length. It is 1 if all of these features have the same
    angles as at distance m. A model that attends to near tokens confuses them with tokens at such a
    distance (docs/findings.md). Resonance makes coincidences exact at common multiples of the
    periods.

    Args:
      spec: the embedding.
      train_length: L, in tokens; decides which features are pre-critical.
      test_length: L', in tokens.
      near: number of near distances to compare with: 0..near-1.
      seq_len: the current length, for the scalings that depend on it (see `frequencies`).

    Returns:
      float64[test_length - train_length], at most 1; NaN if no feature is pre-critical.

    Raises:
      ValueError: not 1 <= near <= train_length < test_length.
    """
    _check_length("train_length", train_length, 1, LONGEST)
    _check_length("test_length", test_length, train_length + 1, LONGEST)
    _check_length("near", near, 1, train_length)
    if near * (test_length - train_length) > MOST_PAIRS:
        raise ValueError(
            f"near={near} times the {test_length - train_length} unseen distances is more than "
            f"{MOST_PAIRS} pairs to compare; choose a smaller near"
        )
    distances = np.arange(train_length - near + 1, test_length, dtype=np.int64)
    pre_critical = is_pre_critical(spec, train_length, seq_len=seq_len)
    if not pre_critical.any():
        return np.full(test_length - train_length, np.nan)
    similarity = np.zeros(distances.size)
    for turns in _turns(spec, distances, seq_len, np.flatnonzero(pre_critical)):
        similarity += np.cos(2 * np.pi * turns)
    windows = np.lib.stride_tricks.sliding_window_view(similarity / pre_critical.sum(), near)
    return np.asarray(windows.max(axis=1))


def pre_critical_cosines(
    spec: RopeSpec,
    train_length: int,
    offsets: NDArray[np.int64],
    *,
    seq_len: int | None = None,
) -> Float64Array:
    """How alike the pre-critical features are at two distances that differ by an offset.

    Args:
      spec: the embedding.
      train_length: L, in tokens; decides which features are pre-critical.
      offsets: int64[N], in tokens, of either sign.
      seq_len: the current length, for the scalings that depend on it (see `frequencies`).

    Returns:
      cos(2 pi offset / w), float64[N, pre-critical features].
    """
    pre_critical = np.flatnonzero(is_pre_critical(spec, train_length, seq_len=seq_len))
    turns = list(_turns(spec, offsets, seq_len, pre_critical))
    return np.cos(2 * np.pi * np.reshape(turns, (pre_critical.size, offsets.size)).T)


def _turns(
    spec: RopeSpec,
    positions: NDArray[np.int64],
    seq_len: int | None,
    features: Iterable[int] | None = None,
) -> Iterator[Float64Array]:
    """The angle of each feature at these positions, in turns from -1 to 1."""
    table = frequencies(spec, seq_len)
    for index in range(table.periods.size) if features is None else features:
        period, wavelength = int(table.periods[index]), float(table.wavelengths[index])
        if period and int(table.turns[index]) < 2**31:  # positions are int32
            yield positions * int(table.turns[index]) % period / period
        elif math.isinf(wavelength):
            yield np.zeros(positions.size)
        else:
            yield np.fmod(positions.astype(np.float64), wavelength) / wavelength


def uniqueness(spec: RopeSpec, train_length: int, *, seq_len: int | None = None) -> int:
    """The number of tokens after which the pre-critical features repeat together.

    This is the least common multiple of their periods, or 1 if no feature is pre-critical. The
    wavelengths of features without a period are rounded first.

    Args:
      spec: the embedding.
      train_length: L, in tokens; decides which features are pre-critical.
      seq_len: the current length, for the scalings that depend on it (see `frequencies`).

    Returns:
      An exact int, which may exceed any float (7.058e51 for LLaMA 2 at 4096 tokens).

    Raises:
      ValueError: train_length is not a positive integer, or a wavelength cannot be rounded.
    """
    _check_length("train_length", train_length, 1, INT32_MAX)
    table = frequencies(spec, seq_len)
    rounded = resonance.round_wavelengths(np.where(table.periods > 0, np.inf, table.wavelengths))
    periods = table.periods[(table.periods > 0) & (table.wavelengths <= train_length)]
    return math.lcm(*periods.tolist(), *map(int, rounded[rounded <= train_length]))


def distortion(spec: RopeSpec, distance: int, *, seq_len: int | None = None) -> Float64Array:
    """How far the rule of resonance moves each feature at a distance between two tokens.

    It is the chord on the unit circle between the angle at this distance and the angle without
    resonance, so from 0 to 2.

    Args:
      spec: the embedding.
      distance: in tokens.
      seq_len: the current length, for the scalings that depend on it (see `frequencies`).

    Returns:
      float64[d/2].

    Raises:
      ValueError: the distance is not a positive integer.
    """
    _check_length("distance", distance, 1, INT32_MAX)
    plain = spec.with_method(spec.scaling, resonance=False)
    at = np.array([distance], np.int64)
    before, after = (np.concatenate(list(_turns(each, at, seq_len))) for each in (plain, spec))
    return np.asarray(2 * np.abs(np.sin(np.pi * (after - before))))


def distinct_angles(
    spec: RopeSpec, length: int, *, seq_len: int | None = None
) -> NDArray[np.int64]:
    """How many different angles each feature takes at positions 0 to length - 1, int64[d/2].

    A feature that repeats takes as many as it has tokens in its period, a feature that never turns
    takes one, and any other feature takes a new one at every position.

    Raises:
      ValueError: the length is not a positive integer.
    """
    _check_length("length", length, 1, INT32_MAX)
    table = frequencies(spec, seq_len)
    repeats = np.where(table.periods > 0, table.periods, length)
    repeats[np.isinf(table.wavelengths)] = 1
    return np.minimum(repeats, length)


def effective_rank(spec: RopeSpec, length: int, *, seq_len: int | None = None) -> float:
    """The effective rank of the table of cos and sin at positions 0 to length - 1.

    This is the exponential of the entropy of the normalized singular values (Roy and Vetterli 2007,
    "The effective rank: a measure of effective dimensionality"): from 1 to the number of rotated
    dimensions.

    Raises:
      ValueError: the length is not an integer from 1 to `LONGEST`.
    """
    _check_length("length", length, 1, LONGEST)
    gram = np.zeros(())
    for start in range(0, length, _ROWS):
        positions = np.arange(start, min(start + _ROWS, length), dtype=np.int64)
        angles = [2 * np.pi * turns for turns in _turns(spec, positions, seq_len)]
        columns = np.array([f(angle) for angle in angles for f in (np.cos, np.sin)])
        gram = gram + columns @ columns.T
    singular = np.sqrt(np.maximum(np.linalg.eigvalsh(gram), 0))
    share = singular / singular.sum()
    share = share[share > 0]
    return float(np.exp(-np.sum(share * np.log(share))))


def context_bound(spec: RopeSpec, longest: int, *, seq_len: int | None = None) -> int:
    """The length up to which a table favors similar tokens at every distance.

    This is the least distance m at which the sum over features of cos(m * inv_freq) is negative,
    which bounds the context (Men et al., arXiv 2405.14591, theorem 1); `longest` if there is none
    below it.

    Raises:
      ValueError: longest is not an integer from 1 to `LONGEST`.
    """
    _check_length("longest", longest, 1, LONGEST)
    start, stop = 0, min(_FIRST_LOOK, longest)
    while start < longest:  # in parts that double, since most tables fail early
        distances = np.arange(start, stop, dtype=np.int64)
        negative = np.flatnonzero(_sum_of_cosines(spec, distances, seq_len) < 0)
        if negative.size:
            return start + int(negative[0])
        start, stop = stop, min(2 * stop, longest)
    return longest


def _sum_of_cosines(
    spec: RopeSpec, distances: NDArray[np.int64], seq_len: int | None
) -> Float64Array:
    """The sum over features of the cosine of their angle at each distance."""
    turns = _turns(spec, distances, seq_len)
    return np.asarray(sum(np.cos(2 * np.pi * each) for each in turns))


def least_theta(head_dim: int, length: int) -> float:
    """The least base of plain RoPE whose `context_bound` reaches a length.

    Bases are tried from 10 upwards, each 2 % above the one before, and the step to the first that
    suffices is bisected. The question is that of arXiv 2405.14591, section 4; larger bases do not
    all suffice, so another grid may find another answer nearby.

    Raises:
      ValueError: the length is not an integer from 1 to `LONGEST`, or head_dim is not one of a
        `RopeSpec`.
    """
    _check_length("length", length, 1, LONGEST)
    sparse = np.arange(0, length, _STRIDE, dtype=np.int64)
    failed = 0  # where the base before this one failed, which is near where this one does

    def suffices(theta: float) -> bool:
        nonlocal failed
        spec = RopeSpec(head_dim=head_dim, theta=theta)
        nearby = np.linspace(failed, min(1.2 * failed + 1, length - 1), _NEARBY).astype(np.int64)
        for distances in (nearby, sparse):
            negative = distances[_sum_of_cosines(spec, distances, None) < 0]
            if negative.size:
                failed = int(negative[0])
                return False
        return context_bound(spec, length) == length

    low, high = 10.0, 10.0
    while not suffices(high):
        low, high = high, high * 1.02
    while high / low > 1 + 1e-6:
        middle = math.sqrt(low * high)
        low, high = (low, middle) if suffices(middle) else (middle, high)
    return high


def _check_length(name: str, value: int, least: int, most: int) -> None:
    if not (is_int(value) and least <= value):
        raise ValueError(f"{name}={value!r} must be an integer >= {least}; give a length in tokens")
    if value > most:
        raise ValueError(f"{name}={value!r} must be an integer <= {most}; give a length in tokens")
