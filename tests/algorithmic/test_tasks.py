"""The 15 tasks, against rows worked by hand and plain Python."""

import functools
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rrope_jax.algorithmic import LEVELS, TASKS, Answer, Row, generate, solve
from tests.algorithmic.oracles import ANSWERS, is_expression

WIDTH = 21  # odd and not a multiple of four: nothing fits by chance

# Question and answer, by hand.
GOLDEN = {
    "even_pairs": [
        ("0 0 1 1 1 0", "even"),  # one 01, one 10
        ("0 1 0 1 0 0 1", "odd"),  # three 01, two 10
        ("1", "even"),  # no pair
    ],
    "modular_arithmetic": [
        ("1 + 2 * 3", "2"),  # 7
        ("1 - 1 - 1", "4"),  # -1
        ("3 - 4 * 4 * 2 + 1", "2"),  # 3 - 32 + 1 = -28 = -30 + 2
        ("0 * 1 + 4 * 3 - 2", "0"),  # 10
    ],
    "parity_check": [
        ("1 0 1 0 1 0 0", "odd"),  # three
        ("0 1 1 1 1", "even"),  # four
    ],
    "cycle_navigation": [
        ("forward back stay back back", "3"),  # 1 - 3 = -2
        ("forward forward forward back", "2"),
        ("forward " * 6, "1"),  # once around
    ],
    "stack_manipulation": [
        # 0 1 1 0 1, then two off the top leave 0 1 1; read from the top
        ("0 1 1 0 push_1 pop pop", "1 1 0 end"),
        ("1 1 0 pop pop pop", "end"),  # empty
        ("1 pop pop push_0 push_1", "1 0 end"),  # the second pop does nothing
    ],
    "reverse_string": [("0 1 1 0 1 0", "0 1 0 1 1 0"), ("1 0 0", "0 0 1")],
    "modular_arithmetic_brackets": [
        ("( ( 1 - 3 ) * - 4 )", "3"),  # -2 times -4 is 8
        ("( ( 2 * 3 ) - ( 4 + - 1 ) )", "3"),  # 6 - 3
        ("( 4 - ( 3 * ( 2 - - 2 ) ) )", "2"),  # 4 - 12 = -8 = -10 + 2
        ("( - 2 )", "3"),
        ("- 3", "2"),
    ],
    "solve_equation": [
        ("( ( x - 3 ) + 1 ) = 2", "4"),  # x - 2 = 2
        ("( 2 - ( x + 4 ) ) = 1", "2"),  # -x - 2 = 1, so x = -3
        ("( 1 + ( 3 - - x ) ) = 0", "1"),  # x + 4 = 0
        ("( - x ) = 4", "1"),
        ("x = 3", "3"),
    ],
    "duplicate_string": [("1 0 1", "1 0 1 1 0 1"), ("1 1 0 0", "1 1 0 0 1 1 0 0")],
    "missing_duplicate_string": [
        ("0 1 1 0 0 hidden 1 0", "1"),  # 0 1 1 0 twice
        ("1 0 1 1 hidden 1 filler", "0"),  # 1 0 1 twice
        ("0 hidden 1 0 1 1", "1"),  # hidden in the first half
    ],
    "odds_first": [
        ("0 0 1 1 0 1 0 1", "0 1 1 1 0 1 0 0"),  # places 1 3 5 7, then 0 2 4 6
        ("1 0 0 1 1", "0 1 1 0 1"),  # places 1 3, then 0 2 4
    ],
    "binary_addition": [
        ("0 0 1 + 0 1 1 0 1", "0 1 0 1 1 end"),  # 4 + 22 = 26 = 2 + 8 + 16
        ("1 0 0 1 + 0 0 0 0 0 1", "1 0 0 1 0 1 end"),  # 9 + 32 = 41 = 1 + 8 + 32
        ("1 1 1 0 + 1", "0 0 0 1 end"),  # 7 + 1: the carry runs through
    ],
    "binary_multiplication": [
        ("0 0 1 * 0 1 1 0 1", "0 0 0 1 1 0 1 end"),  # 4 * 22 = 88 = 8 + 16 + 64
        ("1 0 0 1 * 0 0 0 0 0 1", "0 0 0 0 0 1 0 0 1 end"),  # 9 * 32 = 288 = 32 + 256
        ("1 1 * 1 1", "1 0 0 1 end"),  # 9
    ],
    "compute_sqrt": [
        ("1 0 0 1 0 1", "1 1 0"),  # 37: 36 < 37 < 49
        ("1 1 1", "1 0"),  # 7: 4 < 7 < 9
        ("0 0 0 1 0 0 0", "0 0 1 0"),  # 8, in half of 7 digits
    ],
    "bucket_sort": [("1 0 2 0 4 1 1 2", "0 0 1 1 1 2 2 4"), ("3 3 0", "0 3 3")],
}


@functools.cache
def _solver(task: str) -> Callable[..., Answer]:
    return jax.jit(functools.partial(solve, task))


@functools.cache
def _generator(task: str, width: int = WIDTH) -> Callable[..., Row]:
    return jax.jit(jax.vmap(functools.partial(generate, task, width=width)))


def _every_length(task: str, seed: int, lengths: Sequence[int] = ()) -> list[Row]:
    """A row of every length up to `WIDTH`, or of the given lengths, as NumPy arrays."""
    length_B = np.array(lengths or range(TASKS[task].shortest, WIDTH + 1))
    key_B = jax.random.split(jax.random.key(seed), length_B.size)
    rows = jax.device_get(_generator(task, max(WIDTH, *length_B.tolist()))(key_B, length_B))
    return [Row(*(leaf[i] for leaf in rows)) for i in range(length_B.size)]


def _words(task: str, row: Row) -> tuple[list[str], list[str]]:
    question = [TASKS[task].question[t] for t in row.question[: row.question_length]]
    return question, [TASKS[task].answer[t] for t in row.answer[: row.answer_length]]


def _padded(task: str, question: str, filler: int = 0) -> tuple[Any, int]:
    words = question.split()
    tokens = [TASKS[task].question.index(word) for word in words]
    return jnp.array(tokens + [filler] * (WIDTH - len(tokens))), len(words)


def test_every_task_has_rows_by_hand_and_an_oracle() -> None:
    assert set(TASKS) == set(GOLDEN) == set(ANSWERS)
    assert {task.level for task in TASKS.values()} == set(LEVELS)


@pytest.mark.smoke
@pytest.mark.parametrize("task", TASKS)
def test_answers_by_hand_whatever_follows_the_question_and_compiled_once(task: str) -> None:
    solver = _solver(task)
    for question, expected in GOLDEN[task]:
        for filler in (0, TASKS[task].size - 1):
            tokens_A, length = solver(*_padded(task, question, filler))
            answer = [TASKS[task].answer[token] for token in tokens_A[:length].tolist()]
            assert answer == expected.split(), question
            assert not tokens_A[length:].any()
            assert tokens_A.size == TASKS[task].answer_length(WIDTH)
        assert ANSWERS[task](question.split()) == expected.split()
    assert solver._cache_size() == 1  # type: ignore[attr-defined]


@pytest.mark.parametrize("task", TASKS)
@settings(max_examples=6)
@given(seed=st.integers(0, 2**31))
def test_rows_of_all_lengths_are_those_of_plain_python(task: str, seed: int) -> None:
    what = TASKS[task]
    for asked, row in enumerate(_every_length(task, seed), start=what.shortest):
        question, answer = _words(task, row)
        assert len(question) == what.nearest_length(asked)
        assert 0 <= asked - len(question) < what.step
        assert answer == ANSWERS[task](question)
        assert len(answer) <= what.answer_length(len(question))
        assert not row.question[len(question) :].any()
        assert not row.answer[len(answer) :].any()
        _check_form(task, question)


def _check_form(task: str, question: list[str]) -> None:
    """What the reference's questions have beyond an answer."""
    if task == "modular_arithmetic_brackets":
        assert is_expression(question, "+-*")
    if task == "solve_equation":
        assert is_expression(question[:-2], "+-")
        assert question[-2] == "="
        assert question.count("x") == 1
    if task == "modular_arithmetic":
        assert set(question[::2]) <= set("01234")
        assert set(question[1::2]) <= set("+-*")
    if task in ("binary_addition", "binary_multiplication"):
        at = question.index({"binary_addition": "+", "binary_multiplication": "*"}[task])
        assert "1" in question[:at]
        assert "1" in question[at + 1 :]
    if task == "compute_sqrt":
        assert "1" in question
    if task == "stack_manipulation":
        is_action = [word not in "01" for word in question]
        assert is_action == sorted(is_action)
        assert not is_action[0]
        assert is_action[-1] or len(question) == 1


@pytest.mark.parametrize("task", TASKS)
def test_a_batch_of_mixed_lengths_has_the_answers_of_single_calls(task: str) -> None:
    for row in _every_length(task, 3)[::4]:
        tokens_A, length = _solver(task)(row.question, row.question_length)
        assert (tokens_A.tolist(), int(length)) == (row.answer.tolist(), row.answer_length)


@pytest.mark.parametrize("task", ["stack_manipulation", "solve_equation", "binary_addition"])
def test_a_batch_draws_the_rows_of_single_calls(task: str) -> None:
    key_B = jax.random.split(jax.random.key(5), WIDTH + 1 - TASKS[task].shortest)
    batch = _every_length(task, 5)
    single = jax.jit(functools.partial(generate, task, width=WIDTH))
    for at in (0, 7, -1):
        row = single(key_B[at], batch[at].question_length)
        assert jax.tree.map(np.ndarray.tolist, jax.tree.map(np.asarray, row)) == jax.tree.map(
            np.ndarray.tolist, jax.tree.map(np.asarray, batch[at])
        )


# The others have nothing that grows with the width but its arrays.
@pytest.mark.heavy
@pytest.mark.parametrize(
    "task",
    [
        "modular_arithmetic",
        "stack_manipulation",
        "solve_equation",
        "binary_addition",
        "binary_multiplication",
        "compute_sqrt",
    ],
)
def test_rows_of_500_tokens_are_those_of_plain_python(task: str) -> None:
    for row in _every_length(task, 1, [500, 499, 41]):
        question, answer = _words(task, row)
        assert answer == ANSWERS[task](question)


def _shares(values: Sequence[Any]) -> dict[Any, float]:
    return {value: count / len(values) for value, count in sorted(Counter(values).items())}


# 3,000 rows: the standard deviation of a share is below 0.01.
def _many(task: str, length: int) -> list[list[str]]:
    return [_words(task, row)[0] for row in _every_length(task, 11, [length] * 3_000)]


@pytest.mark.heavy
def test_left_sides_of_expressions_have_all_lengths_equally() -> None:
    def left_size(words: list[str]) -> int:
        return next(
            at - 1
            for at in range(2, len(words))
            if words[at] in "+-*"
            and is_expression(words[1:at], "+-*")
            and is_expression(words[at + 1 : -1], "+-*")
        )

    shares = _shares([left_size(words) for words in _many("modular_arithmetic_brackets", 9)])
    assert list(shares) == [1, 2, 3, 4, 5]
    np.testing.assert_allclose(list(shares.values()), 1 / 5, atol=0.04)


@pytest.mark.heavy
def test_numbers_and_their_sizes_are_uniform_and_never_0() -> None:
    questions = _many("binary_addition", 5)
    sizes = _shares([words.index("+") for words in questions])
    assert list(sizes) == [1, 2, 3]
    np.testing.assert_allclose(list(sizes.values()), 1 / 3, atol=0.04)
    shares = _shares(["".join(words[:2]) for words in questions if words.index("+") == 2])
    assert list(shares) == ["01", "10", "11"]
    np.testing.assert_allclose(list(shares.values()), 1 / 3, atol=0.07)  # a third of the rows


@pytest.mark.heavy
def test_the_hidden_number_is_the_first_at_or_after_a_uniform_place() -> None:
    # In (1-2)=4, places 4, 0 and 1 lead to the number at 1, and places 2 and 3 to that at 3.
    shares = _shares([words.index("x") for words in _many("solve_equation", 7)])
    assert list(shares) == [1, 3]
    np.testing.assert_allclose(list(shares.values()), [3 / 5, 2 / 5], atol=0.04)


@pytest.mark.heavy
def test_a_stack_has_1_to_all_but_one_tokens() -> None:
    def stack_size(words: list[str]) -> int:
        return sum(word in "01" for word in words)

    shares = _shares([stack_size(words) for words in _many("stack_manipulation", 5)])
    assert list(shares) == [1, 2, 3, 4]
    np.testing.assert_allclose(list(shares.values()), 1 / 4, atol=0.04)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: generate("sorting", jax.random.key(0), 3, width=4), "task='sorting' is unknown"),
        (lambda: solve("sorting", [0, 1]), "task='sorting' is unknown"),
        (
            lambda: generate("solve_equation", jax.random.key(0), 2, width=4),
            "length=2 must be from 3, the shortest solve_equation, to the width",
        ),
        (lambda: generate("even_pairs", jax.random.key(0), 5, width=4), r"to the width \(4\)"),
        (lambda: generate("even_pairs", jax.random.key(0), 1, width=0), "width=0 must be at"),
        (lambda: solve("missing_duplicate_string", [0]), "width=1 must be at least 2"),
    ],
)
def test_unknown_tasks_and_impossible_lengths_are_refused(
    call: Callable[[], Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        call()
