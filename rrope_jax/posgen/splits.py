"""Splits of seeds into training, validation and test."""

import itertools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Splits(NamedTuple):
    """Seeds of the three splits, int32[N, j+k] each."""

    train: jax.Array
    validation: jax.Array
    test: jax.Array


class Sizes(NamedTuple):
    """Numbers of rows of the three splits."""

    train: int
    validation: int
    test: int


# Drawing without replacement shuffles all seeds; for this many, it takes seconds and 300 MiB.
_MOST_SEEDS = 2**24


def disjoint(key: jax.Array, sizes: Sizes, *, modulus: int, seed_length: int) -> Splits:
    """Draws seeds without replacement, so that no seed is in two splits (Appendix C.1).

    Raises:
      ValueError: The splits have more rows than the modulus ** seed_length possible seeds, or there
        are more possible seeds than can be shuffled.
    """
    total, available = sum(sizes), modulus**seed_length
    if available > _MOST_SEEDS:
        raise ValueError(
            f"modulus={modulus} and seeds of {seed_length} tokens make {available} seeds, more "
            f"than the {_MOST_SEEDS} that can be shuffled; use a smaller modulus or a smaller j+k"
        )
    if total > available:
        raise ValueError(
            f"the splits need {total} distinct seeds but modulus={modulus} and seeds of "
            f"{seed_length} tokens make only {available}; use fewer rows, a larger modulus or "
            "a larger j+k"
        )
    chosen = jax.random.choice(key, available, (total,), replace=False)
    powers = modulus ** jnp.arange(seed_length, dtype=jnp.int32)
    seeds = (chosen[:, None] // powers % modulus).astype(jnp.int32)
    return Splits(*jnp.split(seeds, np.cumsum(sizes)[:-1]))


def authors(key: jax.Array, sizes: Sizes, *, modulus: int, seed_length: int) -> Splits:
    """Splits seeds as in the authors' code: validation and test rows are also training rows.

    Their code cycles through sorted combinations of distinct tokens. It trains on the first rows,
    validates on the first of those, and tests on the ones that follow. `key` is unused.

    Raises:
      ValueError: A seed has more tokens than there are distinct ones.
    """
    del key
    if seed_length > modulus:
        raise ValueError(
            f"splits='authors' combines distinct tokens, but modulus={modulus} has fewer than the "
            f"{seed_length} of a seed; use splits='disjoint', a larger modulus or a smaller j+k"
        )
    rows = itertools.cycle(itertools.combinations(range(modulus), seed_length))
    seeds = jnp.asarray(list(itertools.islice(rows, sum(sizes))), jnp.int32)
    return Splits(
        seeds[: sizes.train],
        seeds[: sizes.validation],
        seeds[sizes.validation : sizes.validation + sizes.test],
    )


SPLITS: dict[str, Callable[..., Splits]] = {"disjoint": disjoint, "authors": authors}
