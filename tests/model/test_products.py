"""The products of a layer and their gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rrope_jax.model.products import project
from tests.closeness import FLOAT32, assert_close


@pytest.mark.parametrize("outputs", [(3,), (5,), (2, 4), (5, 2)])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_project_contracts_and_differentiates(outputs: tuple[int, ...], dtype: str) -> None:
    """Kernels narrower and wider than the input, whose gradients take different ways on a CPU."""
    x_key, kernel_key, weight_key = jax.random.split(jax.random.key(0), 3)
    x_BTI = jax.random.normal(x_key, (2, 3, 5), dtype)
    kernel_IO = jax.random.normal(kernel_key, (5, *outputs))
    weight_BTO = jax.random.normal(weight_key, (2, 3, *outputs), dtype)

    y_BTO, pull = jax.vjp(project, x_BTI, kernel_IO)
    x_gradient_BTI, kernel_gradient_IO = pull(weight_BTO)

    x64, weight64 = (np.asarray(a, np.float64) for a in (x_BTI, weight_BTO))
    kernel64 = np.asarray(kernel_IO.astype(dtype), np.float64)
    share = {"float32": FLOAT32, "bfloat16": 1e-2}[dtype]  # bfloat16 rounds at 2^-9
    back64 = np.tensordot(weight64, kernel64, [range(2, weight64.ndim), range(1, kernel64.ndim)])
    assert_close(np.asarray(y_BTO, np.float64), np.tensordot(x64, kernel64, 1), share)
    assert_close(kernel_gradient_IO, np.einsum("bti,bt...->i...", x64, weight64), share)
    assert_close(np.asarray(x_gradient_BTI, np.float64), back64, share)
    assert (y_BTO.dtype, x_gradient_BTI.dtype) == (jnp.dtype(dtype), jnp.dtype(dtype))
    assert kernel_gradient_IO.dtype == jnp.float32
