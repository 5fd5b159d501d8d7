"""Every implementation of attention that the platform has, against `xla` in float32."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rrope_jax.model.attention.call import CallShape
from rrope_jax.model.attention.choice import IMPLEMENTATIONS, attention, choose
from rrope_jax.model.attention.mask import CausalMask
from rrope_jax.model.platform.operations import backend_platform

pytestmark = [pytest.mark.accelerator, pytest.mark.slow]

# more than one block of queries and of keys in all kernels, and a last one that is not full
B, T, N, K, H = 2, 1280, 4, 2, 64

# Of the largest value. In float32, sums of 1,280 terms in another order. In bfloat16, of which a
# unit is 2^-8, the scaled query, the weights, the result and, backwards, three more are rounded.
TOLERANCES = {"float32": 2e-5, "bfloat16": 2.0**-6}


def _segments() -> jax.Array:
    """Documents of about 50 tokens in one row, of about 600 in the other."""
    share_B1 = np.array([[1 / 50], [1 / 600]])
    starts_BT = np.random.default_rng(1).random((B, T)) < share_B1
    return jnp.cumsum(jnp.asarray(starts_BT, jnp.int32), axis=1)


def _outputs(implementation: str, dtype: str, mask: CausalMask) -> tuple[np.ndarray, ...]:
    """The result, and the gradients of q, k and v, as float32 numbers."""
    random = np.random.default_rng(0)
    shapes = ((B, T, N, H), (B, T, K, H), (B, T, K, H), (B, T, N, H))
    # rounded to bfloat16 in any case, so that both dtypes begin with the same numbers
    *qkv, weight = (jnp.asarray(random.standard_normal(s), jnp.bfloat16) for s in shapes)

    def weighted(qkv: Any) -> tuple[jax.Array, jax.Array]:
        q, k, v = qkv
        out = attention(H**-0.5 * q, k, v, mask, implementation=implementation)
        return jnp.sum(weight.astype(jnp.float32) * out.astype(jnp.float32)), out

    with jax.default_matmul_precision("float32"):
        (_, out), gradients = jax.jit(jax.value_and_grad(weighted, has_aux=True))(
            [x.astype(dtype) for x in qkv]
        )
    return tuple(np.asarray(x, np.float32) for x in (out, *gradients))


@pytest.mark.parametrize("segmented", [False, True], ids=["whole", "segments"])
@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("name", IMPLEMENTATIONS)
@pytest.mark.parametrize("window", [None, 300])
def test_forward_and_gradient(window: int | None, name: str, dtype: str, segmented: bool) -> None:
    if (name, dtype) == ("xla", "float32"):
        pytest.skip("it is what the others are compared with")
    mask = CausalMask(segment_ids_BT=_segments() if segmented else None, window=window)
    shape = CallShape(
        B=B,
        T=T,
        S=T,
        N=N,
        K=K,
        H=H,
        dtype=jnp.dtype(dtype),
        segmented=segmented,
        window=window,
    )
    try:
        choose(shape, name)
    except ValueError as error:
        pytest.skip(f"on {backend_platform()}: {error}")
    expected = _outputs("xla", "float32", mask)
    for what, one, other in zip("oqkv", _outputs(name, dtype, mask), expected, strict=True):
        error = np.max(np.abs(one - other)) / np.max(np.abs(other))
        assert error <= TOLERANCES[dtype], f"{what}: {error:.2e} of the largest value"
