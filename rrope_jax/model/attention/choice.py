"""`attention`, and the one function that decides how it is computed."""

from collections.abc import Callable
from typing import NamedTuple

import jax

from rrope_jax.model.attention import chunked, context_parallel, cudnn, dense, splash
from rrope_jax.model.attention.call import Call, CallShape, Implementation, dropout_obstacle
from rrope_jax.model.attention.mask import CausalMask
from rrope_jax.sharding import on_a_mesh, parts

# `auto` takes the first row that is long enough and has no obstacle.
IMPLEMENTATIONS: dict[str, Implementation] = {
    # below this length the logits of all pairs fit, and XLA needs no time for preparing a mask
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
      piece: the shape that the implementation computes at a time: the whole call, or a device's
        piece of it.
      over_mesh: whether every device computes its own part.
    """

    name: str
    piece: CallShape
    over_mesh: bool


def choose(shape: CallShape, implementation: str = "auto") -> Choice:
    """Decides how a call of a shape is computed on the current platform and mesh.

    Args:
      shape: of the whole call, over all devices.
      implementation: a key of `IMPLEMENTATIONS`, or `auto` for the first of them that can compute
        this call: `splash` on TPUs for long sequences, `cudnn` on GPUs in bfloat16 (except for
        long rows of several segments), else `xla` for short and `chunked` for long sequences.

    Raises:
      ValueError: the implementation asked for cannot compute this call.
    """
    if shape.dropout and parts("length") > 1:
        raise ValueError("dropout on attention weights cannot be split over seq; set mesh.seq=1")
    # XLA splits calls with a cache, and those with dropout, whose mask is that of whole arrays
    over_mesh = on_a_mesh() and not shape.continued and not shape.dropout
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
) -> jax.Array:
    """Softmax attention with float32 logits and softmax.

    Args:
      q_BTNH: rotated queries, multiplied by the scale of the logits (`rope.rotate` does both).
      k_BSKH, v_BSKH: rotated keys and values, of the dtype of the queries.
      mask: who sees whom.
      implementation: as in `choose`.
      dropout: applied to the softmax weights, float32[B, K, G, T, S]; None for none.

    Returns:
      Like q_BTNH.

    Raises:
      ValueError: the implementation asked for cannot compute this call.
    """
    call = Call(q_BTNH, k_BSKH, v_BSKH, mask, dropout)
    choice = choose(call.shape, implementation)
    row = IMPLEMENTATIONS[choice.name]
    if choice.over_mesh:
        return context_parallel.attend(row, choice.piece, call)
    return row.run(call)
