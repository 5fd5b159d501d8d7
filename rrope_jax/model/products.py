"""Products of activations and layer matrices."""

import itertools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from rrope_jax.model.dropout import drop
from rrope_jax.model.int8 import Int8Kernel
from rrope_jax.model.low_rank import LowRankUpdated
from rrope_jax.model.platform.operations import operations
from rrope_jax.sharding import constrain, on_a_mesh

Kernel = jax.Array | Int8Kernel | LowRankUpdated
"""A matrix of a layer, [*I, *O], as one array, in int8, or with an update."""


def project(
    x_BTI: jax.Array, kernel_IO: Kernel, preferred_element_type: DTypeLike | None = None
) -> jax.Array:
    """Contracts the axes I of every token with the leading axes of a kernel: `[B, T, *O]`.

    Args:
      x_BTI: float[B, T, *I].
      kernel_IO: float[*I, *O], cast to the dtype of x, or another `Kernel`.
      preferred_element_type: the dtype of the result; None for the dtype of x.
    """
    if isinstance(kernel_IO, Int8Kernel):
        y_BTO = project(x_BTI, kernel_IO.values, preferred_element_type=jnp.float32)
        scaled_BTO: jax.Array = y_BTO * kernel_IO.scale
        return scaled_BTO.astype(preferred_element_type or x_BTI.dtype)
    if isinstance(kernel_IO, LowRankUpdated):
        y_BTO = project(x_BTI, kernel_IO.base, preferred_element_type)
        return y_BTO + _update(x_BTI, kernel_IO).astype(y_BTO.dtype)
    axes = x_BTI.ndim - 2
    kernel_IO = kernel_IO.astype(x_BTI.dtype)
    if on_a_mesh():  # B and T may be sharded differently, so they stay apart
        return jnp.tensordot(x_BTI, kernel_IO, axes, preferred_element_type=preferred_element_type)
    # B and T are merged: otherwise XLA, on some platforms, transposes the activations for the
    # kernel's gradient, which takes a tenth of a training step.
    inputs = math.prod(kernel_IO.shape[:axes])
    y_MO = operations().matmul(
        x_BTI.reshape(-1, inputs), kernel_IO.reshape(inputs, -1), preferred_element_type
    )
    return y_MO.reshape(*x_BTI.shape[:2], *kernel_IO.shape[axes:])


def _update(x_BTI: jax.Array, kernel_IO: LowRankUpdated) -> jax.Array:
    """What the low-rank part of a kernel adds to a product: `[B, T, *O]`."""
    x_BTI = drop(x_BTI, kernel_IO.rate, kernel_IO.key)
    y_BTR = constrain(project(x_BTI, kernel_IO.a), ("batch", "length", None))
    return project(y_BTR * jnp.asarray(kernel_IO.scaling, y_BTR.dtype), kernel_IO.b)


def project_together(x_BTI: jax.Array, kernels_IOH: Sequence[Kernel]) -> list[jax.Array]:
    """Applies `project` with each of several kernels: one `[B, T, O, H]` per kernel."""
    bases_IOH = [each.base if isinstance(each, LowRankUpdated) else each for each in kernels_IOH]
    arrays_IOH = [base for base in bases_IOH if not isinstance(base, Int8Kernel)]
    # for a single token, joining the kernels costs more than the products
    joins = operations().joins_projections and x_BTI.shape[1] > 1
    if not joins or len(arrays_IOH) < len(kernels_IOH):
        return [project(x_BTI, kernel_IOH) for kernel_IOH in kernels_IOH]
    joined_BTOH = project(x_BTI, jnp.concatenate(arrays_IOH, axis=1))
    ends = itertools.accumulate(array_IOH.shape[1] for array_IOH in arrays_IOH)
    return [
        y_BTOH + _update(x_BTI, kernel_IOH) if isinstance(kernel_IOH, LowRankUpdated) else y_BTOH
        for y_BTOH, kernel_IOH in zip(
            jnp.split(joined_BTOH, list(ends)[:-1], axis=2), kernels_IOH, strict=True
        )
    ]


def project_to_rows(x_BTI: jax.Array, kernel_OI: jax.Array) -> jax.Array:
    """Contracts the last axes of both, as for tied embeddings: float32[B, T, O]."""
    if on_a_mesh():
        return project(x_BTI, kernel_OI.T, preferred_element_type=jnp.float32)
    y_MO = operations().matmul_rows(
        x_BTI.reshape(-1, x_BTI.shape[-1]), kernel_OI.astype(x_BTI.dtype)
    )
    return y_MO.reshape(*x_BTI.shape[:2], -1)
