"""Pairwise coprime integers near given numbers.

Positions modulo pairwise coprime periods form a residue number system: the angles of all features
together repeat only after the product of the periods, the longest that is possible.
"""

import functools
import itertools
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

# How many partial solutions the search keeps, and how many integers each tries for the next number.
_BEAM = 64
_BRANCHES = 4


class _Partial(NamedTuple):
    """Integers for the first few numbers.

    Attributes:
      cost: sum of the squared logarithms of integer / number.
      integers: one for each of these numbers.
      product: their product.
    """

    cost: float
    integers: tuple[int, ...]
    product: int


@functools.lru_cache(maxsize=256)
def near(numbers: tuple[float, ...], most: int | None = None) -> tuple[int, ...]:
    """Finds integers of at least 2, no two of which share a factor, near the given numbers.

    A beam search from the smallest number to the largest minimizes the sum of squared relative
    distances (of logarithms). Among small numbers few integers are coprime, so these are moved
    most. The result is deterministic, and good rather than provably the best.

    Args:
      numbers: finite, in any order.
      most: the largest integer allowed; None for no limit.

    Returns:
      An integer for each number, in their order.

    Raises:
      ValueError: the search finds no such integers up to `most`.
    """
    order = sorted(range(len(numbers)), key=numbers.__getitem__)
    beam = [_Partial(0.0, (), 1)]
    for index in order:
        grown = [
            _Partial(
                partial.cost + math.log(integer / numbers[index]) ** 2,
                (*partial.integers, integer),
                partial.product * integer,
            )
            for partial in beam
            for integer in itertools.islice(
                _coprime_to(partial.product, numbers[index], most), _BRANCHES
            )
        ]
        if not grown:
            raise ValueError(
                f"resonance='coprime' finds no {len(numbers)} integers up to resonance_limit="
                f"{most} of which no two share a factor; use a longer one, or a smaller head_dim"
            )
        beam = sorted(grown)[:_BEAM]
    best = beam[0].integers
    return tuple(integer for _, integer in sorted(zip(order, best, strict=True)))


def shares_no_factor(integers: Sequence[int]) -> bool:
    """Whether integers are pairwise coprime: their least common multiple is their product."""
    return math.lcm(*integers) == math.prod(integers)


def _coprime_to(product: int, number: float, most: int | None) -> Iterator[int]:
    """Integers from 2 to `most` that are coprime to a product, nearest to a number first."""
    below = max(math.floor(number), 1)
    above = max(below + 1, 2)
    while below >= 2 or most is None or above <= most:
        only_below = most is not None and above > most
        if below >= 2 and (only_below or number - below <= above - number):
            integer, below = below, below - 1
        else:
            integer, above = above, above + 1
        if math.gcd(integer, product) == 1:
            yield integer
