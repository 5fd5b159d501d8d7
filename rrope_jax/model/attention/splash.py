"""The Pallas attention kernel for TPUs of jax.experimental ("splash").

Letters: see attention.py. L is the queries that a device has of a row.
"""

import math
from typing import Any

import jax
from jax.sharding import AbstractMesh, NamedSharding, PartitionSpec

from rrope_jax.model.attention.chunked import RESULT
from rrope_jax.model.attention.context_parallel import arrange_indices

TILE = 128  # what the kernel's blocks must be a multiple of
_BLOCK = 512


def make_kernel(
    T: int, N: int, *, piece: int, head_parts: int, row_parts: int, arranged: bool, interpret: bool
) -> Any:
    """The kernel for causal rows, with what it has to know of the blocks of pairs.

    Args:
      T, N: of the whole arrays, over all devices.
      piece: consecutive queries that a device has; blocks divide them.
      head_parts, row_parts: into how many parts heads and rows are split.
      arranged: whether queries are in the order of `context_parallel.arrange`.
      interpret: runs it anywhere, slowly, for tests.
    """
    # imported here: half a second that only its users should pay
    from jax.experimental.pallas.ops.tpu import splash_attention

    mask = splash_attention.CausalMask((T, T))
    if arranged:
        mask.q_sequence = arrange_indices(T, row_parts)
    block = math.gcd(piece, _BLOCK)
    return splash_attention.make_splash_mha(
        splash_attention.MultiHeadMask([mask] * N),
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
        interpret=interpret,
        residual_checkpoint_name=RESULT,
    )


def kernel_spec(kernel: Any, mesh: AbstractMesh) -> Any:
    """How a kernel is split over a mesh, for `jax.shard_map`."""
    return kernel.manual_sharding_spec(NamedSharding(mesh, PartitionSpec("tensor", "seq")))


def run(
    kernel: Any,
    q_BLNH: jax.Array,
    k_BTKH: jax.Array,
    v_BTKH: jax.Array,
    segment_ids_BL: jax.Array | None,
    segment_ids_BT: jax.Array | None,
) -> jax.Array:
    """Attention of scaled, rotated queries: like q_BLNH."""
    from jax.experimental.pallas.ops.tpu import splash_attention

    heads_first = [x.swapaxes(1, 2) for x in (q_BLNH, k_BTKH, v_BTKH)]
    segments = None
    if segment_ids_BL is not None and segment_ids_BT is not None:
        segments = splash_attention.SegmentIds(segment_ids_BL, segment_ids_BT)
    mixed_BNLH: jax.Array = jax.vmap(kernel)(*heads_first, segments)
    return mixed_BNLH.swapaxes(1, 2)
