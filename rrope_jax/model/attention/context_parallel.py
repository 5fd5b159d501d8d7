"""Attention over a mesh that splits rows, the tokens of each row, and heads.

A device holds the queries of its part of a row and gathers the keys and values of the whole row.
Memory is therefore linear in the length and shrinks with the number of devices along a row, except
for the keys and values of the current layer, which are small in grouped-query models. With a
sliding window of at most a piece, a device instead receives the end of the piece before each of its
own, unless the implementation needs whole rows (splash).

Under a causal mask, the last of n equal parts of a row would have 2n - 1 times the work of the
first. To balance the work, `arrange` gives device i pieces i and 2n - 1 - i of 2n pieces. This is
the zigzag order of ring attention implementations such as zhuzilin/ring-flash-attention.

Letters: L is the number of tokens of a row on one device, P the number of pieces of a row.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from rrope_jax.model.attention.call import Call, CallShape, Implementation
from rrope_jax.model.attention.mask import CausalMask
from rrope_jax.sharding import parts, spec


def arrange(x_BT: jax.Array) -> jax.Array:
    """Reorders the tokens of rows to balance the work between devices; see the module docstring.

    Args:
      x_BT: [B, T, ...], any per-token array; unchanged if the mesh does not split rows.

    Raises:
      ValueError: the length is not a multiple of twice the number of parts of a row.
    """
    return _take_pieces(x_BT, _order(parts("length")))


def restore(x_BT: jax.Array) -> jax.Array:
    """The inverse of `arrange`."""
    return _take_pieces(x_BT, _inverse(_order(parts("length"))))


def arrange_indices(T: int, count: int) -> NDArray[np.int32]:
    """The original index of every token in the order of `arrange` for `count` parts, int32[T]."""
    pieces_PL = np.arange(T, dtype=np.int32).reshape(2 * count, -1)
    return pieces_PL[_order(count)].reshape(-1)


def _order(count: int) -> list[int]:
    return [piece for part in range(count) for piece in (part, 2 * count - 1 - part)]


def _inverse(order: list[int]) -> list[int]:
    return sorted(range(len(order)), key=order.__getitem__)


def _take_pieces(x_BT: jax.Array, order: list[int]) -> jax.Array:
    if len(order) == 2:  # a single part keeps its order
        return x_BT
    B, T = x_BT.shape[:2]
    if T % len(order):
        raise ValueError(
            f"rows of {T} tokens cannot be split into seq={len(order) // 2} parts of two pieces; "
            f"the length must be a multiple of {len(order)}"
        )
    x_BPL = x_BT.reshape(B, len(order), T // len(order), *x_BT.shape[2:])
    return jnp.take(x_BPL, jnp.array(order), axis=1).reshape(x_BT.shape)


def _gather(parts_BL: Any, *, arranged: bool) -> Any:
    """Gathers whole rows in original order from parts [B, L, ...]; call it in a `shard_map`.

    Args:
      parts_BL: a tree of arrays.
      arranged: whether they are in the order of `arrange`.
    """
    count = parts("length")
    if count == 1:
        return parts_BL

    def gather(x_BL: jax.Array) -> jax.Array:
        x_BT = jax.lax.all_gather(x_BL, "seq", axis=1, tiled=True)
        return _take_pieces(x_BT, _inverse(_order(count))) if arranged else x_BT

    return jax.tree.map(gather, parts_BL)


def piece(shape: CallShape) -> CallShape:
    """The shape of a device's piece of a call: consecutive queries, and the keys of whole rows."""
    return dataclasses.replace(
        shape,
        B=shape.B // parts("batch"),
        T=shape.T // (parts("length") * _pieces_per_device(shape.arranged)),
        N=shape.N // parts("heads"),
        K=shape.K // parts("kv_heads"),
    )


def tokens_before(window: int | None, piece_length: int) -> int | None:
    """How many tokens before a piece its queries see, if all are in one piece; otherwise None."""
    return None if window is None or window > piece_length else window - 1


def _pieces_per_device(arranged: bool) -> int:
    return 2 if arranged and parts("length") > 1 else 1


def attend(implementation: Implementation, piece: CallShape, call: Call) -> jax.Array:
    """Computes a call on the mesh; each device attends from its own queries to whole rows.

    Args:
      implementation: the implementation that each device runs.
      piece: `piece(call.shape)`.
      call: the whole call, over all devices.

    Returns:
      An array of the shape and dtype of q_BTNH.
    """
    mesh = jax.sharding.get_abstract_mesh()
    arranged = call.mask.arranged
    prepared, prepared_spec = None, None
    if implementation.prepare is not None:
        prepared, prepared_spec = implementation.prepare(piece, mesh)

    def local(
        q_BLNH: jax.Array,
        k_BLKH: jax.Array,
        v_BLKH: jax.Array,
        segment_ids_BL: jax.Array | None,
        key_segment_ids_BL: jax.Array | None,
        prepared: object,
    ) -> jax.Array:
        key_ids_BL = CausalMask(segment_ids_BL, key_segment_ids_BL).key_segments
        mask = call.mask._replace(segment_ids_BT=segment_ids_BL, key_segment_ids_BS=key_ids_BL)
        if implementation.prepare is None and parts("length") > 1:
            return _piece_by_piece(implementation, Call(q_BLNH, k_BLKH, v_BLKH, mask))
        k_BTKH, v_BTKH, key_ids_BT = _gather((k_BLKH, v_BLKH, key_ids_BL), arranged=arranged)
        mask = mask._replace(key_segment_ids_BS=key_ids_BT)
        return implementation.run(Call(q_BLNH, k_BTKH, v_BTKH, mask, prepared=prepared))

    tokens = spec(("batch", "length"), mesh)
    queries = spec(("batch", "length", "heads", None), mesh)
    keys = spec(("batch", "length", "kv_heads", None), mesh)
    return jax.shard_map(
        local,
        in_specs=(queries, keys, keys, tokens, tokens, prepared_spec),
        out_specs=queries,
        check_vma=False,  # the kernels' loops start from constants
    )(
        call.q_BTNH,
        call.k_BSKH,
        call.v_BSKH,
        call.mask.segment_ids_BT,
        call.mask.key_segment_ids_BS,
        prepared,
    )


def _piece_by_piece(implementation: Implementation, part: Call) -> jax.Array:
    """Computes a device's part of a row, whose pieces start at different indices of the row.

    Args:
      implementation: as in `attend`.
      part: the device's own queries, keys and values.
    """
    B, L = part.q_BTNH.shape[:2]
    mask = part.mask
    count = _pieces_per_device(mask.arranged)
    device, devices = jax.lax.axis_index("seq"), parts("length")
    P = L // count
    own = (part.k_BSKH, part.v_BSKH, mask.key_segments)
    before = tokens_before(mask.window, P)
    if before is not None:
        keys = [_neighborhood(own, index, before, count) for index in range(count)]
        starts = [jnp.where(device == 0, 0, before), jnp.int32(before)][:count]
    else:
        keys = [_gather(own, arranged=mask.arranged)] * count
        starts = [P * device, P * (2 * devices - 1 - device)][:count]
    mixed = []
    for index, (start, (k_BSKH, v_BSKH, key_ids_BS)) in enumerate(zip(starts, keys, strict=True)):
        tokens = slice(index * P, (index + 1) * P)
        ids_BP = None if mask.segment_ids_BT is None else mask.segment_ids_BT[:, tokens]
        start_B = jnp.full((B,), start, jnp.int32)
        piece_mask = CausalMask(ids_BP, key_ids_BS, start_B, window=mask.window)
        mixed.append(implementation.run(Call(part.q_BTNH[:, tokens], k_BSKH, v_BSKH, piece_mask)))
    return jnp.concatenate(mixed, axis=1)


def _neighborhood(parts_BL: Any, index: int, before: int, count: int) -> Any:
    """A device's piece and the `before` tokens that precede it; call it in a `shard_map`.

    The first piece of a row, which nothing precedes, has arbitrary tokens at its end instead.

    Args:
      parts_BL: a tree of arrays [B, L, ...].
      index: of the piece among the device's own.
      before: at most the length of a piece.
      count: number of pieces of a device.
    """
    device, devices = jax.lax.axis_index("seq"), parts("length")
    last = devices - 1

    def join(x_BL: jax.Array) -> jax.Array:
        pieces = jnp.split(x_BL, count, axis=1)
        ends = [x_BP[:, x_BP.shape[1] - before :] for x_BP in pieces]
        if index == 0:
            end = jax.lax.ppermute(ends[0], "seq", [(d, d + 1) for d in range(last)])
            joined = jnp.concatenate([end, pieces[0]], axis=1)
            return jnp.where(device == 0, jnp.roll(joined, -before, axis=1), joined)
        # second pieces go backward; the one on the last device follows its own first piece
        end = jax.lax.ppermute(ends[1], "seq", [(d + 1, d) for d in range(last)])
        end = jnp.where(device == last, ends[0], end)
        return jnp.concatenate([end, pieces[1]], axis=1)

    return jax.tree.map(join, parts_BL)
