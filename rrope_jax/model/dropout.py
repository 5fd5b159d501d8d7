"""Inverted dropout."""

import jax
import jax.numpy as jnp

from rrope_jax.model.platform.threefry import random_bits


def drop(x: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
    """Zeroes elements with probability `rate` and divides the rest by `1 - rate`.

    The elements kept are those of `jax.random.bernoulli(key, 1 - rate, x.shape)`.

    Args:
      x: float[...].
      rate: in [0, 1).
      key: a PRNG key; None means no dropout.

    Returns:
      An array of the shape and dtype of x.
    """
    if key is None or rate == 0:
        return x
    uniform = (random_bits(key, x.shape) >> 9).astype(jnp.float32) * jnp.float32(2.0**-23)
    return jnp.where(uniform < 1 - rate, x / (1 - rate), jnp.zeros((), x.dtype))
