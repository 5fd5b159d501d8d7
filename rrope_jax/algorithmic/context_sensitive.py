"""The seven context-sensitive tasks: they need more than a stack, say a tape.

Definitions are those of "Neural Networks and the Chomsky Hierarchy" (arXiv 2207.02098, appendix
A.1) and of the code of arXiv 2305.16843; `tasks.TASKS` says what the tokens stand for.
"""

import jax
import jax.numpy as jnp

from rrope_jax.algorithmic import binary
from rrope_jax.algorithmic.answers import Answer, ended, inside, reversed_prefix, single

HIDDEN, FILLER = 2, 3
OPERATOR, NUMBER_END = 2, 2
SORT_SIZE = 5
"""Number of different tokens of `bucket_sort`."""


def duplicate_string(tokens_W: jax.Array, length: jax.Array) -> Answer:
    """Answers the string twice.

    Example: the answer to 0 1 1 is 0 1 1 0 1 1.
    """
    return Answer(tokens_W[jnp.arange(2 * tokens_W.size) % length], 2 * length)


def draw_missing_duplicate_string(key: jax.Array, length: jax.Array, width: int) -> jax.Array:
    """Draws half a string, twice, and hides one token; a filler makes up for an odd length."""
    bits_key, place_key = jax.random.split(key)
    half = length // 2
    at_W = jnp.arange(width)
    tokens_W = jax.random.randint(bits_key, (width,), 0, 2)[at_W % half]
    hidden = jax.random.randint(place_key, (), 0, 2 * half)
    return jnp.where(at_W == hidden, HIDDEN, jnp.where(at_W == 2 * half, FILLER, tokens_W))


def missing_duplicate_string(tokens_W: jax.Array, length: jax.Array) -> Answer:
    """Answers the hidden token of a string that is there twice.

    Example: 0 1 1 0 _ 1 is 0 1 1 twice, so the answer is 1.
    """
    half = length // 2
    hidden = jnp.argmax((tokens_W == HIDDEN) & inside(tokens_W, length))
    return single(tokens_W[jnp.where(hidden < half, hidden + half, hidden - half)])


def odds_first(tokens_W: jax.Array, length: jax.Array) -> Answer:
    """Answers the tokens at odd places, then those at even places, counted from 0.

    The code of arXiv 2305.16843 does the same; its docstring counts from 1.

    Example: the answer to 0 1 0 1 1 is 1 1 0 0 1.
    """
    at_W, odds = jnp.arange(tokens_W.size), length // 2
    return Answer(tokens_W[jnp.where(at_W < odds, 2 * at_W + 1, 2 * (at_W - odds))], length)


def draw_two_numbers(key: jax.Array, length: jax.Array, width: int) -> jax.Array:
    """Draws two positive numbers with an operator between them.

    The first has 1 to length - 2 digits, uniformly; both are uniform and may have leading zeros.
    """
    size_key, first_key, second_key = jax.random.split(key, 3)
    size = jax.random.randint(size_key, (), 1, length - 1)
    first_W = binary.draw_positive(first_key, size, width)
    second_W = binary.draw_positive(second_key, length - 1 - size, width)
    at_W = jnp.arange(width)
    return jnp.where(
        at_W < size, first_W, jnp.where(at_W == size, OPERATOR, second_W[at_W - size - 1])
    )


def _two_numbers(tokens_W: jax.Array, length: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns the numbers on both sides of the operator, int32[W] each."""
    at_W = jnp.arange(tokens_W.size)
    size = jnp.argmax((tokens_W == OPERATOR) & inside(tokens_W, length))
    second_W = tokens_W[jnp.minimum(at_W + size + 1, tokens_W.size - 1)]
    return (
        jnp.where(at_W < size, tokens_W, 0),
        jnp.where(at_W < length - 1 - size, second_W, 0),
    )


def binary_addition(tokens_W: jax.Array, length: jax.Array) -> Answer:
    """Answers the sum of two little-endian numbers without leading zeros, and an end token.

    Example: 1 1 + 1 0 0 is 3 + 1, so the answer is 0 0 1 end.
    """
    total_A = binary.add(*_two_numbers(tokens_W, length))
    return ended(total_A, binary.significant(total_A), NUMBER_END)


def binary_multiplication(tokens_W: jax.Array, length: jax.Array) -> Answer:
    """Answers the product of two little-endian numbers without leading zeros, and an end token.

    Example: 1 1 * 0 1 is 3 * 2, so the answer is 0 1 1 end.
    """
    product_W = binary.multiply(*_two_numbers(tokens_W, length))
    return ended(product_W, binary.significant(product_W), NUMBER_END)


def draw_positive_number(key: jax.Array, length: jax.Array, width: int) -> jax.Array:
    """Draws a positive number with leading zeros, big-endian."""
    return reversed_prefix(binary.draw_positive(key, length, width), length)


def compute_sqrt(tokens_W: jax.Array, length: jax.Array) -> Answer:
    """Answers the floor of the square root of a big-endian number, with half as many digits.

    An odd number of digits is rounded up; leading zeros stay.

    Example: 1 0 1 0 0 is 20, whose root is 4 and a rest, so the answer is 1 0 0.
    """
    digits_W = jnp.where(inside(tokens_W, length), reversed_prefix(tokens_W, length), 0)
    half = (length + 1) // 2
    return Answer(reversed_prefix(binary.square_root(digits_W), half), half)


def bucket_sort(tokens_W: jax.Array, length: jax.Array) -> Answer:
    """Answers the tokens in ascending order.

    Example: the answer to 4 0 2 0 is 0 0 2 4.
    """
    return Answer(jnp.sort(jnp.where(inside(tokens_W, length), tokens_W, SORT_SIZE)), length)
