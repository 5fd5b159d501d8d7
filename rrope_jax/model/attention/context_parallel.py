"""Attention over a mesh: every device its rows, its part of each row, and its heads.

A device has the queries of its part and gathers the keys and values of whole rows. So memory is
linear in the length and falls with the devices along a row, but for the keys and values of the one
layer at work, of which grouped-query models have few.

Under a causal mask, the last of n equal parts of a row would have 2n - 1 times the work of the
first. `arrange` gives device i the pieces i and 2n - 1 - i of 2n instead, the same work for all
(the zigzag order of ring attention implementations, such as zhuzilin/ring-flash-attention).

Letters: see attention.py. L is the tokens of a row that a device has, P the pieces of a row.
"""

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from rrope_jax.sharding import parts


def arrange(x_BT: jax.Array) -> jax.Array:
    """Orders the tokens of rows so that equal parts have equal work; nothing where rows are whole.

    Args:
      x_BT: [B, T, ...], anything per token.

    Raises:
      ValueError: the length does not divide into two pieces for each part.
    """
    return _take_pieces(x_BT, _order(parts("length")))


def restore(x_BT: jax.Array) -> jax.Array:
    """The inverse of `arrange`."""
    return _take_pieces(x_BT, _inverse(_order(parts("length"))))


def arrange_indices(T: int, count: int) -> NDArray[np.int32]:
    """int32[T]: the places in a row of the tokens that `arrange` puts into `count` parts."""
    pieces_PL = np.arange(T, dtype=np.int32).reshape(2 * count, -1)
    return pieces_PL[_order(count)].reshape(-1)


def first_places(L: int, *, arranged: bool) -> list[jax.Array]:
    """int32[], the place in its row of the first token of each piece of L that a device has.

    In a `shard_map`.
    """
    part, count = jax.lax.axis_index("seq"), parts("length")
    return [L * part, L * (2 * count - 1 - part)] if arranged else [L * part]


def _order(count: int) -> list[int]:
    return [piece for part in range(count) for piece in (part, 2 * count - 1 - part)]


def _inverse(order: list[int]) -> list[int]:
    return sorted(range(len(order)), key=order.__getitem__)


def _take_pieces(x_BT: jax.Array, order: list[int]) -> jax.Array:
    if len(order) == 2:  # one part, in its own order
        return x_BT
    B, T = x_BT.shape[:2]
    if T % len(order):
        raise ValueError(
            f"rows of {T} tokens cannot be split into seq={len(order) // 2} parts of two pieces; "
            f"the length must be a multiple of {len(order)}"
        )
    x_BPL = x_BT.reshape(B, len(order), T // len(order), *x_BT.shape[2:])
    return jnp.take(x_BPL, jnp.array(order), axis=1).reshape(x_BT.shape)


def gather(x_BLK: jax.Array, *, arranged: bool) -> jax.Array:
    """Whole rows in their own order from a device's part; in a `shard_map`."""
    count = parts("length")
    if count == 1:
        return x_BLK
    x_BTK = jax.lax.all_gather(x_BLK, "seq", axis=1, tiled=True)
    return _take_pieces(x_BTK, _inverse(_order(count))) if arranged else x_BTK
