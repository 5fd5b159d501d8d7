"""Arithmetic of binary numbers of any length under jit.

Numbers are arrays of their digits, int32 0 or 1, *little-endian*: entry i counts 2^i.
"""

import jax
import jax.numpy as jnp

# A number of this many digits fits int32.
_INT32_DIGITS = 30


def draw_positive(key: jax.Array, digits: jax.Array, width: int) -> jax.Array:
    """Draws a number uniformly from 1 .. 2^digits - 1.

    Args:
      key: A random key.
      digits: From 1 to the width; traced.
      width: W, static.

    Returns:
      int32[W], zeros from `digits` on.
    """
    bits_key, instead_key = jax.random.split(key)
    at_W = jnp.arange(width)
    bits_W = jax.random.bernoulli(bits_key, shape=(width,)) & (at_W < digits)
    # Instead of 0, a number drawn from the others, so that all of them are equally likely. (With
    # more digits than fit int32, 0 is too rare to matter.)
    fitting = jnp.minimum(digits, _INT32_DIGITS)
    instead = jax.random.randint(instead_key, (), 1, jnp.int32(1) << fitting)
    instead_W = (instead >> jnp.minimum(at_W, _INT32_DIGITS)) & 1
    return jnp.where(jnp.any(bits_W), bits_W.astype(jnp.int32), instead_W)


def significant(digits_W: jax.Array) -> jax.Array:
    """Returns the number of digits without leading zeros, an int32; it is 1 for the number 0."""
    return jnp.maximum(jnp.max(jnp.where(digits_W == 1, jnp.arange(1, digits_W.size + 1), 1)), 1)


def add(a_W: jax.Array, b_W: jax.Array) -> jax.Array:
    """Returns a + b, int32[W + 1]."""
    carries_W = _carries(a_W & b_W, a_W ^ b_W)
    return jnp.append(a_W ^ b_W, 0) ^ jnp.concatenate([jnp.zeros(1, jnp.int32), carries_W])


def subtract(a_W: jax.Array, b_W: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns a - b modulo 2^W, and whether b is larger than a."""
    differ_W = a_W ^ b_W
    borrows_W = _carries((1 - a_W) & b_W, 1 - differ_W)
    before_W = jnp.concatenate([jnp.zeros(1, jnp.int32), borrows_W[:-1]])
    return differ_W ^ before_W, borrows_W[-1] == 1


def _carries(makes_W: jax.Array, passes_W: jax.Array) -> jax.Array:
    """Returns the carry out of each digit, which makes one or passes on the one before it."""

    def join(
        low: tuple[jax.Array, jax.Array], high: tuple[jax.Array, jax.Array]
    ) -> tuple[jax.Array, jax.Array]:
        return high[0] | (high[1] & low[0]), low[1] & high[1]

    carries_W: jax.Array = jax.lax.associative_scan(join, (makes_W, passes_W))[0]
    return carries_W


def multiply(a_W: jax.Array, b_W: jax.Array) -> jax.Array:
    """Returns a b modulo 2^W, int32[W]."""
    width = a_W.size
    reversed_2W = jnp.pad(b_W[::-1], (0, width))

    def digit(carry: jax.Array, at: jax.Array) -> tuple[jax.Array, jax.Array]:
        # Entry i of the slice is digit at - i of b.
        b_W = jax.lax.dynamic_slice_in_dim(reversed_2W, width - 1 - at, width)
        total = carry + jnp.sum(a_W * b_W)
        return total >> 1, total & 1

    product_W: jax.Array = jax.lax.scan(digit, jnp.int32(0), jnp.arange(width))[1]
    return product_W


def square_root(digits_W: jax.Array) -> jax.Array:
    """Returns the floor of the square root, int32[(W + 1) // 2].

    This is the method by hand: two digits of the number give one of the root.
    """
    pairs_H2 = jnp.pad(digits_W, (0, digits_W.size % 2)).reshape(-1, 2)
    size = pairs_H2.shape[0]

    def next_digit(
        state: tuple[jax.Array, jax.Array], pair_2: jax.Array
    ) -> tuple[tuple[jax.Array, jax.Array], None]:
        root_N, rest_N = state
        rest_N = jnp.concatenate([pair_2, rest_N[:-2]])
        trial_N = jnp.concatenate([jnp.array([1, 0]), root_N[:-2]])  # 4 root + 1
        difference_N, too_large = subtract(rest_N, trial_N)
        digit = 1 - too_large.astype(jnp.int32)
        root_N = jnp.concatenate([digit[None], root_N[:-1]])
        return (root_N, jnp.where(too_large, rest_N, difference_N)), None

    zero_N = jnp.zeros(size + 3, jnp.int32)  # the rest is at most 2 root, and gets two more digits
    (root_N, _), _ = jax.lax.scan(next_digit, (zero_N, zero_N), pairs_H2, reverse=True)
    return root_N[:size]
