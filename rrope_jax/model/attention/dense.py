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
    is_far_BTS = None if call.far is None else call.mask.far(T, S, call.far.window)
    one_query = operations().one_query
    if T == 1 and call.dropout is None and one_query is not None:
        far = None if call.far is None else (*call.far[:2], is_far_BTS)
        return one_query(q_BTNH, k_BSKH, v_BSKH, visible_BTS, far)

    def logits(q_BTNH: jax.Array, k_BSKH: jax.Array) -> jax.Array:
        q_BTKGH = q_BTNH.reshape(B, T, K, N // K, H)
        return jnp.einsum("BTKGH,BSKH->BKGTS", q_BTKGH, k_BSKH, preferred_element_type=jnp.float32)

    logits_BKGTS = logits(q_BTNH, k_BSKH)
    if call.far is not None and is_far_BTS is not None:
        far_BKGTS = logits(call.far.q_BTNH, call.far.k_BSKH)
        logits_BKGTS = jnp.where(is_far_BTS[:, None, None], far_BKGTS, logits_BKGTS)
    weights_BKGTS = jax.nn.softmax(
        jnp.where(visible_BTS[:, None, None], logits_BKGTS, MASKED), axis=-1
    )
    if call.dropout is not None:
        weights_BKGTS = call.dropout(weights_BKGTS)
    mixed_BTKGH = jnp.einsum("BKGTS,BSKH->BTKGH", weights_BKGTS.astype(v_BSKH.dtype), v_BSKH)
    return mixed_BTKGH.reshape(B, T, N, H)
