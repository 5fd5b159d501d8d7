"""The layers of a decoder block in Flax NNX. Letters: see `rrope_jax.model.attention.choice`.

D is d_model, F is d_ff, V the vocabulary. No layer has a bias. Parameters are float32 and cast to
the compute dtype where they are used.
"""

import math

import jax
import jax.numpy as jnp
from flax import nnx

from rrope_jax.model.attention.choice import CausalMask, attention, on_one_cpu
from rrope_jax.model.config import ACTIVATIONS, ModelConfig
from rrope_jax.model.dropout import drop
from rrope_jax.rope import rotate
from rrope_jax.sharding import LogicalAxes, constrain, on_a_mesh


def parameter(value: jax.Array, axes: LogicalAxes) -> nnx.Param[jax.Array]:
    """A parameter that knows what its axes are, for `rrope_jax.sharding`.

    A stacked one has the axes of a single layer.
    """
    return nnx.Param(value, axes=axes)


def read(param: nnx.Param[jax.Array]) -> jax.Array:
    """A layer's parameter where it is used, split over the mesh as it is stored.

    Said here, the same holds for its gradient, which else would exist in whole on every device.
    """
    return constrain(param[...], param.axes)


def _kernel(
    rngs: nnx.Rngs,
    config: ModelConfig,
    shape: tuple[int, ...],
    axes: LogicalAxes,
    t5_variance: float,
) -> nnx.Param[jax.Array]:
    std = t5_variance**0.5 if config.initialization == "t5" else config.initializer_range
    return parameter(std * jax.random.normal(rngs.params(), shape, jnp.float32), axes)


def project(
    x_BTI: jax.Array, kernel_IO: jax.Array, preferred_element_type: jnp.dtype | None = None
) -> jax.Array:
    """Contracts the axes I of every token with the first axes of a kernel: `[B, T, *O]`.

    The kernel is cast to the dtype of x.
    """
    axes = x_BTI.ndim - 2
    kernel_IO = kernel_IO.astype(x_BTI.dtype)
    if on_a_mesh():  # B and T may be split in different ways
        return jnp.tensordot(x_BTI, kernel_IO, axes, preferred_element_type=preferred_element_type)
    # As one axis of tokens: with two, the kernel's gradient makes XLA copy the activations
    # transposed on CPUs, which takes a tenth of a training step.
    shape = (*x_BTI.shape[:2], *kernel_IO.shape[axes:])
    inputs = math.prod(kernel_IO.shape[:axes])
    x_MI, kernel_IO = x_BTI.reshape(-1, inputs), kernel_IO.reshape(inputs, -1)
    if on_one_cpu() and preferred_element_type in (None, x_MI.dtype):
        if len(x_MI) == 1:
            return _matvec(x_MI[0], kernel_IO).reshape(shape)
        return _matmul_wide_gradient(x_MI, kernel_IO).reshape(shape)
    return jnp.matmul(x_MI, kernel_IO, preferred_element_type=preferred_element_type).reshape(shape)


_PARTS = 2


def _matvec(x_I: jax.Array, kernel_IO: jax.Array) -> jax.Array:
    """The product of both in parts, since XLA computes one of a vector on one core.

    Without the barrier, XLA would compute what makes x again for every output.
    """
    parts = math.gcd(len(x_I), _PARTS)
    x_PI = jax.lax.optimization_barrier(x_I).reshape(parts, -1)
    kernel_PIO = kernel_IO.reshape(*x_PI.shape, -1)
    return jnp.einsum("PI,PIO->PO", x_PI, kernel_PIO).sum(axis=0)


def project_to_rows(x_BTI: jax.Array, kernel_OI: jax.Array) -> jax.Array:
    """Contracts the last axes of both: float32[B, T, O]."""
    kernel_OI = kernel_OI.astype(x_BTI.dtype)
    if not on_one_cpu() or x_BTI.shape[:2] != (1, 1):
        return project(x_BTI, kernel_OI.T, preferred_element_type=jnp.float32)
    # one token: in parts as above, without a transposed kernel
    x_I = jax.lax.optimization_barrier(x_BTI.reshape(-1))
    kernel_POI = kernel_OI.reshape(math.gcd(len(kernel_OI), _PARTS), -1, len(x_I))
    y_PO = jnp.einsum("POI,I->PO", kernel_POI, x_I, preferred_element_type=jnp.float32)
    return y_PO.reshape(1, 1, -1)


@jax.custom_vjp
def _matmul_wide_gradient(x_MI: jax.Array, kernel_IO: jax.Array) -> jax.Array:
    """The product of both, whose kernel gradient is computed as wide as it gets.

    Eigen, which has these products on CPUs, runs a wide result up to twice as fast as the same one
    transposed (docs/speed.md).
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
    else:  # the barrier keeps XLA from turning the product round again
        kernel_gradient_IO = jax.lax.optimization_barrier(gradient_MO.T @ x_MI).T
    return gradient_MO @ kernel_IO.T, kernel_gradient_IO


_matmul_wide_gradient.defvjp(_matmul_forward, _matmul_backward)


STREAM: LogicalAxes = ("batch", "length", None)
"""The axes of the residual stream."""

_HIDDEN: LogicalAxes = ("batch", "length", "d_ff")


class RMSNorm(nnx.Module):
    """x / rms(x) * scale, computed in float32 (arXiv 1910.07467)."""

    def __init__(self, config: ModelConfig):
        # not split: it is small, and gathering it would be one more message for every layer
        self.scale = parameter(jnp.ones((config.d_model,), jnp.float32), (None,))
        self.eps = config.rms_norm_eps

    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        x32 = x_BTD.astype(jnp.float32)
        mean_square = jnp.mean(jnp.square(x32), axis=-1, keepdims=True)
        normed = x32 * jax.lax.rsqrt(mean_square + self.eps)
        return (normed * read(self.scale)).astype(x_BTD.dtype)


class Attention(nnx.Module):
    """Grouped-query attention with rotated queries and keys."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        D, N, K, H = config.d_model, config.num_heads, config.kv_heads, config.head_size
        self.query = _kernel(rngs, config, (D, N, H), ("d_model", "heads", None), 1 / (D * H))
        key_axes = ("d_model", "kv_heads", None)
        self.key = _kernel(rngs, config, (D, K, H), key_axes, 1 / D)
        self.value = _kernel(rngs, config, (D, K, H), key_axes, 1 / D)
        self.out = _kernel(rngs, config, (N, H, D), ("heads", None, "d_model"), 1 / (N * H))
        self.config = config

    def project(
        self, x_BTD: jax.Array, rotation: tuple[jax.Array, jax.Array]
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Rotated q_BTNH and k_BTKH, and v_BTKH."""
        kernels = (read(self.query), read(self.key), read(self.value))
        if on_one_cpu() and x_BTD.shape[1] > 1:
            # One wide product is faster than three there; for a single token, joining the kernels
            # would cost more than the product.
            N, K = self.config.num_heads, self.config.kv_heads
            joined = project(x_BTD, jnp.concatenate(kernels, axis=1))
            q_BTNH, k_BTKH, v_BTKH = jnp.split(joined, [N, N + K], axis=2)
        else:
            q_BTNH, k_BTKH, v_BTKH = (
                constrain(project(x_BTD, kernel), ("batch", "length", heads, None))
                for kernel, heads in zip(kernels, ("heads", "kv_heads", "kv_heads"), strict=True)
            )
        return rotate(q_BTNH, *rotation), rotate(k_BTKH, *rotation), v_BTKH

    def attend(
        self,
        q_BTNH: jax.Array,
        k_BSKH: jax.Array,
        v_BSKH: jax.Array,
        mask: CausalMask,
        dropout_key: jax.Array | None,
    ) -> jax.Array:
        """Attention and the output projection: x_BTD."""
        rate = self.config.dropout
        drops = dropout_key is not None and rate > 0
        mixed_BTNH = attention(
            q_BTNH,
            k_BSKH,
            v_BSKH,
            mask,
            scale=self.config.scale,
            implementation=self.config.attention,
            dropout=(lambda weights: drop(weights, rate, dropout_key)) if drops else None,
        )
        return constrain(project(mixed_BTNH, read(self.out)), STREAM)


class FeedForward(nnx.Module):
    """Two matrices around an activation, with a third one as its gate where it has one."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        D, F = config.d_model, config.d_ff
        gated = ACTIVATIONS[config.activation].gated
        axes = ("d_model", "d_ff")
        self.up = _kernel(rngs, config, (D, F), axes, 1 / D)
        self.gate = _kernel(rngs, config, (D, F), axes, 1 / D) if gated else None
        self.down = _kernel(rngs, config, (F, D), axes[::-1], 1 / F)
        self.config = config

    def __call__(self, x_BTD: jax.Array, dropout_key: jax.Array | None = None) -> jax.Array:
        activation = ACTIVATIONS[self.config.activation].function
        hidden_BTF = constrain(project(x_BTD, read(self.up)), _HIDDEN)
        if self.gate is None:
            hidden_BTF = activation(hidden_BTF)
        else:
            gate_BTF = constrain(project(x_BTD, read(self.gate)), _HIDDEN)
            hidden_BTF = activation(gate_BTF) * hidden_BTF
        hidden_BTF = drop(hidden_BTF, self.config.dropout, dropout_key)
        return constrain(project(hidden_BTF, read(self.down)), STREAM)
