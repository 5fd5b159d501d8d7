"""Causal attention behind one function, with an implementation per backend.

B batch, T queries, S keys, N query heads, K key/value heads (G = N / K queries share one), H
head_dim.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh

from rrope_jax.model.attention import splash
from rrope_jax.model.attention.chunked import MASKED, Chunks, chunked_attention
from rrope_jax.model.attention.context_parallel import first_places, gather
from rrope_jax.sharding import on_a_mesh, parts, spec


class CausalMask(NamedTuple):
    """Which keys a query may see: those not after it, of its own segment.

    After means later in the sequence, not a larger rotary position: sampled positions may repeat
    or skip. Without fields, queries and keys are the same tokens in one segment.

    Attributes:
      segment_ids_BT: int32[B, T], of the queries; equal numbers may see each other.
      key_segment_ids_BS: int32[B, S], of the keys; None where they are the same tokens.
      start_B: int32[B], for queries that continue a sequence: the place of a row's first query
        among its keys.
      arranged: whether tokens are in the order of `context_parallel.arrange`.
    """

    segment_ids_BT: jax.Array | None = None
    key_segment_ids_BS: jax.Array | None = None
    start_B: jax.Array | None = None
    arranged: bool = False

    @property
    def key_segments(self) -> jax.Array | None:
        """`key_segment_ids_BS` with its default resolved."""
        return self.segment_ids_BT if self.key_segment_ids_BS is None else self.key_segment_ids_BS

    def dense(self, T: int, S: int) -> jax.Array:
        """The mask as bool[B or 1, T, S], True where visible."""
        query_T, key_S = jnp.arange(T, dtype=jnp.int32), jnp.arange(S, dtype=jnp.int32)
        query_BT = query_T[None] if self.start_B is None else self.start_B[:, None] + query_T
        visible_BTS = key_S <= query_BT[:, :, None]
        if self.segment_ids_BT is not None and self.key_segments is not None:
            visible_BTS &= self.segment_ids_BT[:, :, None] == self.key_segments[:, None, :]
        return visible_BTS


@dataclasses.dataclass(frozen=True)
class _Call:
    """The arguments of `attention`, of which an implementation takes all or none.

    On a mesh, these are a device's own, and `prepared` is its part of what `prepare` gave.
    """

    q_BTNH: Any  # arrays, or their shapes, for obstacles
    k_BSKH: Any
    v_BSKH: Any
    mask: CausalMask
    scale: float
    dropout: Callable[[jax.Array], jax.Array] | None
    prepared: Any = None


@dataclasses.dataclass(frozen=True)
class _Implementation:
    """One way to compute attention.

    Attributes:
      run: computes it.
      obstacle: why `run` cannot compute a call, as the end of a sentence, or None.
      auto_pairs: the number of queries times keys from which `auto` prefers it to the rows below.
      prepare: for what knows of all parts of a row itself: makes what `run` needs, from the call of
        a device, and says how that is split over a mesh. Others get one piece of a row at a time.
    """

    run: Callable[[_Call], jax.Array]
    obstacle: Callable[[_Call], str | None]
    auto_pairs: int = 0
    prepare: Callable[[_Call, AbstractMesh], tuple[Any, Any]] | None = None


def _xla(call: _Call) -> jax.Array:
    """Works everywhere; keeps float32 logits of all pairs, so memory grows with T * S."""
    q_BTNH, k_BSKH, v_BSKH = call.q_BTNH, call.k_BSKH, call.v_BSKH
    B, T, N, H = q_BTNH.shape
    S, K = k_BSKH.shape[1:3]
    if T == 1 and call.dropout is None and on_one_cpu():
        return _one_query(call)
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


def _one_query(call: _Call) -> jax.Array:
    """A token that is decoded on a CPU, which spends its time on reading the cache.

    The products take keys and values in the order in which the cache has them. Those of `_xla` make
    XLA transpose the values first, which takes longer than the rest.
    """
    B, T, N, H = call.q_BTNH.shape
    S, K = call.k_BSKH.shape[1:3]
    q_BKGH = (call.q_BTNH * call.scale).reshape(B, K, N // K, H)
    k_BKSH, v_BKSH = call.k_BSKH.swapaxes(1, 2), call.v_BSKH.swapaxes(1, 2)
    heads = ((0, 1), (0, 1))
    logits_BKGS = jax.lax.dot_general(
        q_BKGH, k_BKSH, (((3,), (3,)), heads), preferred_element_type=jnp.float32
    )
    visible_BTS = call.mask.dense(T, S)
    weights_BKGS = jax.nn.softmax(jnp.where(visible_BTS[:, None], logits_BKGS, MASKED), axis=-1)
    mixed_BKGH = jax.lax.dot_general(
        weights_BKGS.astype(v_BKSH.dtype), v_BKSH, (((3,), (2,)), heads)
    )
    return mixed_BKGH.reshape(B, T, N, H)


def _chunked(call: _Call) -> jax.Array:
    """Works everywhere; never holds the logits of all pairs, nor computes those it can skip."""
    return chunked_attention(
        call.q_BTNH * call.scale,
        call.k_BSKH,
        call.v_BSKH,
        call.mask.start_B,
        call.mask.segment_ids_BT,
        call.mask.key_segments,
        _CHUNKS_ON_ONE_CPU if on_one_cpu() else _CHUNKS,
    )


# on two cores a third faster than 256 (docs/speed_smollm2.md)
_CHUNKS_ON_ONE_CPU = Chunks(query_block=512, key_block=512, one_by_one=True)
_CHUNKS = Chunks(query_block=512, key_block=1024, one_by_one=False)


def _cudnn(call: _Call) -> jax.Array:
    """The fused kernel of cuDNN; segments make it read a mask of all pairs.

    JAX's public interface has lengths for padded rows, but no segments.
    """
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


def _splash(call: _Call) -> jax.Array:
    """The Pallas kernel for TPUs; never holds the logits of all pairs."""
    mask = call.mask
    return splash.run(
        _splash_kernel(call) if call.prepared is None else call.prepared,
        call.q_BTNH * call.scale,
        call.k_BSKH,
        call.v_BSKH,
        mask.segment_ids_BT,
        mask.key_segments,
    )


def _prepare_splash(call: _Call, mesh: AbstractMesh) -> tuple[Any, Any]:
    kernel = _splash_kernel(call)
    return kernel, splash.kernel_spec(kernel, mesh)


def _splash_kernel(call: _Call) -> Any:
    """For all devices of the mesh, or for the only one."""
    heads = parts("heads")
    return splash.make_kernel(
        call.k_BSKH.shape[1],
        call.q_BTNH.shape[2] * heads,
        piece=call.q_BTNH.shape[1],
        head_parts=heads,
        row_parts=parts("length"),
        arranged=call.mask.arranged,
        interpret=_INTERPRET,
    )


# Up to this many tokens a row's mask of all pairs, in the queries' type, takes 32 MiB at most.
_LONGEST_MASK = 4096

_INTERPRET = False  # tests run the kernel where there is no TPU


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
    segmented = call.mask.segment_ids_BT is not None
    return _fused_obstacle(call, "gpu") or _first(
        (dtype not in (jnp.bfloat16, jnp.float16), f"it needs bfloat16 or float16, not {dtype}"),
        (H % 8 != 0 or H > 128, f"it needs a head_dim that 8 divides, up to 128, not {H}"),
        (call.k_BSKH.shape[1] != T, "it needs whole rows, and the mesh splits them over seq"),
        (T % 2 != 0 and segmented, f"with segments it needs an even length, not {T}"),
        (
            T > _LONGEST_MASK and segmented,
            f"with segments it reads a mask of all pairs, so it needs a length up to "
            f"{_LONGEST_MASK}, not {T}",
        ),
    )


def _chunked_obstacle(call: _Call) -> str | None:
    return _first((call.dropout is not None, "it has no dropout on the attention weights"))


def _splash_obstacle(call: _Call) -> str | None:
    T = call.q_BTNH.shape[1]
    return _fused_obstacle(call, "tpu") or _first(
        (T % splash.TILE != 0, f"it needs pieces of rows that {splash.TILE} divides, not {T}"),
    )


# `auto` takes the first row that nothing speaks against.
IMPLEMENTATIONS: dict[str, _Implementation] = {
    # below this length the logits of all pairs fit, and XLA needs no time for preparing a mask
    "splash": _Implementation(
        _splash, _splash_obstacle, auto_pairs=4096**2, prepare=_prepare_splash
    ),
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
    return backend_platform() == "cpu" and not on_a_mesh()


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
        this call: `splash` on TPUs for long sequences, `cudnn` on GPUs in bfloat16 (but for long
        rows of several segments), else `xla` for short and `chunked` for long sequences.
      dropout: applied to the softmax weights, float32[B, K, G, T, S]; None for none.

    Returns:
      Like q_BTNH.

    Raises:
      ValueError: the implementation asked for cannot compute this call.
    """
    call = _Call(q_BTNH, k_BSKH, v_BSKH, _of_parts(mask), scale, dropout)
    if _over_parts(call):
        return _over_mesh(call, implementation)
    return _choose(call, implementation).run(call)


def implementation_name(
    q_BTNH: jax.ShapeDtypeStruct,
    k_BSKH: jax.ShapeDtypeStruct,
    mask: CausalMask,
    implementation: str = "auto",
    *,
    dropout: bool = False,
) -> str:
    """The key of `IMPLEMENTATIONS` that `attention` takes for arrays of these shapes, here.

    Raises:
      ValueError: as `attention`.
    """
    drop = (lambda weights: weights) if dropout else None
    call = _Call(q_BTNH, k_BSKH, k_BSKH, _of_parts(mask), 1.0, drop)
    if _over_parts(call):
        call = _piece(call)
    row = _choose(call, implementation)
    return next(name for name, each in IMPLEMENTATIONS.items() if each is row)


def _over_parts(call: _Call) -> bool:
    """Whether devices compute parts; a cache, and dropout on whole arrays, are left to XLA."""
    return on_a_mesh() and call.mask.start_B is None and call.dropout is None


def _of_parts(mask: CausalMask) -> CausalMask:
    """Rows in one part have their own order, whether asked for another or not."""
    return mask._replace(arranged=mask.arranged and parts("length") > 1)


def _choose(call: _Call, implementation: str) -> _Implementation:
    if call.dropout is not None and parts("length") > 1:
        raise ValueError("dropout on attention weights cannot be split over seq; set mesh.seq=1")
    if implementation == "auto":
        pairs = call.q_BTNH.shape[1] * call.k_BSKH.shape[1]
        return next(
            row
            for row in IMPLEMENTATIONS.values()
            if pairs >= row.auto_pairs and row.obstacle(call) is None
        )
    row = IMPLEMENTATIONS[implementation]
    if (reason := row.obstacle(call)) is not None:
        raise ValueError(
            f"attention={implementation!r} cannot be used here: {reason}; use 'auto' or 'xla'"
        )
    return row


def _over_mesh(call: _Call, implementation: str) -> jax.Array:
    """Every device computes its queries, against the keys and values of whole rows."""
    mesh = jax.sharding.get_abstract_mesh()
    arranged, piece = call.mask.arranged, _piece(call)
    row = _choose(piece, implementation)
    prepared, prepared_spec = (None, None) if row.prepare is None else row.prepare(piece, mesh)

    def local(
        q_BLNH: jax.Array,
        k_BLKH: jax.Array,
        v_BLKH: jax.Array,
        segment_ids_BL: jax.Array | None,
        key_segment_ids_BL: jax.Array | None,
        prepared: Any,
    ) -> jax.Array:
        keys, values = (gather(x, arranged=arranged) for x in (k_BLKH, v_BLKH))
        of_keys = CausalMask(segment_ids_BL, key_segment_ids_BL).key_segments
        key_segments = None if of_keys is None else gather(of_keys, arranged=arranged)
        mask = CausalMask(segment_ids_BL, key_segments, arranged=arranged)
        own = _Call(q_BLNH, keys, values, mask, call.scale, None, prepared)
        if row.prepare is not None or parts("length") == 1:
            return row.run(own)
        return _piece_by_piece(row, own)

    tokens = spec(("batch", "length"), mesh)
    queries = spec(("batch", "length", "heads", None), mesh)
    keys = spec(("batch", "length", "kv_heads", None), mesh)
    return jax.shard_map(
        local,
        in_specs=(queries, keys, keys, tokens, tokens, prepared_spec),
        out_specs=queries,
        check_vma=False,  # loops of the kernels begin with constants
    )(
        call.q_BTNH,
        call.k_BSKH,
        call.v_BSKH,
        call.mask.segment_ids_BT,
        call.mask.key_segment_ids_BS,
        prepared,
    )


def _piece(call: _Call) -> _Call:
    """The shapes of what a device computes at once."""
    B, T, N, H = call.q_BTNH.shape
    S, K = call.k_BSKH.shape[1:3]
    B //= parts("batch")
    T //= parts("length") * (1 + call.mask.arranged)
    dtype = call.q_BTNH.dtype
    queries = jax.ShapeDtypeStruct((B, T, N // parts("heads"), H), dtype)
    keys = jax.ShapeDtypeStruct((B, S, K // parts("kv_heads"), H), dtype)
    return dataclasses.replace(call, q_BTNH=queries, k_BSKH=keys, v_BSKH=keys)


def _piece_by_piece(row: _Implementation, call: _Call) -> jax.Array:
    """A device's part of a row, each of its pieces beginning at a place of its own."""
    B = call.q_BTNH.shape[0]
    mask = call.mask
    count = 1 + mask.arranged
    queries = jnp.split(call.q_BTNH, count, axis=1)
    segments: Sequence[jax.Array | None] = [None] * count
    if mask.segment_ids_BT is not None:
        segments = jnp.split(mask.segment_ids_BT, count, axis=1)
    firsts = first_places(queries[0].shape[1], arranged=mask.arranged)
    mixed = []
    for q_BPNH, segment_ids_BP, first in zip(queries, segments, firsts, strict=True):
        start_B = jnp.full((B,), first, jnp.int32)
        own = CausalMask(segment_ids_BP, mask.key_segments, start_B)
        mixed.append(row.run(dataclasses.replace(call, q_BTNH=q_BPNH, mask=own)))
    return jnp.concatenate(mixed, axis=1)
