"""Causal attention behind one function, with an implementation per backend.

B batch, T queries, S keys, N query heads, K key/value heads (G = N / K queries share one), H
head_dim.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

# finite, so that a row with no visible key gives finite numbers and gradients
_MASKED = -0.7 * float(jnp.finfo(jnp.float32).max)


def causal_mask(
    query_index: jax.Array,
    key_index: jax.Array,
    query_segments_BT: jax.Array | None = None,
    key_segments_BS: jax.Array | None = None,
) -> jax.Array:
    """Which keys a query may see: those not after it, of its own segment.

    Args:
      query_index, key_index: int32[T] or int32[B, T], int32[S] or int32[B, S]: order in the
        sequence. Not rotary positions, which sampling may repeat or skip.
      query_segments_BT, key_segments_BS: int32; both or neither. Equal numbers may see each other.

    Returns:
      bool[B or 1, T, S], True where visible.
    """
    visible = key_index[..., None, :] <= query_index[..., :, None]
    if visible.ndim == 2:
        visible = visible[None]
    if query_segments_BT is not None and key_segments_BS is not None:
        visible = visible & (query_segments_BT[:, :, None] == key_segments_BS[:, None, :])
    return visible


def _xla(
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    mask_BTS: jax.Array,
    scale: float,
    dropout: Callable[[jax.Array], jax.Array],
) -> jax.Array:
    B, T, N, H = q_BTNH.shape
    K = k_BSKH.shape[2]
    q_BTKGH = (q_BTNH * scale).reshape(B, T, K, N // K, H)
    logits = jnp.einsum(
        "BTKGH,BSKH->BKGTS", q_BTKGH, k_BSKH, preferred_element_type=jnp.float32
    )
    logits = jnp.where(mask_BTS[:, None, None], logits, _MASKED)
    weights = dropout(jax.nn.softmax(logits, axis=-1)).astype(v_BSKH.dtype)
    return jnp.einsum("BKGTS,BSKH->BTKGH", weights, v_BSKH).reshape(B, T, N, H)


def attention(
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    mask_BTS: jax.Array,
    *,
    scale: float,
    dropout: Callable[[jax.Array], jax.Array] = lambda weights: weights,
) -> jax.Array:
    """Softmax attention with float32 logits and softmax. Returns like q_BTNH."""
    return _xla(q_BTNH, k_BSKH, v_BSKH, mask_BTS, scale, dropout)
