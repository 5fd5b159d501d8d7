"""What the functions of a task take and return, and the forms that several tasks share.

Everything is for a single row, of static width and traced length; `jax.vmap` makes batches of mixed
lengths. Axes: W tokens of a question, A tokens of an answer, both padded.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike


class Answer(NamedTuple):
    """The answer to a question.

    Attributes:
      tokens: int32[A]; what follows the first `length` entries has no meaning.
      length: Number of answer tokens, an int32 scalar.
    """

    tokens: jax.Array
    length: jax.Array


Draw = Callable[[jax.Array, jax.Array, int], jax.Array]
"""(key, length, W) -> question int32[W]; what follows the first `length` tokens has no meaning."""

Solve = Callable[[jax.Array, jax.Array], Answer]
"""(question int32[W], length) -> answer; it ignores what follows the first `length` tokens."""


def uniform_tokens(size: int) -> Draw:
    """Returns the drawing of independent tokens, each uniform in [0, size)."""

    def draw(key: jax.Array, length: jax.Array, width: int) -> jax.Array:
        del length
        return jax.random.randint(key, (width,), 0, size)

    return draw


def inside(tokens_W: jax.Array, length: ArrayLike) -> jax.Array:
    """Returns which entries are among the first `length`, bool[W]."""
    return jnp.arange(tokens_W.size) < length


def single(token: jax.Array) -> Answer:
    """Returns an answer of one token."""
    return Answer(token.astype(jnp.int32)[None], jnp.int32(1))


def ended(tokens_A: jax.Array, length: jax.Array, end: int) -> Answer:
    """Returns the first `length` tokens followed by an end token."""
    tokens_A = jnp.where(jnp.arange(tokens_A.size) == length, end, tokens_A)
    return Answer(tokens_A.astype(jnp.int32), jnp.asarray(length + 1, jnp.int32))


def reversed_prefix(tokens_W: jax.Array, length: ArrayLike) -> jax.Array:
    """Returns the first `length` entries in reverse order, the rest arbitrary; int32[W]."""
    return tokens_W[jnp.maximum(length - 1 - jnp.arange(tokens_W.size), 0)]
