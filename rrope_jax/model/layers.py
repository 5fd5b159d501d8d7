"""The layers of a decoder block: RMSNorm, attention, feed-forward. Axis letters: `rrope_jax.model`.

Parameters have the dtypes of `ModelConfig.weight_dtype` and are cast to the compute dtype on use.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import ArrayLike

from rrope_jax.model.attention.call import FarPairs
from rrope_jax.model.attention.choice import attention
from rrope_jax.model.attention.mask import CausalMask
from rrope_jax.model.config import ACTIVATIONS, WEIGHT_DTYPES, ModelConfig
from rrope_jax.model.dropout import drop
from rrope_jax.model.int8 import Int8Kernel, quantize
from rrope_jax.model.low_rank import LowRankUpdated
from rrope_jax.model.products import Kernel, project, project_together
from rrope_jax.rope import rotate
from rrope_jax.sharding import LogicalAxes, constrain

STREAM: LogicalAxes = ("batch", "length", None)
"""The axes of the residual stream."""

_QUERIES: LogicalAxes = ("batch", "length", "heads", None)
_KEYS: LogicalAxes = ("batch", "length", "kv_heads", None)
_HIDDEN: LogicalAxes = ("batch", "length", "d_ff")


def parameter(value: jax.Array, axes: LogicalAxes) -> nnx.Param[jax.Array]:
    """A parameter annotated with its logical axes, for `rrope_jax.sharding`.

    A parameter stacked over layers keeps the axes of a single layer.
    """
    return nnx.Param(value, axes=axes)


def read(param: nnx.Param[jax.Array]) -> jax.Array:
    """The value of a layer's parameter, sharded over the mesh as it is stored.

    This also shards its gradient, which would otherwise exist in full on every device.
    """
    return constrain(param[...], param.axes)


def read_kernel(param: nnx.Param[Any], scale: nnx.Param[jax.Array] | None) -> Kernel:
    """Like `read`, for a matrix of a layer.

    Args:
      param: the matrix, whose value may be a `LowRankUpdated`.
      scale: the scale that it has in int8.
    """
    kernel = param.get_value()
    if not isinstance(kernel, LowRankUpdated):
        return read(param) if scale is None else Int8Kernel(read(param), read(scale))
    inputs = kernel.a.ndim - 1
    return dataclasses.replace(
        kernel,
        base=constrain(kernel.base, param.axes),
        a=constrain(kernel.a, (*param.axes[:inputs], None)),
        b=constrain(kernel.b, (None, *param.axes[inputs:])),
    )


def _kernel(
    rngs: nnx.Rngs,
    config: ModelConfig,
    shape: tuple[int, ...],
    axes: LogicalAxes,
    t5_variance: float,
    inputs: int = 1,
) -> tuple[nnx.Param[jax.Array], nnx.Param[jax.Array] | None]:
    """A matrix of a layer, drawn from the configured initialization, and its scale in int8.

    Of its axes, the first `inputs` are contracted.
    """
    std = t5_variance**0.5 if config.initialization == "t5" else config.initializer_range
    kernel = std * jax.random.normal(rngs.params(), shape, jnp.float32)
    dtype = WEIGHT_DTYPES[config.weight_dtype].kernels
    if dtype != "int8":
        return parameter(kernel.astype(dtype), axes), None
    values, scale = quantize(kernel, tuple(range(inputs)))
    return parameter(values, axes), parameter(scale, axes[inputs:])


class FarRotation(NamedTuple):
    """What the positions of a batch do to queries and keys of pairs that are far apart.

    Attributes:
      query_cos, query_sin, key_cos, key_sin: float32[B or 1, T, d/2] or [T, d/2], from
        `rope.cos_sin` at the positions of far queries and keys.
      window: as for `attention.call.FarPairs`.
    """

    query_cos: jax.Array
    query_sin: jax.Array
    key_cos: jax.Array
    key_sin: jax.Array
    window: ArrayLike


class Rotation(NamedTuple):
    """What the positions of a batch do to queries and keys.

    Attributes:
      cos, sin: float32[B or 1, T, d/2] or [T, d/2], from `rope.cos_sin`.
      temperature: a factor on queries, float32[B or 1, T], from `rope.query_temperature`; None for
        no factor.
      far: the rotation of far pairs; None if all pairs have the same.
    """

    cos: jax.Array
    sin: jax.Array
    temperature: jax.Array | None = None
    far: FarRotation | None = None


class RMSNorm(nnx.Module):
    """x / rms(x) * scale over the last axes, computed in float32 (arXiv 1910.07467)."""

    def __init__(
        self, config: ModelConfig, shape: tuple[int, ...], axes: LogicalAxes | None = None
    ):
        """Initializes the scale, of a shape, to the identity; it is not sharded without `axes`."""
        neutral = jnp.zeros if config.norm_offset else jnp.ones
        # whole by default: it is small, and gathering it would add a transfer to every layer
        self.scale = parameter(neutral(shape, jnp.float32), axes or (None,) * len(shape))
        self.offset = float(config.norm_offset)
        self.eps = config.rms_norm_eps

    def __call__(self, x: jax.Array) -> jax.Array:
        scale = read(self.scale)
        if self.offset:
            scale = scale + self.offset
        x32 = x.astype(jnp.float32)
        normed_axes = tuple(range(-scale.ndim, 0))
        mean_square = jnp.mean(jnp.square(x32), axis=normed_axes, keepdims=True)
        return (x32 * jax.lax.rsqrt(mean_square + self.eps) * scale).astype(x.dtype)


class Attention(nnx.Module):
    """Grouped-query attention with rotated queries and keys."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        D, N, K, H = config.d_model, config.num_heads, config.kv_heads, config.head_size
        key_axes = ("d_model", "kv_heads", None)
        query_axes, out_axes = ("d_model", "heads", None), ("heads", None, "d_model")
        self.query, self.query_scale = _kernel(rngs, config, (D, N, H), query_axes, 1 / (D * H))
        self.key, self.key_scale = _kernel(rngs, config, (D, K, H), key_axes, 1 / D)
        self.value, self.value_scale = _kernel(rngs, config, (D, K, H), key_axes, 1 / D)
        self.out, self.out_scale = _kernel(rngs, config, (N, H, D), out_axes, 1 / (N * H), inputs=2)
        self.query_bias = _bias(config, (N, H), ("heads", None))
        self.key_bias = _bias(config, (K, H), ("kv_heads", None))
        self.value_bias = _bias(config, (K, H), ("kv_heads", None))
        self.query_norm = _head_norm(config, (N, H), ("heads", None))
        self.key_norm = _head_norm(config, (K, H), ("kv_heads", None))
        self.config = config

    def project(
        self, x_BTD: jax.Array, rotation: Rotation | None
    ) -> tuple[jax.Array, jax.Array, jax.Array, FarPairs | None]:
        """Scaled and rotated q_BTNH, rotated k_BTKH, v_BTKH, and q and k of far pairs.

        There is no rotation if it is None.
        """
        kernels = (
            read_kernel(self.query, self.query_scale),
            read_kernel(self.key, self.key_scale),
            read_kernel(self.value, self.value_scale),
        )
        q_BTNH, k_BTKH, v_BTKH = project_together(x_BTD, kernels)
        q_BTNH = constrain(_finish(q_BTNH, self.query_bias, self.query_norm), _QUERIES)
        k_BTKH = constrain(_finish(k_BTKH, self.key_bias, self.key_norm), _KEYS)
        v_BTKH = constrain(_finish(v_BTKH, self.value_bias, None), _KEYS)
        scale: float | jax.Array = self.config.scale
        if rotation is None:
            return (q_BTNH.astype(jnp.float32) * scale).astype(q_BTNH.dtype), k_BTKH, v_BTKH, None
        cos, sin, temperature_BT, far = rotation
        if temperature_BT is not None:
            scale = scale * temperature_BT[..., None, None]
        pairs = None
        if far is not None:
            pairs = FarPairs(
                rotate(q_BTNH, far.query_cos, far.query_sin, scale=scale),
                rotate(k_BTKH, far.key_cos, far.key_sin),
                far.window,
            )
        q_BTNH = rotate(q_BTNH, cos, sin, scale=scale)
        return q_BTNH, rotate(k_BTKH, cos, sin), v_BTKH, pairs

    def attend(
        self,
        q_BTNH: jax.Array,
        k_BSKH: jax.Array,
        v_BSKH: jax.Array,
        mask: CausalMask,
        dropout_key: jax.Array | None,
        far: FarPairs | None = None,
    ) -> jax.Array:
        """Attention followed by the output projection, x_BTD."""
        rate = self.config.dropout
        drops = dropout_key is not None and rate > 0
        mixed_BTNH = attention(
            q_BTNH,
            k_BSKH,
            v_BSKH,
            mask,
            implementation=self.config.attention,
            dropout=(lambda weights_BKGTS: drop(weights_BKGTS, rate, dropout_key))
            if drops
            else None,
            far=far,
        )
        return constrain(project(mixed_BTNH, read_kernel(self.out, self.out_scale)), STREAM)


def _bias(
    config: ModelConfig, shape: tuple[int, int], axes: LogicalAxes
) -> nnx.Param[jax.Array] | None:
    return parameter(jnp.zeros(shape, jnp.float32), axes) if config.qkv_bias else None


def _head_norm(config: ModelConfig, shape: tuple[int, int], axes: LogicalAxes) -> RMSNorm | None:
    """The norm of queries or keys, over each head or over all of them."""
    if config.qk_norm == "none":
        return None
    if config.qk_norm == "head":
        return RMSNorm(config, shape[1:])
    return RMSNorm(config, shape, axes)


def _finish(
    x_BTOH: jax.Array, bias: nnx.Param[jax.Array] | None, norm: RMSNorm | None
) -> jax.Array:
    """A projection with its bias and norm, if it has them."""
    if bias is not None:
        x_BTOH = x_BTOH + read(bias).astype(x_BTOH.dtype)
    return x_BTOH if norm is None else norm(x_BTOH)


class FeedForward(nnx.Module):
    """Two matrices around an activation, and a third for the gate if the activation is gated."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        D, F = config.d_model, config.d_ff
        gated = ACTIVATIONS[config.activation].gated
        axes = ("d_model", "d_ff")
        self.up, self.up_scale = _kernel(rngs, config, (D, F), axes, 1 / D)
        gate: tuple[nnx.Param[jax.Array] | None, ...] = (None, None)
        if gated:
            gate = _kernel(rngs, config, (D, F), axes, 1 / D)
        self.gate, self.gate_scale = gate
        self.down, self.down_scale = _kernel(rngs, config, (F, D), axes[::-1], 1 / F)
        self.config = config

    def __call__(self, x_BTD: jax.Array, dropout_key: jax.Array | None = None) -> jax.Array:
        activation = ACTIVATIONS[self.config.activation].function
        hidden_BTF = constrain(project(x_BTD, read_kernel(self.up, self.up_scale)), _HIDDEN)
        if self.gate is None:
            hidden_BTF = activation(hidden_BTF)
        else:
            gate = read_kernel(self.gate, self.gate_scale)
            gate_BTF = constrain(project(x_BTD, gate), _HIDDEN)
            hidden_BTF = activation(gate_BTF) * hidden_BTF
        hidden_BTF = drop(hidden_BTF, self.config.dropout, dropout_key)
        down = read_kernel(self.down, self.down_scale)
        return constrain(project(hidden_BTF, down), STREAM)
