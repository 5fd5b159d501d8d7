"""The layers of a decoder block: RMSNorm, attention, feed-forward. Axis letters: `rrope_jax.model`.

No layer has a bias. Parameters are float32 and are cast to the compute dtype on use.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from rrope_jax.model.attention.choice import attention
from rrope_jax.model.attention.mask import CausalMask
from rrope_jax.model.config import ACTIVATIONS, ModelConfig
from rrope_jax.model.dropout import drop
from rrope_jax.model.products import project, project_together
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


def _kernel(
    rngs: nnx.Rngs,
    config: ModelConfig,
    shape: tuple[int, ...],
    axes: LogicalAxes,
    t5_variance: float,
) -> nnx.Param[jax.Array]:
    """A matrix of a layer, drawn from the configured initialization."""
    std = t5_variance**0.5 if config.initialization == "t5" else config.initializer_range
    return parameter(std * jax.random.normal(rngs.params(), shape, jnp.float32), axes)


class RMSNorm(nnx.Module):
    """x / rms(x) * scale, computed in float32 (arXiv 1910.07467)."""

    def __init__(self, config: ModelConfig):
        # not sharded: it is small, and gathering it would add a transfer to every layer
        self.scale = parameter(jnp.ones((config.d_model,), jnp.float32), (None,))
        self.eps = config.rms_norm_eps

    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        x32_BTD = x_BTD.astype(jnp.float32)
        mean_square_BT1 = jnp.mean(jnp.square(x32_BTD), axis=-1, keepdims=True)
        normed_BTD = x32_BTD * jax.lax.rsqrt(mean_square_BT1 + self.eps)
        return (normed_BTD * read(self.scale)).astype(x_BTD.dtype)


class Attention(nnx.Module):
    """Grouped-query attention with rotated queries and keys."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        D, N, K, H = config.d_model, config.num_heads, config.kv_heads, config.head_size
        key_axes = ("d_model", "kv_heads", None)
        self.query = _kernel(rngs, config, (D, N, H), ("d_model", "heads", None), 1 / (D * H))
        self.key = _kernel(rngs, config, (D, K, H), key_axes, 1 / D)
        self.value = _kernel(rngs, config, (D, K, H), key_axes, 1 / D)
        self.out = _kernel(rngs, config, (N, H, D), ("heads", None, "d_model"), 1 / (N * H))
        self.config = config

    def project(
        self, x_BTD: jax.Array, rotation: tuple[jax.Array, jax.Array]
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Scaled and rotated q_BTNH, rotated k_BTKH, and v_BTKH."""
        kernels = (read(self.query), read(self.key), read(self.value))
        q_BTNH, k_BTKH, v_BTKH = project_together(x_BTD, kernels)
        q_BTNH, k_BTKH = constrain(q_BTNH, _QUERIES), constrain(k_BTKH, _KEYS)
        q_BTNH = rotate(q_BTNH, *rotation, scale=self.config.scale)
        return q_BTNH, rotate(k_BTKH, *rotation), constrain(v_BTKH, _KEYS)

    def attend(
        self,
        q_BTNH: jax.Array,
        k_BSKH: jax.Array,
        v_BSKH: jax.Array,
        mask: CausalMask,
        dropout_key: jax.Array | None,
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
        )
        return constrain(project(mixed_BTNH, read(self.out)), STREAM)


class FeedForward(nnx.Module):
    """Two matrices around an activation, and a third for the gate if the activation is gated."""

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
