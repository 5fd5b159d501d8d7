"""`attention`, and `choose`, which selects its implementation."""

from collections.abc import Callable
from typing import NamedTuple

import jax

from rrope_jax.model.attention import chunked, context_parallel, cudnn, dense, splash
from rrope_jax.model.attention.call import (
    Call,
    CallShape,
    FarPairs,
    Implementation,
    dropout_obstacle,
)
from rrope_jax.model.attention.mask import CausalMask
from rrope_jax.sharding import on_a_mesh, parts

# `auto` takes the first entry whose `auto_pairs` the call reaches and that has no obstacle.
IMPLEMENTATIONS: dict[str, Implementation] = {
    # in shorter rows the logits of all pairs fit in memory, and XLA has no mask to prepare
    "splash": Implementation(
        splash.run, splash.obstacle, auto_pairs=4096**2, prepare=splash.prepare
    ),
    "cudnn": Implementation(cudnn.run, cudnn.obstacle),
    "chunked": Implementation(chunked.run, dropout_obstacle, auto_pairs=512**2),
    "xla": Implementation(dense.run, lambda shape: None),
}


class Choice(NamedTuple):
    """How a call is computed.

    Attributes:
      name: a key of `IMPLEMENTATIONS`.
      piece: the shape that the implementation computes at a time: the whole call or a device's
        piece of it.
      over_mesh: whether every device computes its own part explicitly, in a `jax.shard_map`.
    """

    name: str
    piece: CallShape
    over_mesh: bool


def choose(shape: CallShape, implementation: str = "auto") -> Choice:
    """Decides how a call is computed on the current platform and mesh.

    Args:
      shape: the shape of the whole call, over all devices.
      implementation: a key of `IMPLEMENTATIONS`, or `auto` for the first one that suits this call:
        `splash` on TPUs for long sequences, `cudnn` on GPUs in bfloat16 (except for long rows of
        several segments), otherwise `xla` for short and `chunked` for long sequences.

    Raises:
      ValueError: the requested implementation cannot compute this call.
    """
    if shape.dropout and parts("length") > 1:
        raise ValueError("dropout on attention weights cannot be split over seq; set mesh.seq=1")
    if shape.far and parts("length") > 1:
        raise ValueError("rows under far_positions cannot be split over seq; set mesh.seq=1")
    # XLA itself splits calls with a cache, those with far pairs, and those with dropout, whose mask
    # spans whole arrays
    over_mesh = on_a_mesh() and not (shape.continued or shape.far or shape.dropout)
    piece = context_parallel.piece(shape) if over_mesh else shape
    if implementation == "auto":
        name = next(
            name
            for name, row in IMPLEMENTATIONS.items()
            if row.auto_pairs <= piece.T * piece.S and row.obstacle(piece) is None
        )
        return Choice(name, piece, over_mesh)
    if (reason := IMPLEMENTATIONS[implementation].obstacle(piece)) is not None:
        raise ValueError(
            f"attention={implementation!r} cannot be used here: {reason}; use 'auto' or 'xla'"
        )
    return Choice(implementation, piece, over_mesh)


def attention(
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    mask: CausalMask,
    *,
    implementation: str = "auto",
    dropout: Callable[[jax.Array], jax.Array] | None = None,
    far: FarPairs | None = None,
) -> jax.Array:
    """Softmax attention with float32 logits and softmax.

    With `far`, the logits of far pairs come from its queries and keys, and one softmax goes over
    both: attention within the window and attention beyond it, merged by log-sum-exp.

    Args:
      q_BTNH: queries, rotated and multiplied by the attention scale (`rope.rotate` does both).
      k_BSKH, v_BSKH: rotated keys, and values, in the dtype of the queries.
      mask: which keys each query may see.
      implementation: as in `choose`.
      dropout: applied to the softmax weights, float32[B, K, G, T, S]; None for no dropout.
      far: what far pairs have instead of `q_BTNH` and `k_BSKH`; None if all pairs have these.

    Returns:
      An array of the shape and dtype of q_BTNH.

    Raises:
      ValueError: the requested implementation cannot compute this call.
    """
    if mask.window is not None and mask.window >= k_BSKH.shape[1]:
        mask = mask._replace(window=None)  # it holds all keys
    call = Call(q_BTNH, k_BSKH, v_BSKH, mask, dropout, far)
    choice = choose(call.shape, implementation)
    row = IMPLEMENTATIONS[choice.name]
    if choice.over_mesh:
        return context_parallel.attend(row, choice.piece, call)
    return row.run(call)
