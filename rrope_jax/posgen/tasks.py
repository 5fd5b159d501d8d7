"""PosGen's three tasks: sequences whose next token follows from fixed relative positions.

Every generated token is a function h of j "far" tokens and of the k tokens just before it, modulo m
(arXiv 2403.00071, section 5). Tasks differ only in the positions of the far tokens. An example from
Figure 2 of the paper (m=7, j=1, k=3):

    seed            2 0 3 1
    recursive       2 0 3 1 6 3 6 2 3 0 4 2    far token just before the near ones
    cot             2 0 3 1 6 5 0 6 6 0 0 1    far token always x_0
    semi_recursive  2 0 3 1 6 5 5 2 1 4 1 0    far token advances every second step
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

Combine = Callable[[jax.Array, int], jax.Array]
"""h: (dependencies int32[B, j+k], far tokens first; modulus) -> int32[B] in [0, modulus)."""


def _recursive(steps: jax.Array) -> jax.Array:
    return steps


def _cot(steps: jax.Array) -> jax.Array:
    return jnp.zeros_like(steps)


def _semi_recursive(steps: jax.Array) -> jax.Array:
    return steps // 2


TASKS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "recursive": _recursive,
    "cot": _cot,
    "semi_recursive": _semi_recursive,
}
"""Task -> function from l - (j+k), for the generated position l, to the first far position."""


def modular_sum(dependencies_BD: jax.Array, modulus: int) -> jax.Array:
    """The paper's h: the sum of all dependencies modulo m."""
    return jnp.sum(dependencies_BD, axis=-1) % modulus


def sine_squared(dependencies_BD: jax.Array, modulus: int) -> jax.Array:
    """floor(m sin(sum)^2), called `pow_sin` in the authors' code."""
    total = jnp.sum(dependencies_BD, axis=-1).astype(jnp.float32)
    return _to_token(jnp.square(jnp.sin(total)), modulus)


def sine_of_turn(dependencies_BD: jax.Array, modulus: int) -> jax.Array:
    """floor(m |sin(2 pi (sum mod m) / m)|), called `pow_sin_2pi` in the authors' code."""
    total = modular_sum(dependencies_BD, modulus).astype(jnp.float32)
    return _to_token(jnp.abs(jnp.sin(2 * jnp.pi * total / modulus)), modulus)


def _to_token(share: jax.Array, modulus: int) -> jax.Array:
    # A share of exactly 1 would be outside the vocabulary.
    return jnp.minimum(jnp.floor(share * modulus).astype(jnp.int32), modulus - 1)


COMBINATIONS: dict[str, Combine] = {
    "modular_sum": modular_sum,
    "sine_squared": sine_squared,
    "sine_of_turn": sine_of_turn,
}


def generate(
    task: str,
    seeds_BS: ArrayLike,
    length: int,
    *,
    modulus: int = 17,
    j: int = 1,
    k: int = 3,
    combine: Combine = modular_sum,
) -> jax.Array:
    """Generates the sequences of a task that start with the given seeds.

    Args:
      task: A key of `TASKS`; static under jit.
      seeds_BS: int[B, j+k], the first tokens, each in [0, modulus).
      length: Tokens per sequence, including the seed; static.
      modulus: m, the number of distinct tokens.
      j: Number of far dependencies.
      k: Number of near dependencies, the tokens just before.
      combine: The function h.

    Returns:
      int32[B, length].

    Raises:
      ValueError: The task is unknown, or the sizes are out of range or do not fit together.
    """
    if task not in TASKS:
        raise ValueError(f"task={task!r} is unknown; choose one of {', '.join(TASKS)}")
    if j < 1 or k < 1 or modulus < 2:
        raise ValueError(f"j={j} and k={k} must be at least 1 and modulus={modulus} at least 2")
    seeds_BS = jnp.asarray(seeds_BS, jnp.int32)
    if seeds_BS.ndim != 2 or seeds_BS.shape[1] != j + k:
        raise ValueError(f"seeds have shape {seeds_BS.shape}; they must be [B, j+k] = [B, {j + k}]")
    if length < j + k:
        raise ValueError(f"length={length} must be at least j+k={j + k}, the length of the seed")
    far_start = TASKS[task]

    def extend(at: jax.Array, tokens_BL: jax.Array) -> jax.Array:
        far_BJ = jax.lax.dynamic_slice_in_dim(tokens_BL, far_start(at - (j + k)), j, axis=1)
        near_BK = jax.lax.dynamic_slice_in_dim(tokens_BL, at - k, k, axis=1)
        token_B = combine(jnp.concatenate([far_BJ, near_BK], axis=1), modulus)
        return jax.lax.dynamic_update_slice_in_dim(tokens_BL, token_B[:, None], at, axis=1)

    padded_BL = jnp.pad(seeds_BS, ((0, 0), (0, length - (j + k))))
    tokens_BL: jax.Array = jax.lax.fori_loop(j + k, length, extend, padded_BL)
    return tokens_BL
