"""Blockwise causal attention in plain JAX, with memory linear in the length.

Follows FlashAttention (arXiv 2205.14135, 2307.08691): each block of queries visits the blocks of
keys that it may see, keeping a running maximum and sum, and the backward pass recomputes the
weights from the logarithm of that sum. Fully masked blocks, above the diagonal, before the sliding
window or between segments, are never computed.

If far pairs have other queries and keys, the same running maximum and sum go through the blocks of
both bands of distances, near and far, so the two are merged without a further step.

Letters, in addition to those of `rrope_jax.model`: I blocks of queries, J blocks of keys, Q queries
and C keys per block, R = Q * G rows per query block. The G query heads that share a key/value head
are stacked along R, so each key/value head needs only one matrix product.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.typing import ArrayLike

from rrope_jax.model.attention.call import Call, FarPairs
from rrope_jax.model.attention.mask import MASKED, block_for_window
from rrope_jax.model.platform.operations import Chunks, operations

RESULT = "attention"
"""The checkpoint name of the costly results that the backward pass needs, for remat policies."""


def run(call: Call) -> jax.Array:
    """Works everywhere; never holds the logits of all pairs, and skips fully masked blocks."""
    return chunked_attention(
        call.q_BTNH,
        call.k_BSKH,
        call.v_BSKH,
        call.mask.start_B,
        call.mask.segment_ids_BT,
        call.mask.key_segments,
        _for_window(operations().chunks, call.mask.window),
        call.mask.window,
        call.far,
    )


def _for_window(chunks: Chunks, window: int | None) -> Chunks:
    return chunks._replace(
        query_block=block_for_window(chunks.query_block, window),
        key_block=block_for_window(chunks.key_block, window),
    )


class _Band(NamedTuple):
    """The pairs of a query and a key at least `least` and less than `limit` tokens before it."""

    least: jax.Array | None
    limit: ArrayLike | None


def _bands(window: int | None, far: FarPairs | None) -> tuple[_Band, ...]:
    """All pairs, or the near and the far ones, within a sliding window."""
    if far is None:
        return (_Band(None, window),)
    start = jnp.asarray(far.window, jnp.int32)
    return (
        _Band(None, start if window is None else jnp.minimum(start, window)),
        _Band(start, window),
    )


class _Blocks(NamedTuple):
    """The key blocks that each query block of a row sees, in one band.

    Attributes:
      start: int32[], the index of the row's first query among its keys.
      segments_IQ, segments_JC: int32, segment ids of queries and keys; None for one segment.
      lower_I: int32[I], the first key block with a visible pair.
      whole_I, mixed_I: int32[I], the first key block whose pairs are all visible, and the first
        one after that with a masked pair; None if every block needs the mask.
      upper_I: int32[I], the first key block after the band, above the diagonal.
    """

    start: jax.Array
    segments_IQ: jax.Array | None
    segments_JC: jax.Array | None
    lower_I: jax.Array
    whole_I: jax.Array | None
    mixed_I: jax.Array | None
    upper_I: jax.Array


@functools.partial(jax.custom_vjp, nondiff_argnums=(6, 7))
def chunked_attention(
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    start_B: jax.Array | None,
    segment_ids_BT: jax.Array | None,
    key_segment_ids_BS: jax.Array | None,
    chunks: Chunks,
    window: int | None = None,
    far: FarPairs | None = None,
) -> jax.Array:
    """Causal softmax attention with float32 logits and softmax.

    Args:
      q_BTNH, k_BSKH, v_BSKH: scaled and rotated queries, rotated keys, and values, in the same
        float dtype.
      start_B: int32[B], the index of each row's first query among its keys; None for 0.
      segment_ids_BT, key_segment_ids_BS: int32, of queries and keys; None for one segment.
      chunks: block sizes, at most the sequence length.
      window: the sliding window, as in `CausalMask`.
      far: as for `attention`.

    Returns:
      An array of the shape and dtype of q_BTNH.
    """
    places = (start_B, segment_ids_BT, key_segment_ids_BS)
    return _forward(q_BTNH, k_BSKH, v_BSKH, *places, chunks, window, far)[0]


def _forward(
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    start_B: jax.Array | None,
    segment_ids_BT: jax.Array | None,
    key_segment_ids_BS: jax.Array | None,
    chunks: Chunks,
    window: int | None,
    far: FarPairs | None,
) -> tuple[jax.Array, tuple[Any, ...]]:
    layout, bands = _Layout(q_BTNH.shape, k_BSKH.shape, chunks), _bands(window, far)
    places = (start_B, segment_ids_BT, key_segment_ids_BS)
    out_BKIRH, lse_BKIR = layout.map_heads(
        functools.partial(_head_forward, group=layout.G, bands=bands),
        (layout.pairs(q_BTNH, k_BSKH, far), layout.keys(v_BSKH)),
        tuple(layout.blocks(*places, band=band) for band in bands),
    )
    out_BTNH = checkpoint_name(layout.from_rows(out_BKIRH).astype(q_BTNH.dtype), RESULT)
    lse_BKIR = checkpoint_name(lse_BKIR, RESULT)
    return out_BTNH, (q_BTNH, k_BSKH, v_BSKH, places, far, out_BTNH, lse_BKIR)


def _backward(
    chunks: Chunks, window: int | None, saved: tuple[Any, ...], gradient_BTNH: jax.Array
) -> tuple[Any, ...]:
    q_BTNH, k_BSKH, v_BSKH, places, far, out_BTNH, lse_BKIR = saved
    layout, bands = _Layout(q_BTNH.shape, k_BSKH.shape, chunks), _bands(window, far)
    dot_BTN1 = jnp.sum(
        out_BTNH.astype(jnp.float32) * gradient_BTNH.astype(jnp.float32), axis=-1, keepdims=True
    )
    pairs, v_BKJHC = layout.map_heads(
        functools.partial(_head_backward, group=layout.G, bands=bands),
        (
            layout.pairs(q_BTNH, k_BSKH, far),
            layout.keys(v_BSKH),
            lse_BKIR,
            layout.rows(gradient_BTNH),
            layout.rows(dot_BTN1)[..., 0],
        ),
        tuple(layout.blocks(*places, band=band) for band in bands),
    )
    of_queries_and_keys = [
        (
            layout.from_rows(q_BKIRH).astype(q_BTNH.dtype),
            layout.from_keys(k_BKJHC).astype(k_BSKH.dtype),
        )
        for q_BKIRH, k_BKJHC in pairs
    ]
    of_values = layout.from_keys(v_BKJHC).astype(v_BSKH.dtype)
    of_far = None if far is None else FarPairs(*of_queries_and_keys[1], None)  # type: ignore[arg-type]
    return (*of_queries_and_keys[0], of_values, None, None, None, of_far)


chunked_attention.defvjp(_forward, _backward)


class _Layout:
    """Converts between whole sequences and blocks per key/value head."""

    def __init__(
        self,
        queries: tuple[int, ...],
        keys: tuple[int, ...],
        chunks: Chunks,
    ) -> None:
        self.B, self.T, self.N, self.H = queries
        self.S, self.K = keys[1:3]
        self.G = self.N // self.K
        self.query_block = min(chunks.query_block, self.T)
        self.key_block = min(chunks.key_block, self.S)
        self.I, self.J = -(-self.T // self.query_block), -(-self.S // self.key_block)
        self.one_by_one = chunks.one_by_one

    def pairs(self, q_BTNH: jax.Array, k_BSKH: jax.Array, far: FarPairs | None) -> Any:
        """The queries and keys of each band, ([B, K, I, R, H], [B, K, J, C, H])."""
        near = (self.rows(q_BTNH), self.keys(k_BSKH))
        return (near,) if far is None else (near, (self.rows(far.q_BTNH), self.keys(far.k_BSKH)))

    def rows(self, x_BTNH: jax.Array) -> jax.Array:
        """[B, K, I, R, H]."""
        x_BTNH = _pad(x_BTNH, self.query_block)
        H = x_BTNH.shape[-1]
        x_BIQKGH = x_BTNH.reshape(self.B, self.I, self.query_block, self.K, self.G, H)
        return x_BIQKGH.transpose(0, 3, 1, 2, 4, 5).reshape(self.B, self.K, self.I, -1, H)

    def from_rows(self, x_BKIRH: jax.Array) -> jax.Array:
        """[B, T, N, H]."""
        x_BKIQGH = x_BKIRH.reshape(self.B, self.K, self.I, self.query_block, self.G, self.H)
        x_BTNH = x_BKIQGH.transpose(0, 2, 3, 1, 4, 5).reshape(self.B, -1, self.N, self.H)
        return x_BTNH[:, : self.T]

    def keys(self, x_BSKH: jax.Array) -> jax.Array:
        """[B, K, J, C, H]."""
        x_BKSH = _pad(x_BSKH, self.key_block).swapaxes(1, 2)
        return x_BKSH.reshape(self.B, self.K, self.J, self.key_block, self.H)

    def from_keys(self, x_BKJHC: jax.Array) -> jax.Array:
        """[B, S, K, H]."""
        x_BSKH = x_BKJHC.transpose(0, 2, 4, 1, 3).reshape(self.B, -1, self.K, self.H)
        return x_BSKH[:, : self.S]

    def blocks(
        self,
        start_B: jax.Array | None,
        segment_ids_BT: jax.Array | None,
        key_segment_ids_BS: jax.Array | None,
        *,
        band: _Band,
    ) -> _Blocks:
        """The key blocks that query blocks see in a band, for all rows of the batch."""
        start_B = jnp.zeros((self.B,), jnp.int32) if start_B is None else start_B
        first_BI = start_B[:, None] + self.query_block * jnp.arange(self.I, dtype=jnp.int32)
        last_BI = first_BI + self.query_block - 1
        upper_BI = jnp.clip(_last_in(band, last_BI) // self.key_block + 1, 0, self.J)
        lower_BI = _first_in(band, first_BI) // self.key_block
        if segment_ids_BT is None or key_segment_ids_BS is None:
            narrow = self.query_block + self.key_block - 1
            if band.least is None and isinstance(band.limit, int) and band.limit < narrow:
                return _Blocks(start_B, None, None, lower_BI, None, None, upper_BI)
            whole_BI = -(-_first_in(band, last_BI) // self.key_block)
            mixed_BI = (_last_in(band, first_BI) + 1) // self.key_block
            return _Blocks(start_B, None, None, lower_BI, whole_BI, mixed_BI, upper_BI)
        ids_BT = _pad(segment_ids_BT, self.query_block, mode="edge")
        key_ids_BS = _pad(key_segment_ids_BS, self.key_block, mode="edge")
        segments_BIQ = ids_BT.reshape(self.B, self.I, self.query_block)
        segments_BJC = key_ids_BS.reshape(self.B, self.J, self.key_block)
        place_BT = start_B[:, None] + jnp.arange(ids_BT.shape[1], dtype=jnp.int32)
        first_BT = jax.vmap(_first_of_segment)(ids_BT, key_ids_BS)
        # a query that sees no key still gets a block, to avoid division by zero
        first_BT = jnp.minimum(first_BT, jnp.minimum(place_BT, key_ids_BS.shape[1] - 1))
        of_segment_BI = first_BT.reshape(segments_BIQ.shape).min(-1) // self.key_block
        lower_BI = jnp.maximum(lower_BI, of_segment_BI)
        return _Blocks(start_B, segments_BIQ, segments_BJC, lower_BI, None, None, upper_BI)

    def map_heads(
        self, head: Callable[..., Any], arrays_BK: tuple[Any, ...], bands_B: tuple[_Blocks, ...]
    ) -> Any:
        """`head(*arrays, blocks of each band)` for every row of the batch and key/value head."""
        if self.one_by_one:
            return jax.lax.map(
                lambda row: jax.lax.map(lambda arrays: head(*arrays, row[1]), row[0]),
                (arrays_BK, bands_B),
            )
        # shared bounds: under vmap, a loop with per-row bounds runs all rows to the end and selects
        shared = tuple(
            blocks_B._replace(
                lower_I=blocks_B.lower_I.min(0),
                whole_I=None if blocks_B.whole_I is None else blocks_B.whole_I.max(0),
                mixed_I=None if blocks_B.mixed_I is None else blocks_B.mixed_I.min(0),
                upper_I=blocks_B.upper_I.max(0),
            )
            for blocks_B in bands_B
        )
        axes = _Blocks(0, 0, 0, None, None, None, None)  # type: ignore[arg-type]
        over_heads = jax.vmap(lambda arrays, blocks: head(*arrays, blocks), (0, None))
        return jax.vmap(over_heads, (0, (axes,) * len(shared)))(arrays_BK, shared)


def _first_in(band: _Band, query_BI: jax.Array) -> jax.Array:
    """The index of the first key in each query's band."""
    if band.limit is None:
        return jnp.zeros_like(query_BI)
    return jnp.maximum(query_BI - band.limit + 1, 0)


def _last_in(band: _Band, query_BI: jax.Array) -> jax.Array:
    """The index of the last key in each query's band, negative if there is none."""
    return query_BI if band.least is None else query_BI - band.least


def _pad(x_BT: jax.Array, block: int, mode: str = "constant") -> jax.Array:
    """Pads to whole blocks. Only padding queries see padding keys."""
    missing = -x_BT.shape[1] % block
    if not missing:
        return x_BT
    return jnp.pad(x_BT, [(0, 0), (0, missing)] + [(0, 0)] * (x_BT.ndim - 2), mode=mode)


def _first_of_segment(ids_T: jax.Array, key_ids_S: jax.Array) -> jax.Array:
    """The index of the first key in each query's segment, int32[T]; S if there is no such key."""
    order_S = jnp.argsort(key_ids_S, stable=True)
    sorted_S = key_ids_S[order_S]
    rank_T = jnp.searchsorted(sorted_S, ids_T).clip(max=len(key_ids_S) - 1)
    first_T = jnp.where(sorted_S[rank_T] == ids_T, order_S[rank_T], len(key_ids_S))
    return first_T.astype(jnp.int32)


def _over_key_blocks(
    blocks: _Blocks,
    i: jax.Array,
    group: int,
    band: _Band,
    shape: tuple[int, int],
    step: Callable[[jax.Array, Callable[[jax.Array], jax.Array], Any], Any],
    carry: Any,
) -> Any:
    """Runs `step(j, mask, carry)` for every key block j that query block i sees in a band.

    `mask` masks a block of logits [R, C].
    """
    R, C = shape
    query_R = jnp.arange(R, dtype=jnp.int32) // group
    place_R = blocks.start + i * (R // group) + query_R
    key_C = jnp.arange(C, dtype=jnp.int32)

    def hide(j: jax.Array, logits_RC: jax.Array) -> jax.Array:
        visible_RC = j * C + key_C <= _last_in(band, place_R)[:, None]
        if band.limit is not None:
            visible_RC &= j * C + key_C > place_R[:, None] - band.limit
        if blocks.segments_IQ is not None and blocks.segments_JC is not None:
            visible_RC &= blocks.segments_IQ[i][query_R][:, None] == blocks.segments_JC[j]
        return jnp.where(visible_RC, logits_RC, MASKED)

    def masked(lower: jax.Array, upper: jax.Array, carry: Any) -> Any:
        return jax.lax.fori_loop(lower, upper, lambda j, c: step(j, lambda x: hide(j, x), c), carry)

    lower, upper = blocks.lower_I[i], blocks.upper_I[i]
    if blocks.whole_I is None or blocks.mixed_I is None:
        return masked(lower, upper, carry)
    whole = jnp.minimum(blocks.whole_I[i], upper)
    mixed = jnp.maximum(blocks.mixed_I[i], whole)
    if band.limit is not None:  # otherwise whole blocks come first
        carry = masked(lower, whole, carry)
    carry = jax.lax.fori_loop(whole, mixed, lambda j, c: step(j, lambda x: x, c), carry)
    return masked(mixed, upper, carry)


def _head_forward(
    pairs: tuple[tuple[jax.Array, jax.Array], ...],
    v_JCH: jax.Array,
    blocks: tuple[_Blocks, ...],
    *,
    group: int,
    bands: tuple[_Band, ...],
) -> tuple[jax.Array, jax.Array]:
    """The output, float32[I, R, H], and the log-sum-exp of the logits, float32[I, R].

    Each band has its own queries and keys, q_IRH and k_JCH.
    """
    queries, keys = zip(*pairs, strict=True)
    R, H = queries[0].shape[1:]
    C = v_JCH.shape[1]

    def query_block(_: None, block: tuple[jax.Array, Any]) -> tuple[None, Any]:
        i, of_block = block

        def step(
            q_RH: jax.Array, k_JCH: jax.Array, j: jax.Array, mask: Any, carry: tuple[jax.Array, ...]
        ) -> tuple[jax.Array, ...]:
            maximum_R, sum_R, mixed_RH = carry
            logits_RC = mask(_product("RH,CH->RC", q_RH, k_JCH[j]))
            larger_R = jnp.maximum(maximum_R, logits_RC.max(axis=1))
            weights_RC = jnp.exp(logits_RC - larger_R[:, None])
            shrink_R = jnp.exp(maximum_R - larger_R)
            more_RH = _product("RC,CH->RH", weights_RC.astype(v_JCH.dtype), v_JCH[j])
            return (
                larger_R,
                sum_R * shrink_R + weights_RC.sum(axis=1),
                mixed_RH * shrink_R[:, None] + more_RH,
            )

        carry = (jnp.full((R,), MASKED), jnp.zeros((R,)), jnp.zeros((R, H)))
        for q_RH, k_JCH, each, band in zip(of_block, keys, blocks, bands, strict=True):
            step_of_band = functools.partial(step, q_RH, k_JCH)
            carry = _over_key_blocks(each, i, group, band, (R, C), step_of_band, carry)
        maximum_R, sum_R, mixed_RH = carry
        return None, (mixed_RH / sum_R[:, None], maximum_R + jnp.log(sum_R))

    _, (out_IRH, lse_IR) = jax.lax.scan(query_block, None, (jnp.arange(len(queries[0])), queries))
    return out_IRH, lse_IR


def _head_backward(
    pairs: tuple[tuple[jax.Array, jax.Array], ...],
    v_JCH: jax.Array,
    lse_IR: jax.Array,
    gradient_IRH: jax.Array,
    dot_IR: jax.Array,
    blocks: tuple[_Blocks, ...],
    *,
    group: int,
    bands: tuple[_Band, ...],
) -> tuple[tuple[tuple[jax.Array, jax.Array], ...], jax.Array]:
    """Gradients of each band's q [I, R, H] and k [J, H, C], and of v [J, H, C], all float32.

    dot_IR is the dot product over H of the output and its gradient.
    """
    queries, keys = zip(*pairs, strict=True)
    R, H = queries[0].shape[1:]
    J, C = v_JCH.shape[:2]
    dtype = v_JCH.dtype

    def query_block(carry: Any, block: Any) -> Any:
        i, of_block, lse_R, gradient_RH, dot_R = block

        def step(
            q_RH: jax.Array, k_JCH: jax.Array, j: jax.Array, mask: Any, carry: tuple[jax.Array, ...]
        ) -> tuple[jax.Array, ...]:
            dq_RH, dk_JHC, dv_JHC = carry
            logits_RC = mask(_product("RH,CH->RC", q_RH, k_JCH[j]))
            weights_RC = jnp.exp(logits_RC - lse_R[:, None])
            dv_HC = _product("RH,RC->HC", gradient_RH, weights_RC.astype(dtype))
            dweights_RC = _product("RH,CH->RC", gradient_RH, v_JCH[j])
            dlogits_RC = (weights_RC * (dweights_RC - dot_R[:, None])).astype(dtype)
            dk_HC = _product("RH,RC->HC", q_RH, dlogits_RC)
            more_RH = _product("RC,CH->RH", dlogits_RC, k_JCH[j])
            return dq_RH + more_RH, dk_JHC.at[j].add(dk_HC), dv_JHC.at[j].add(dv_HC)

        of_keys, dv_JHC = carry
        dq, dk = [], []
        for q_RH, k_JCH, each, band, dk_JHC in zip(
            of_block, keys, blocks, bands, of_keys, strict=True
        ):
            zeros_and_sums = (jnp.zeros((R, H)), dk_JHC, dv_JHC)
            step_of_band = functools.partial(step, q_RH, k_JCH)
            dq_RH, dk_JHC, dv_JHC = _over_key_blocks(
                each, i, group, band, (R, C), step_of_band, zeros_and_sums
            )
            dq.append(dq_RH)
            dk.append(dk_JHC)
        return (tuple(dk), dv_JHC), tuple(dq)

    zeros_JHC = jnp.zeros((J, H, C))
    (of_keys, dv_JHC), of_queries = jax.lax.scan(
        query_block,
        ((zeros_JHC,) * len(bands), zeros_JHC),
        (jnp.arange(len(queries[0])), queries, lse_IR, gradient_IRH, dot_IR),
    )
    return tuple(zip(of_queries, of_keys, strict=True)), dv_JHC


def _product(subscripts: str, x: jax.Array, y: jax.Array) -> jax.Array:
    return jnp.einsum(subscripts, x, y, preferred_element_type=jnp.float32)
