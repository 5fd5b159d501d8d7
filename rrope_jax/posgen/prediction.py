"""What coincidences predict for a PosGen model before it is trained.

The sum of the tasks telescopes: after the first generated token, x_l = 2 x_{l-1} - x_{l-1-d}, where
d is j + k in Recursive and k in Chain-of-Thought (and, at every second token, in Semi-recursive).
Models find this rule (docs/resonance_on_posgen.md). So a model has to attend to the token at
distance d, and it fails where a token at another distance looks the same.

How alike two distances look depends on how much each feature counts. Here these amplitudes are the
least ones with which a query finds its token at the training length: no result enters.
"""

import dataclasses
from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize  # type: ignore[import-untyped]
from scipy.special import logsumexp  # type: ignore[import-untyped]

from rrope_jax.rope import RopeSpec, analysis

Float64Array = NDArray[np.float64]

FOCUS = 0.99
"""Share of a query's weight that training asks to be on the token it needs.

Chosen on results that had been seen, before those that it predicts (docs/predictions.md).
"""

_MOST_AMPLITUDE = 1e4


@dataclasses.dataclass(frozen=True)
class Prediction:
    """What is predicted for a model with one embedding on one task.

    Attributes:
      worst: The worst coincidence: the largest mean cosine of the pre-critical features at an
        unseen distance, in [L, L'), with one of the distances 0 to j + k. Higher is worse.
      retention: The share of a query's weight on the token that it needs, averaged over positions
        from L on. Higher is better.
      retention_by_position: The same at each position from L on.
      cliff: The position where the token comes into reach that draws most weight away.
      gap: The largest feature gap of the pre-critical features; what would matter instead if unseen
        angles did. Higher is worse.
      angles: The distinct angles of the pre-critical features at positions 0 to L' - 1, summed;
        what would matter instead if few angles were easier. Higher is worse.
    """

    worst: float
    retention: float
    retention_by_position: tuple[float, ...]
    cliff: int
    gap: float
    angles: int


NEEDED_DISTANCE: Mapping[str, Callable[[int, int], int]] = MappingProxyType(
    {"recursive": lambda j, k: j + k, "cot": lambda j, k: k}
)
"""Task -> (j, k) -> the distance from the newest token of the other one that its short rule reads.

Tasks whose rule changes from token to token are not predicted, and so not here.
"""


def predict(
    spec: RopeSpec, *, task: str, j: int, k: int, train_length: int, test_length: int
) -> Prediction:
    """Predicts how a model generalizes from L = train_length to L' = test_length tokens.

    A token at offset o from the distance that is needed gets the score -m(o), which is

        m(o) = sum over pre-critical features i of  a_i (1 - cos(2 pi o / w_i))

    below that of the needed token. The amplitudes a_i >= 0 are those of the least sum with which
    softmax leaves `FOCUS` to the needed token at position L - 1. It is a sum because a_i is a
    product, of the norms of query and key: the least squares of both have the sum of all a_i.

    Args:
      spec: The embedding at test.
      task: A key of `NEEDED_DISTANCE`.
      j, k: Parameters of the task.
      train_length, test_length: L and L', in tokens.

    Raises:
      ValueError: No feature is pre-critical.
    """
    turning = analysis.is_pre_critical(spec, train_length)
    if not turning.any():
        raise ValueError(
            f"no feature turns within train_length={train_length}, so nothing can be predicted "
            "from coincidences; use a smaller theta or a longer train_length"
        )
    needed = NEEDED_DISTANCE[task](j, k)
    # At position l, the newest token is x_{l-1} and the oldest one, x_0, is at distance l - 1.
    seen = np.arange(-needed, train_length - 1 - needed)
    unseen = np.arange(train_length - 1 - needed, test_length - 1 - needed)
    apart_seen = _apart(spec, train_length, seen[seen != 0])
    amplitudes = _least_amplitudes(apart_seen)
    drawn = np.exp(-_apart(spec, train_length, unseen) @ amplitudes)
    others = np.exp(-apart_seen @ amplitudes).sum() + np.cumsum(drawn)
    retention = 1 / (1 + others)
    worst = analysis.coincidence(spec, train_length, test_length, near=j + k + 1)
    return Prediction(
        worst=float(worst.max()),
        retention=float(retention.mean()),
        retention_by_position=tuple(retention.tolist()),
        cliff=train_length + int(np.argmax(drawn)),
        gap=float(analysis.feature_gap(spec, train_length, test_length)[turning].max()),
        angles=int(analysis.distinct_angles(spec, test_length)[turning].sum()),
    )


def _apart(spec: RopeSpec, train_length: int, offsets: NDArray[np.int64]) -> Float64Array:
    """1 - cos of the angle between two distances, by offset and pre-critical feature."""
    return 1 - analysis.pre_critical_cosines(spec, train_length, offsets)


def _least_amplitudes(apart: Float64Array) -> Float64Array:
    """The amplitudes of the least sum that leave `FOCUS` to the needed token.

    If two distances cannot be told apart, no amplitudes do; then they are equal and large.

    Args:
      apart: float64[offsets, features], from 0 to 2.
    """
    most = np.log(1 / FOCUS - 1)
    start = np.full(apart.shape[1], 1.0)
    while logsumexp(-apart @ start) > most:
        start *= 2
        if start[0] > _MOST_AMPLITUDE:
            return start

    def shares(amplitudes: Float64Array) -> Float64Array:
        scores = -apart @ amplitudes
        return np.asarray(np.exp(scores - logsumexp(scores)))

    found = minimize(
        np.sum,
        start,
        jac=np.ones_like,
        bounds=[(0, None)] * start.size,
        constraints={
            "type": "ineq",
            "fun": lambda amplitudes: most - logsumexp(-apart @ amplitudes),
            "jac": lambda amplitudes: shares(amplitudes) @ apart,
        },
        method="SLSQP",
        options={"maxiter": 1000},
    )
    return np.asarray(np.maximum(found.x, 0))
