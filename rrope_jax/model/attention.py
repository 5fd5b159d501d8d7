"""Causal attention behind one function, with an implementation per backend.

B batch, T queries, S keys, N query heads, K key/value heads (G = N / K queries share one), H
head_dim.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from rrope_jax.model.chunked import MASKED, RESULT, Chunks, chunked_attention


class CausalMask(NamedTuple):
    """Which keys a query may see: those not after it, of its own segment.

    After means later in the sequence, not a larger rotary position: sampled positions may repeat
    or skip. Without fields, queries and keys are the same tokens in one segment.

    Attributes:
      segment_ids_BT: int32[B, T], for queries and keys that are the same tokens; equal numbers may
        see each other.
      start_B: int32[B], for queries that continue a cached sequence: the place of a row's first
        query among its keys.
    """

    segment_ids_BT: jax.Array | None = None
    start_B: jax.Array | None = None

    def dense(self, T: int, S: int) -> jax.Array:
        """The mask as bool[B or 1, T, S], True where visible."""
        query_T, key_S = jnp.arange(T, dtype=jnp.int32), jnp.arange(S, dtype=jnp.int32)
        query_BT = query_T[None] if self.start_B is None else self.start_B[:, None] + query_T
        visible_BTS = key_S <= query_BT[:, :, None]
        if self.segment_ids_BT is not None:
            segments_BT = self.segment_ids_BT
            visible_BTS &= segments_BT[:, :, None] == segments_BT[:, None, :]
        return visible_BTS


@dataclasses.dataclass(frozen=True)
class _Call:
    """The arguments of `attention`, of which an implementation takes all or none."""

    q_BTNH: jax.Array
    k_BSKH: jax.Array
    v_BSKH: jax.Array
    mask: CausalMask
    scale: float
    dropout: Callable[[jax.Array], jax.Array] | None


@dataclasses.dataclass(frozen=True)
class _Implementation:
    """One way to compute attention.

    Attributes:
      run: computes it.
      obstacle: why `run` cannot compute a call, as the end of a sentence, or None.
      auto_pairs: the number of queries times keys from which `auto` prefers it to the rows below.
    """

    run: Callable[[_Call], jax.Array]
    obstacle: Callable[[_Call], str | None]
    auto_pairs: int = 0


def _xla(call: _Call) -> jax.Array:
    """Works everywhere; keeps float32 logits of all pairs, so memory grows with T * S."""
    q_BTNH, k_BSKH, v_BSKH = call.q_BTNH, call.k_BSKH, call.v_BSKH
    B, T, N, H = q_BTNH.shape
    S, K = k_BSKH.shape[1:3]
    q_BTKGH = (q_BTNH * call.scale).reshape(B, T, K, N // K, H)
    logits_BKGTS = jnp.einsum(
        "BTKGH,BSKH->BKGTS", q_BTKGH, k_BSKH, preferred_element_type=jnp.float32
    )
    visible_BTS = call.mask.dense(T, S)
    weights_BKGTS = jax.nn.softmax(
        jnp.where(visible_BTS[:, None, None], logits_BKGTS, MASKED), axis=-1
    )
    if call.dropout is not None:
        weights_BKGTS = call.dropout(weights_BKGTS)
    mixed_BTKGH = jnp.einsum("BKGTS,BSKH->BTKGH", weights_BKGTS.astype(v_BSKH.dtype), v_BSKH)
    return mixed_BTKGH.reshape(B, T, N, H)


def _chunked(call: _Call) -> jax.Array:
    """Works everywhere; never holds the logits of all pairs, nor computes those it can skip."""
    return chunked_attention(
        call.q_BTNH * call.scale,
        call.k_BSKH,
        call.v_BSKH,
        call.mask.start_B,
        call.mask.segment_ids_BT,
        _CHUNKS_ON_ONE_CPU if on_one_cpu() else _CHUNKS,
    )


_CHUNKS_ON_ONE_CPU = Chunks(query_block=256, key_block=256, one_by_one=True)
_CHUNKS = Chunks(query_block=512, key_block=1024, one_by_one=False)


def _cudnn(call: _Call) -> jax.Array:
    """The fused kernel of cuDNN; segments make it read a mask of all pairs."""
    T = call.q_BTNH.shape[1]
    segmented = call.mask.segment_ids_BT is not None
    return jax.nn.dot_product_attention(
        call.q_BTNH,
        call.k_BSKH,
        call.v_BSKH,
        mask=call.mask.dense(T, T)[:, None] if segmented else None,
        is_causal=not segmented,
        scale=call.scale,
        implementation="cudnn",
    )


def _splash(call: _Call, *, interpret: bool = False) -> jax.Array:
    """The Pallas kernel for TPUs of jax.experimental; never holds the logits of all pairs."""
    # imported here: half a second that only its users should pay
    from jax.experimental.pallas.ops.tpu import splash_attention

    T, N = call.q_BTNH.shape[1:3]
    block = math.gcd(T, _SPLASH_BLOCK)
    kernel = splash_attention.make_splash_mha_single_device(
        splash_attention.MultiHeadMask([splash_attention.CausalMask((T, T))] * N),
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
        interpret=interpret,
        residual_checkpoint_name=RESULT,
    )
    segments_BT = call.mask.segment_ids_BT
    segment_ids = (
        None if segments_BT is None else splash_attention.SegmentIds(segments_BT, segments_BT)
    )
    heads_first = [x.swapaxes(1, 2) for x in (call.q_BTNH * call.scale, call.k_BSKH, call.v_BSKH)]
    mixed_BNTH: jax.Array = jax.vmap(kernel)(*heads_first, segment_ids)
    return mixed_BNTH.swapaxes(1, 2)


_SPLASH_TILE = 128  # what the kernel's blocks must be a multiple of
_SPLASH_BLOCK = 512


def _first(*obstacles: tuple[bool, str]) -> str | None:
    return next((reason for present, reason in obstacles if present), None)


def _fused_obstacle(call: _Call, platform: str) -> str | None:
    """What the fused kernels have in common."""
    here = backend_platform()
    return _first(
        (here != platform, f"it needs a {platform.upper()}, not a {here.upper()}"),
        (call.dropout is not None, "it has no dropout on the attention weights"),
        (call.mask.start_B is not None, "it has no mask for decoding with a cache"),
    )


def _cudnn_obstacle(call: _Call) -> str | None:
    T, _, H = call.q_BTNH.shape[1:]
    dtype = call.q_BTNH.dtype
    return _fused_obstacle(call, "gpu") or _first(
        (dtype not in (jnp.bfloat16, jnp.float16), f"it needs bfloat16 or float16, not {dtype}"),
        (H % 8 != 0 or H > 128, f"it needs a head_dim that 8 divides, up to 128, not {H}"),
        (
            T % 2 != 0 and call.mask.segment_ids_BT is not None,
            f"with segments it needs an even length, not {T}",
        ),
    )


def _chunked_obstacle(call: _Call) -> str | None:
    return _first((call.dropout is not None, "it has no dropout on the attention weights"))


def _splash_obstacle(call: _Call) -> str | None:
    T = call.q_BTNH.shape[1]
    devices = jax.sharding.get_abstract_mesh().size
    return _fused_obstacle(call, "tpu") or _first(
        (T % _SPLASH_TILE != 0, f"it needs a length that {_SPLASH_TILE} divides, not {T}"),
        (devices > 1, f"it runs on one device, not on a mesh of {devices}"),
    )


# `auto` takes the first row that nothing speaks against.
IMPLEMENTATIONS: dict[str, _Implementation] = {
    # below this length the logits of all pairs fit, and XLA needs no time for preparing a mask
    "splash": _Implementation(_splash, _splash_obstacle, auto_pairs=4096**2),
    "cudnn": _Implementation(_cudnn, _cudnn_obstacle),
    "chunked": _Implementation(_chunked, _chunked_obstacle, auto_pairs=512**2),
    "xla": _Implementation(_xla, lambda call: None),
}


def backend_platform() -> str:
    """`cpu`, `gpu` or `tpu`: that of the mesh, which may describe other machines, else our own."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.default_backend() if device is None else device.platform


def on_one_cpu() -> bool:
    """Whether a program is for a CPU that is not a part of a mesh."""
    return backend_platform() == "cpu" and jax.sharding.get_abstract_mesh().size <= 1


def attention(
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    mask: CausalMask,
    *,
    scale: float,
    implementation: str = "auto",
    dropout: Callable[[jax.Array], jax.Array] | None = None,
) -> jax.Array:
    """Softmax attention with float32 logits and softmax.

    Args:
      q_BTNH, k_BSKH, v_BSKH: rotated queries, rotated keys and values, of one float dtype.
      mask: who sees whom.
      scale: factor on q.k.
      implementation: a key of `IMPLEMENTATIONS`, or `auto` for the first of them that can compute
        this call: `splash` on TPUs for long sequences, `cudnn` on GPUs in bfloat16, else `xla` for
        short and `chunked` for long sequences.
      dropout: applied to the softmax weights, float32[B, K, G, T, S]; None for none.

    Returns:
      Like q_BTNH.

    Raises:
      ValueError: the implementation asked for cannot compute this call.
    """
    call = _Call(q_BTNH, k_BSKH, v_BSKH, mask, scale, dropout)
    if implementation == "auto":
        pairs = q_BTNH.shape[1] * k_BSKH.shape[1]
        chosen = next(
            row
            for row in IMPLEMENTATIONS.values()
            if pairs >= row.auto_pairs and row.obstacle(call) is None
        )
        return chosen.run(call)
    row = IMPLEMENTATIONS[implementation]
    if (reason := row.obstacle(call)) is not None:
        raise ValueError(
            f"attention={implementation!r} cannot be used here: {reason}; use 'auto' or 'xla'"
        )
    return row.run(call)
