"""Attention as plain matrix products (`xla`)."""

import jax
import jax.numpy as jnp

from rrope_jax.model.attention.call import Call
from rrope_jax.model.attention.mask import MASKED
from rrope_jax.model.platform.operations import operations


def run(call: Call) -> jax.Array:
    """Works everywhere; holds float32 logits of all pairs, so memory grows with T * S."""
    q_BTNH, k_BSKH, v_BSKH = call.q_BTNH, call.k_BSKH, call.v_BSKH
    B, T, N, H = q_BTNH.shape
    S, K = k_BSKH.shape[1:3]
    visible_BTS = call.mask.dense(T, S)
    one_query = operations().one_query
    if T == 1 and call.dropout is None and one_query is not None:
        return one_query(q_BTNH, k_BSKH, v_BSKH, visible_BTS)
    q_BTKGH = q_BTNH.reshape(B, T, K, N // K, H)
    logits_BKGTS = jnp.einsum(
        "BTKGH,BSKH->BKGTS", q_BTKGH, k_BSKH, preferred_element_type=jnp.float32
    )
    weights_BKGTS = jax.nn.softmax(
        jnp.where(visible_BTS[:, None, None], logits_BKGTS, MASKED), axis=-1
    )
    if call.dropout is not None:
        weights_BKGTS = call.dropout(weights_BKGTS)
    mixed_BTKGH = jnp.einsum("BKGTS,BSKH->BTKGH", weights_BKGTS.astype(v_BSKH.dtype), v_BSKH)
    return mixed_BTKGH.reshape(B, T, N, H)
