"""Random bits whose computation XLA fuses with their consumer on every backend."""

import math

import jax
import jax.numpy as jnp

_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
_ROUNDS = 5
_PARITY = 0x1BD11BDA


def random_bits(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Returns the same bits as `jax.random.bits(key, shape)`, with Threefry's rounds unrolled.

    On CPUs JAX runs Threefry's rounds as a loop over whole arrays, which costs more than the
    feed-forward layer that the dropout mask is for.

    This is Threefry-2x32 with 20 rounds (Salmon et al. 2011, "Parallel random numbers: as easy as
    1, 2, 3"). As in `jax.random`, an element's counter is its row-major index, and the two halves
    are combined by xor.

    Args:
      key: a PRNG key. Generators other than Threefry, and shapes of 2^32 elements or more, fall
        back to `jax.random.bits`.
      shape: the shape of the result.

    Returns:
      uint32[*shape].
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
