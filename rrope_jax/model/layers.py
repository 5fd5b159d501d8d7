"""The layers of a decoder block in Flax NNX. Letters: see `rrope_jax.model.attention`.

D is d_model, F is d_ff, V the vocabulary. No layer has a bias. Parameters are float32 and cast to
the compute dtype where they are used.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from rrope_jax.model.attention import attention
from rrope_jax.model.config import ModelConfig
from rrope_jax.rope import rotate


def _kernel(
    rngs: nnx.Rngs, config: ModelConfig, shape: tuple[int, ...], t5_variance: float
) -> nnx.Param:
    std = t5_variance**0.5 if config.initialization == "t5" else config.initializer_range
    return nnx.Param(std * jax.random.normal(rngs.params(), shape, jnp.float32))


def drop(x: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
    """Inverted dropout; the identity without a key or a rate."""
    if key is None or rate == 0:
        return x
    kept = jax.random.bernoulli(key, 1 - rate, x.shape)
    return jnp.where(kept, x / (1 - rate), jnp.zeros((), x.dtype))


class RMSNorm(nnx.Module):
    """x / rms(x) * scale, computed in float32 (arXiv 1910.07467)."""

    def __init__(self, config: ModelConfig):
        self.scale = nnx.Param(jnp.ones((config.d_model,), jnp.float32))
        self.eps = config.rms_norm_eps

    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        x32 = x_BTD.astype(jnp.float32)
        mean_square = jnp.mean(jnp.square(x32), axis=-1, keepdims=True)
        normed = x32 * jax.lax.rsqrt(mean_square + self.eps)
        return (normed * self.scale[...]).astype(x_BTD.dtype)


class Attention(nnx.Module):
    """Grouped-query attention with rotated queries and keys."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        D, N, K, H = config.d_model, config.num_heads, config.kv_heads, config.head_size
        self.query = _kernel(rngs, config, (D, N, H), 1 / (D * H))
        self.key = _kernel(rngs, config, (D, K, H), 1 / D)
        self.value = _kernel(rngs, config, (D, K, H), 1 / D)
        self.out = _kernel(rngs, config, (N, H, D), 1 / (N * H))
        self.config = config

    def project(
        self, x_BTD: jax.Array, rotation: tuple[jax.Array, jax.Array]
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Rotated q_BTNH and k_BTKH, and v_BTKH."""
        dtype = x_BTD.dtype
        q_BTNH = jnp.einsum("BTD,DNH->BTNH", x_BTD, self.query[...].astype(dtype))
        k_BTKH = jnp.einsum("BTD,DKH->BTKH", x_BTD, self.key[...].astype(dtype))
        v_BTKH = jnp.einsum("BTD,DKH->BTKH", x_BTD, self.value[...].astype(dtype))
        return rotate(q_BTNH, *rotation), rotate(k_BTKH, *rotation), v_BTKH

    def attend(
        self,
        q_BTNH: jax.Array,
        k_BSKH: jax.Array,
        v_BSKH: jax.Array,
        mask_BTS: jax.Array,
        dropout_key: jax.Array | None,
    ) -> jax.Array:
        """Attention and the output projection: x_BTD."""
        mixed_BTNH = attention(
            q_BTNH,
            k_BSKH,
            v_BSKH,
            mask_BTS,
            scale=self.config.scale,
            dropout=lambda weights: drop(weights, self.config.dropout, dropout_key),
        )
        return jnp.einsum("BTNH,NHD->BTD", mixed_BTNH, self.out[...].astype(mixed_BTNH.dtype))


class FeedForward(nnx.Module):
    """SwiGLU (arXiv 2002.05202) or the two-matrix ReLU layer of T5 v1.0."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        D, F = config.d_model, config.d_ff
        self.up = _kernel(rngs, config, (D, F), 1 / D)
        self.gate = _kernel(rngs, config, (D, F), 1 / D) if config.activation == "swiglu" else None
        self.down = _kernel(rngs, config, (F, D), 1 / F)
        self.dropout = config.dropout

    def __call__(self, x_BTD: jax.Array, dropout_key: jax.Array | None = None) -> jax.Array:
        dtype = x_BTD.dtype
        hidden_BTF = x_BTD @ self.up[...].astype(dtype)
        if self.gate is None:
            hidden_BTF = jax.nn.relu(hidden_BTF)
        else:
            hidden_BTF = jax.nn.silu(x_BTD @ self.gate[...].astype(dtype)) * hidden_BTF
        return drop(hidden_BTF, self.dropout, dropout_key) @ self.down[...].astype(dtype)
