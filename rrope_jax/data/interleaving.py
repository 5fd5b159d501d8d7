"""Which of several sources each row of a run comes from: a function of the row's number alone.

Rows are dealt in periods. In a period of P rows, source s has q_s rows, its quota. The j-th of them
lies in the window from row floor(j P / q_s) up to, not including, row ceil((j + 1) P / q_s), and
each row goes to the source whose window closes first among those that are open. Since all the
windows can be kept, that rule keeps them (Baruah et al. 1996, "Proportionate progress"). So after
any r rows each source has had its exact share, r q_s / P, rounded down or up: no batch, however
small, is far from the weights.

With quotas 3, 2 and 1, the six rows of a period are from sources 0 1 0 1 0 2.

Letters: S sources, P rows per period.
"""

import heapq
import math
from collections.abc import Mapping, Sequence
from fractions import Fraction

import numpy as np

PERIOD = 2**16
"""The longest period: shares are rounded to multiples of 1 / PERIOD."""


def quotas(shares: Mapping[str, Fraction]) -> tuple[int, ...]:
    """Rounds shares of rows to rows per period, by the largest remainders.

    Args:
      shares: positive numbers by source, relative to each other.

    Raises:
      ValueError: a share is less than half a row of a period.
    """
    whole = sum(shares.values())
    exact = [share * PERIOD / whole for share in shares.values()]
    for name, rows in zip(shares, exact, strict=True):
        if 2 * rows < 1:
            raise ValueError(
                f"sources.{name}: its weight gives it {float(rows / PERIOD):.2g} of the rows, less "
                f"than one in {2 * PERIOD}; give it more, or leave it out"
            )
    rounded = [max(1, math.floor(rows)) for rows in exact]
    by_remainder = sorted(range(len(exact)), key=lambda s: rounded[s] - exact[s])
    for s in by_remainder[: max(0, PERIOD - sum(rounded))]:
        rounded[s] += 1
    divisor = math.gcd(*rounded)
    return tuple(rows // divisor for rows in rounded)


class Interleaving:
    """The source of every row, and the row's number within its source.

    Attributes:
      quotas: rows of each source in a period.
    """

    def __init__(self, quotas: Sequence[int]):
        """Deals the rows of one period.

        Args:
          quotas: rows of each source in a period, each at least 1.
        """
        self.quotas = tuple(quotas)
        self._source_P = _deal(self.quotas)
        self._before_P = np.empty_like(self._source_P)
        for source, quota in enumerate(self.quotas):
            self._before_P[self._source_P == source] = np.arange(quota)

    def place(self, row: int) -> tuple[int, int]:
        """The source of a row, and how many earlier rows that source has."""
        period, slot = divmod(row, len(self._source_P))
        source = int(self._source_P[slot])
        return source, period * self.quotas[source] + int(self._before_P[slot])

    def counts(self, rows: int) -> list[int]:
        """How many of the first `rows` rows each source has."""
        periods, rest = divmod(rows, len(self._source_P))
        begun = np.bincount(self._source_P[:rest], minlength=len(self.quotas))
        return [periods * quota + int(more) for quota, more in zip(self.quotas, begun, strict=True)]


def _deal(quotas: Sequence[int]) -> np.ndarray:
    """The source of each row of a period, int32[P]: the earliest open deadline first."""
    period = sum(quotas)
    dealt = [0] * len(quotas)
    closed = [(0, source) for source in range(len(quotas))]  # (first row of the next window, ...)
    heapq.heapify(closed)
    opened: list[tuple[int, int]] = []  # (end of the window, source)
    source_P = np.empty(period, np.int32)
    for row in range(period):
        while closed and closed[0][0] <= row:
            _, source = heapq.heappop(closed)
            end = -(-(dealt[source] + 1) * period // quotas[source])
            heapq.heappush(opened, (end, source))
        _, source = heapq.heappop(opened)
        source_P[row] = source
        dealt[source] += 1
        if dealt[source] < quotas[source]:
            heapq.heappush(closed, (dealt[source] * period // quotas[source], source))
    return source_P
