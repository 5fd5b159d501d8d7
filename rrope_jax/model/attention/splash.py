"""JAX's Pallas attention kernel for TPUs, "splash" in jax.experimental.

L is the number of queries of a row on one device.
"""

import math
from typing import Any

import jax
from jax.sharding import AbstractMesh, NamedSharding, PartitionSpec

from rrope_jax.model.attention.call import Call, CallShape, first_obstacle, fused_obstacle
from rrope_jax.model.attention.chunked import RESULT
from rrope_jax.model.attention.context_parallel import arrange_indices
from rrope_jax.sharding import parts

INTERPRET = False
"""Whether Pallas interprets the kernel, which is slow but works on any platform; for tests."""

_TILE = 128  # divides the kernel's blocks
_BLOCK = 512


def run(call: Call) -> jax.Array:
    """Never holds the logits of all pairs."""
    from jax.experimental.pallas.ops.tpu import splash_attention

    kernel = _make_kernel(call.shape) if call.prepared is None else call.prepared
    heads_first = [x.swapaxes(1, 2) for x in (call.q_BTNH, call.k_BSKH, call.v_BSKH)]
    segment_ids_BL, segment_ids_BS = call.mask.segment_ids_BT, call.mask.key_segments
    segments = None
    if segment_ids_BL is not None and segment_ids_BS is not None:
        segments = splash_attention.SegmentIds(segment_ids_BL, segment_ids_BS)
    mixed_BNLH: jax.Array = jax.vmap(kernel)(*heads_first, segments)
    return mixed_BNLH.swapaxes(1, 2)


def obstacle(shape: CallShape) -> str | None:
    """Why `run` cannot compute calls of a shape, or None."""
    return fused_obstacle(shape, "tpu") or first_obstacle(
        (shape.T % _TILE != 0, f"it needs pieces of rows that {_TILE} divides, not {shape.T}"),
    )


def prepare(piece: CallShape, mesh: AbstractMesh) -> tuple[Any, Any]:
    """The kernel for all devices, and its sharding over the mesh, for `jax.shard_map`."""
    kernel = _make_kernel(piece)
    return kernel, kernel.manual_sharding_spec(NamedSharding(mesh, PartitionSpec("tensor", "seq")))


def _make_kernel(piece: CallShape) -> Any:
    """The causal kernel, with its table of visible blocks, for all devices.

    Args:
      piece: the shape of a device's consecutive queries, which the block size divides.
    """
    # imported here because the import takes half a second
    from jax.experimental.pallas.ops.tpu import splash_attention

    head_parts, row_parts = parts("heads"), parts("length")
    # the window as the keys on the left of a query, without its own, and on its right
    before = None if piece.window is None else piece.window - 1
    mask = splash_attention.LocalMask((piece.S, piece.S), (before, 0), offset=0)
    if piece.arranged:
        mask.q_sequence = arrange_indices(piece.S, row_parts)
    block = math.gcd(piece.T, _BLOCK)
    return splash_attention.make_splash_mha(
        splash_attention.MultiHeadMask([mask] * (piece.N * head_parts)),
        block_sizes=splash_attention.BlockSizes(
            block_q=block,
            block_kv=block,
            block_kv_compute=block,
            block_q_dkv=block,
            block_kv_dkv=block,
            block_kv_dkv_compute=block,
            block_q_dq=block,
            block_kv_dq=block,
        ),
        head_shards=head_parts,
        q_seq_shards=row_parts,
        interpret=INTERPRET,
        residual_checkpoint_name=RESULT,
    )
