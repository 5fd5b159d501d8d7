"""Operations for a single CPU outside a mesh, in the form that XLA and Eigen compute fastest.

The speedup of each is in docs/speed.md and docs/speed_smollm2.md.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from rrope_jax.model.attention.mask import MASKED

_PARTS = 2


def matmul(
    x_MI: jax.Array, kernel_IO: jax.Array, preferred_element_type: DTypeLike | None
) -> jax.Array:
    """`jnp.matmul` that splits vectors into parts and computes wide kernel gradients."""
    if preferred_element_type not in (None, x_MI.dtype):
        return jnp.matmul(x_MI, kernel_IO, preferred_element_type=preferred_element_type)
    if len(x_MI) == 1:
        return _vector_matmul(x_MI[0], kernel_IO)[None]
    return _matmul_wide_gradient(x_MI, kernel_IO)


def matmul_rows(x_MI: jax.Array, kernel_OI: jax.Array) -> jax.Array:
    """`x_MI @ kernel_OI.T` in float32; splits vectors into parts and avoids their transpose."""
    if len(x_MI) > 1:
        return matmul(x_MI, kernel_OI.T, jnp.float32)
    x_I = jax.lax.optimization_barrier(x_MI.reshape(-1))
    kernel_POI = kernel_OI.reshape(math.gcd(len(kernel_OI), _PARTS), -1, len(x_I))
    y_PO = jnp.einsum("POI,I->PO", kernel_POI, x_I, preferred_element_type=jnp.float32)
    return y_PO.reshape(1, -1)


def _vector_matmul(x_I: jax.Array, kernel_IO: jax.Array) -> jax.Array:
    """A vector-matrix product in parts, since XLA would compute the whole on a single core.

    The barrier keeps XLA from recomputing x for every output.
    """
    parts = math.gcd(len(x_I), _PARTS)
    x_PI = jax.lax.optimization_barrier(x_I).reshape(parts, -1)
    kernel_PIO = kernel_IO.reshape(*x_PI.shape, -1)
    return jnp.einsum("PI,PIO->PO", x_PI, kernel_PIO).sum(axis=0)


@jax.custom_vjp
def _matmul_wide_gradient(x_MI: jax.Array, kernel_IO: jax.Array) -> jax.Array:
    """The product, with a kernel gradient computed in the orientation with more columns than rows.

    Eigen computes a wide result up to twice as fast as its transpose.
    """
    return x_MI @ kernel_IO


def _matmul_forward(
    x_MI: jax.Array, kernel_IO: jax.Array
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return x_MI @ kernel_IO, (x_MI, kernel_IO)


def _matmul_backward(
    saved: tuple[jax.Array, jax.Array], gradient_MO: jax.Array
) -> tuple[jax.Array, jax.Array]:
    x_MI, kernel_IO = saved
    inputs, outputs = kernel_IO.shape
    if inputs <= outputs:
        kernel_gradient_IO = x_MI.T @ gradient_MO
    else:  # the barrier keeps XLA from swapping the operands back
        kernel_gradient_IO = jax.lax.optimization_barrier(gradient_MO.T @ x_MI).T
    return gradient_MO @ kernel_IO.T, kernel_gradient_IO


_matmul_wide_gradient.defvjp(_matmul_forward, _matmul_backward)


def one_query(
    q_B1NH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    visible_B1S: jax.Array,
    far: tuple[jax.Array, jax.Array, jax.Array] | None = None,
) -> jax.Array:
    """Attention with one query per row, which is bound by reading the cache.

    The products take keys and values in the layout of the cache. With the layout of
    `attention.dense`, XLA would first transpose the values, which takes longer than all the rest.
    """
    B, _, N, H = q_B1NH.shape
    K = k_BSKH.shape[2]
    v_BKSH = v_BSKH.swapaxes(1, 2)
    heads = ((0, 1), (0, 1))

    def logits(q_B1NH: jax.Array, k_BSKH: jax.Array) -> jax.Array:
        q_BKGH, k_BKSH = q_B1NH.reshape(B, K, N // K, H), k_BSKH.swapaxes(1, 2)
        return jax.lax.dot_general(
            q_BKGH, k_BKSH, (((3,), (3,)), heads), preferred_element_type=jnp.float32
        )

    logits_BKGS = logits(q_B1NH, k_BSKH)
    if far is not None:
        far_q_B1NH, far_k_BSKH, is_far_B1S = far
        far_BKGS = logits(far_q_B1NH, far_k_BSKH)
        logits_BKGS = jnp.where(is_far_B1S[:, None], far_BKGS, logits_BKGS)
    weights_BKGS = jax.nn.softmax(jnp.where(visible_B1S[:, None], logits_BKGS, MASKED), axis=-1)
    mixed_BKGH = jax.lax.dot_general(
        weights_BKGS.astype(v_BKSH.dtype), v_BKSH, (((3,), (2,)), heads)
    )
    return mixed_BKGH.reshape(B, 1, N, H)


def unstack(stacked: Any) -> list[Any]:
    """Splits a tree of concrete arrays [L, ...] into one tree per layer.

    If a loop slices a layer out of the stack, XLA copies it, which takes longer than using it. The
    new arrays share the memory of the stack if its layers are aligned to 64 bytes.
    """

    def layers(array_L: jax.Array) -> list[jax.Array]:
        return [
            jax.device_put(layer, array_L.sharding, may_alias=True)
            for layer in np.asarray(array_L)  # a view of the device's memory
        ]

    leaves, tree = jax.tree.flatten(stacked)
    layers_of_leaves = [layers(leaf_L) for leaf_L in leaves]
    return [jax.tree.unflatten(tree, layer) for layer in zip(*layers_of_leaves, strict=True)]
