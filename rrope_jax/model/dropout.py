"""Dropout at the cost of a few integer operations per element on every backend."""

import math

import jax
import jax.numpy as jnp

_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
_ROUNDS = 5
_PARITY = 0x1BD11BDA


def drop(x: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
    """Inverted dropout: zeroes elements with probability `rate` and scales up the rest.

    The elements kept are those of `jax.random.bernoulli(key, 1 - rate, x.shape)`.

    Args:
      x: float[...].
      rate: in [0, 1).
      key: a PRNG key; None means no dropout.

    Returns:
      Like x.
    """
    if key is None or rate == 0:
        return x
    uniform = (_random_bits(key, x.shape) >> 9).astype(jnp.float32) * jnp.float32(2.0**-23)
    return jnp.where(uniform < 1 - rate, x / (1 - rate), jnp.zeros((), x.dtype))


def _random_bits(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """`jax.random.bits(key, shape)`, without the loop that it is on CPUs.

    There JAX runs Threefry's rounds as a loop over whole arrays, which costs more than the
    feed-forward layer that the mask is for. Written out, the rounds fuse with what uses the bits.

    Follows Threefry-2x32 with 20 rounds (Salmon et al. 2011, "Parallel random numbers: as easy as
    1, 2, 3"), an element's row-major index as its counter and the halves combined by xor, as in
    `jax.random`.
    """
    if str(jax.random.key_impl(key)) != "threefry2x32" or math.prod(shape) >= 2**32:
        return jax.random.bits(key, shape)
    seed = jax.random.key_data(key)
    schedule = (seed[0], seed[1], seed[0] ^ seed[1] ^ jnp.uint32(_PARITY))
    strides = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
    index = sum(
        (
            jax.lax.broadcasted_iota(jnp.uint32, shape, axis) * jnp.uint32(stride)
            for axis, stride in enumerate(strides)
        ),
        start=jnp.zeros(shape, jnp.uint32),
    )
    high, low = schedule[0], index + schedule[1]
    for block in range(_ROUNDS):
        for distance in _ROTATIONS[block % 2]:
            high = high + low
            low = high ^ (low << distance | low >> (32 - distance))
        high = high + schedule[(block + 1) % 3]
        low = low + schedule[(block + 2) % 3] + jnp.uint32(block + 1)
    return high ^ low
