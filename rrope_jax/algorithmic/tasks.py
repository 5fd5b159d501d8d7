"""The 15 algorithmic tasks of arXiv 2207.02098 and arXiv 2305.16843, one row of a table each.

A row of a task is a question of some length and its answer. Both are padded to a static width, and
the length is traced, so under `jax.vmap` one compiled program draws rows of mixed lengths:

    keys = jax.random.split(jax.random.key(0), 4)
    lengths = jnp.array([3, 8, 40, 17])
    rows = jax.vmap(lambda key, n: generate("bucket_sort", key, n, width=40))(keys, lengths)
    rows.question[1, : rows.question_length[1]]  # 8 tokens
    rows.answer[1, : rows.answer_length[1]]      # the same, sorted
"""

import dataclasses
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from rrope_jax.algorithmic import context_free, context_sensitive, regular
from rrope_jax.algorithmic.answers import Answer, Draw, Solve, inside, uniform_tokens

Length = TypeVar("Length", int, jax.Array)

_BITS = ("0", "1")
_NUMBERS = tuple(map(str, range(regular.MODULUS)))


@dataclasses.dataclass(frozen=True, kw_only=True)
class AlgorithmicTask:
    """A row of `TASKS`.

    Attributes:
      level: Class of the task in the Chomsky hierarchy, one of `LEVELS`.
      question: What the tokens of a question stand for; token i is entry i.
      answer: What the tokens of an answer stand for.
      draw: Draws a question.
      solve: Answers a question.
      answer_length: Largest number of answer tokens (an end token counts) for a question length.
      shortest: Smallest question length.
      step: Question lengths are `shortest` plus multiples of this.
    """

    level: str
    question: tuple[str, ...]
    answer: tuple[str, ...]
    draw: Draw
    solve: Solve
    answer_length: Callable[[int], int]
    shortest: int = 1
    step: int = 1

    @property
    def size(self) -> int:
        """Number of different tokens in questions and answers together."""
        return max(len(self.question), len(self.answer))

    def nearest_length(self, length: Length) -> Length:
        """Rounds a length, at least `shortest`, down to one that a question can have."""
        return self.shortest + (length - self.shortest) // self.step * self.step


def _one(length: int) -> int:
    del length
    return 1


def _same(length: int) -> int:
    return length


def _one_more(length: int) -> int:
    return length + 1


def _twice(length: int) -> int:
    return 2 * length


def _half(length: int) -> int:
    return (length + 1) // 2


LEVELS = ("regular", "context_free", "context_sensitive")

TASKS: Mapping[str, AlgorithmicTask] = MappingProxyType(
    {
        "even_pairs": AlgorithmicTask(
            level="regular",
            question=_BITS,
            answer=("even", "odd"),
            draw=uniform_tokens(2),
            solve=regular.even_pairs,
            answer_length=_one,
        ),
        "modular_arithmetic": AlgorithmicTask(
            level="regular",
            question=(*_NUMBERS, "+", "-", "*"),
            answer=_NUMBERS,
            draw=regular.draw_modular_arithmetic,
            solve=regular.modular_arithmetic,
            answer_length=_one,
            step=2,
        ),
        "parity_check": AlgorithmicTask(
            level="regular",
            question=_BITS,
            answer=("even", "odd"),
            draw=uniform_tokens(2),
            solve=regular.parity_check,
            answer_length=_one,
        ),
        "cycle_navigation": AlgorithmicTask(
            level="regular",
            question=("back", "stay", "forward"),
            answer=tuple(map(str, range(regular.CYCLE))),
            draw=uniform_tokens(3),
            solve=regular.cycle_navigation,
            answer_length=_one,
        ),
        "stack_manipulation": AlgorithmicTask(
            level="context_free",
            question=(*_BITS, "pop", "push_0", "push_1"),
            answer=(*_BITS, "end"),
            draw=context_free.draw_stack_manipulation,
            solve=context_free.stack_manipulation,
            answer_length=_one_more,
        ),
        "reverse_string": AlgorithmicTask(
            level="context_free",
            question=_BITS,
            answer=_BITS,
            draw=uniform_tokens(2),
            solve=context_free.reverse_string,
            answer_length=_same,
        ),
        "modular_arithmetic_brackets": AlgorithmicTask(
            level="context_free",
            question=(*_NUMBERS, "+", "-", "*", "(", ")"),
            answer=_NUMBERS,
            draw=context_free.draw_modular_arithmetic_brackets,
            solve=context_free.modular_arithmetic_brackets,
            answer_length=_one,
        ),
        "solve_equation": AlgorithmicTask(
            level="context_free",
            question=(*_NUMBERS, "+", "-", "(", ")", "x", "="),
            answer=_NUMBERS,
            draw=context_free.draw_solve_equation,
            solve=context_free.solve_equation,
            answer_length=_one,
            shortest=3,
        ),
        "duplicate_string": AlgorithmicTask(
            level="context_sensitive",
            question=_BITS,
            answer=_BITS,
            draw=uniform_tokens(2),
            solve=context_sensitive.duplicate_string,
            answer_length=_twice,
        ),
        "missing_duplicate_string": AlgorithmicTask(
            level="context_sensitive",
            question=(*_BITS, "hidden", "filler"),
            answer=_BITS,
            draw=context_sensitive.draw_missing_duplicate_string,
            solve=context_sensitive.missing_duplicate_string,
            answer_length=_one,
            shortest=2,
        ),
        "odds_first": AlgorithmicTask(
            level="context_sensitive",
            question=_BITS,
            answer=_BITS,
            draw=uniform_tokens(2),
            solve=context_sensitive.odds_first,
            answer_length=_same,
        ),
        "binary_addition": AlgorithmicTask(
            level="context_sensitive",
            question=(*_BITS, "+"),
            answer=(*_BITS, "end"),
            draw=context_sensitive.draw_two_numbers,
            solve=context_sensitive.binary_addition,
            answer_length=_same,
            shortest=3,
        ),
        "binary_multiplication": AlgorithmicTask(
            level="context_sensitive",
            question=(*_BITS, "*"),
            answer=(*_BITS, "end"),
            draw=context_sensitive.draw_two_numbers,
            solve=context_sensitive.binary_multiplication,
            answer_length=_same,
            shortest=3,
        ),
        "compute_sqrt": AlgorithmicTask(
            level="context_sensitive",
            question=_BITS,
            answer=_BITS,
            draw=context_sensitive.draw_positive_number,
            solve=context_sensitive.compute_sqrt,
            answer_length=_half,
        ),
        "bucket_sort": AlgorithmicTask(
            level="context_sensitive",
            question=tuple(map(str, range(context_sensitive.SORT_SIZE))),
            answer=tuple(map(str, range(context_sensitive.SORT_SIZE))),
            draw=uniform_tokens(context_sensitive.SORT_SIZE),
            solve=context_sensitive.bucket_sort,
            answer_length=_same,
        ),
    }
)
"""Task -> what it is. Names and token ids are those of the code of arXiv 2305.16843."""


class Row(NamedTuple):
    """A question and its answer; zeros follow both.

    Attributes:
      question: int32[W].
      question_length: Number of question tokens, an int32 scalar.
      answer: int32[A].
      answer_length: Number of answer tokens, an int32 scalar.
    """

    question: jax.Array
    question_length: jax.Array
    answer: jax.Array
    answer_length: jax.Array


def find_task(name: str) -> AlgorithmicTask:
    """Returns a row of `TASKS`.

    Raises:
      ValueError: There is no such task.
    """
    if name not in TASKS:
        raise ValueError(f"task={name!r} is unknown; choose one of {', '.join(TASKS)}")
    return TASKS[name]


def generate(name: str, key: jax.Array, length: ArrayLike, *, width: int) -> Row:
    """Draws a row. Pure: `jax.jit` (static name and width) and `jax.vmap` apply.

    Args:
      name: A key of `TASKS`.
      key: A random key. Rows of the same key may differ between widths.
      length: Question length, from the task's `shortest` to the width, rounded down to one that the
        task can have (`AlgorithmicTask.nearest_length`). It may be traced, but then nothing checks
        its range.
      width: W, to which questions are padded; static.

    Returns:
      The row, with A = `answer_length(W)` of the task.

    Raises:
      ValueError: The task is unknown, or a length that is not traced is out of range.
    """
    task = find_task(name)
    _check_length(name, length, width)
    length = task.nearest_length(jnp.asarray(length, jnp.int32))
    question_W = _padded(task.draw(key, length, width), length)
    return Row(question_W, length, *_solve(task, question_W, length))


def solve(name: str, question_W: ArrayLike, length: ArrayLike | None = None) -> Answer:
    """Answers a question. Pure, as `generate`.

    Args:
      name: A key of `TASKS`.
      question_W: int[W], tokens of the question, padded or not.
      length: Number of question tokens; None for all W. It may be traced, but then nothing checks
        its range.

    Returns:
      The answer, padded by zeros to A = `answer_length(W)` of the task. It has no meaning for a
      question that is none of the task.

    Raises:
      ValueError: The task is unknown, or a length that is not traced is out of range.
    """
    task = find_task(name)
    question_W = jnp.asarray(question_W, jnp.int32)
    length = question_W.size if length is None else length
    _check_length(name, length, question_W.size)
    length = jnp.asarray(length, jnp.int32)
    return _solve(task, _padded(question_W, length), length)


def _solve(task: AlgorithmicTask, question_W: jax.Array, length: jax.Array) -> Answer:
    tokens, answer_length = task.solve(question_W, length)
    size = task.answer_length(question_W.size)
    tokens_A = jnp.pad(tokens, (0, max(size - tokens.size, 0)))[:size]
    return Answer(_padded(tokens_A, answer_length), answer_length)


def _padded(tokens: jax.Array, length: jax.Array) -> jax.Array:
    return jnp.where(inside(tokens, length), tokens, 0)


def _check_length(name: str, length: ArrayLike, width: int) -> None:
    shortest = TASKS[name].shortest
    if width < shortest:
        raise ValueError(f"width={width} must be at least {shortest}, the shortest {name}")
    if isinstance(length, jax.core.Tracer):
        return
    if np.min(length) < shortest or np.max(length) > width:
        raise ValueError(
            f"length={length} must be from {shortest}, the shortest {name}, to the width ({width})"
        )
