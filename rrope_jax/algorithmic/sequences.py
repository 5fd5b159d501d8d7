"""Rows of a task as the token sequences that a decoder reads."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from rrope_jax.algorithmic.tasks import Row


class TokenSequence(NamedTuple):
    """A question, a separator and the answer, without the start token.

    Attributes:
      tokens: int32[T], padded by zeros; T = W + 1 + A.
      is_answer: bool[T], which tokens are the answer's.
      length: Number of tokens, an int32 scalar.
    """

    tokens: jax.Array
    is_answer: jax.Array
    length: jax.Array


def sequence(row: Row, separator: int) -> TokenSequence:
    """Joins a question and its answer, with nothing between them but the separator's token."""
    at_T = jnp.arange(row.question.size + 1 + row.answer.size)
    answer_at_T = at_T - row.question_length - 1
    is_answer_T = (answer_at_T >= 0) & (answer_at_T < row.answer_length)
    # Where an index is out of range, another entry is chosen.
    question_T = row.question[jnp.minimum(at_T, row.question.size - 1)]
    answer_T = row.answer[jnp.clip(answer_at_T, 0, row.answer.size - 1)]
    tokens_T = jnp.where(
        at_T < row.question_length,
        question_T,
        jnp.where(is_answer_T, answer_T, jnp.where(answer_at_T == -1, separator, 0)),
    )
    return TokenSequence(tokens_T, is_answer_T, row.question_length + 1 + row.answer_length)
