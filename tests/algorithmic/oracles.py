"""The 15 tasks in plain Python, for token lists of any length.

Written from the definitions in the docstrings and code of google-deepmind/
randomized_positional_encodings, not from this package. Each function takes a question and returns
its answer; both are lists of the words that `TASKS` has for the tokens.
"""

import itertools
import math
from collections.abc import Callable

Words = list[str]
_BITS = ("0", "1")


def _even_pairs(question: Words) -> Words:
    pairs = list(itertools.pairwise(question))
    return [("even", "odd")[(pairs.count(("0", "1")) + pairs.count(("1", "0"))) % 2]]


def _parity_check(question: Words) -> Words:
    return [("even", "odd")[question.count("1") % 2]]


def _cycle_navigation(question: Words) -> Words:
    return [str((question.count("forward") - question.count("back")) % 5)]


def _value(question: Words) -> Words:
    return [str(eval(" ".join(question)) % 5)]


def _stack_manipulation(question: Words) -> Words:
    stack: Words = []
    for word in question:
        if word == "pop":
            stack = stack[:-1]
        else:
            stack.append(word[-1])
    return [*reversed(stack), "end"]


def _reverse_string(question: Words) -> Words:
    return question[::-1]


def _solve_equation(question: Words) -> Words:
    left, right = " ".join(question[:-2]), int(question[-1])
    (solution,) = [x for x in range(5) if (eval(left, {"x": x}) - right) % 5 == 0]
    return [str(solution)]


def _duplicate_string(question: Words) -> Words:
    return question + question


def _missing_duplicate_string(question: Words) -> Words:
    half = len(question) // 2
    first, second = question[:half], question[half : 2 * half]
    (pair,) = [pair for pair in zip(first, second, strict=True) if "hidden" in pair]
    assert [a for a, b in zip(first, second, strict=True) if "hidden" not in (a, b)] == [
        b for a, b in zip(first, second, strict=True) if "hidden" not in (a, b)
    ]
    return [word for word in pair if word != "hidden"]


def _odds_first(question: Words) -> Words:
    return question[1::2] + question[::2]


def _little_endian(digits: Words) -> int:
    return int("".join(reversed(digits)), 2)


def _two_numbers(question: Words, operator: str) -> tuple[int, int]:
    at = question.index(operator)
    return _little_endian(question[:at]), _little_endian(question[at + 1 :])


def _digits(number: int) -> Words:
    return [*reversed(f"{number:b}"), "end"]


def _binary_addition(question: Words) -> Words:
    return _digits(sum(_two_numbers(question, "+")))


def _binary_multiplication(question: Words) -> Words:
    return _digits(math.prod(_two_numbers(question, "*")))


def _compute_sqrt(question: Words) -> Words:
    half = math.ceil(len(question) / 2)
    return list(f"{math.isqrt(int(''.join(question), 2)):b}".zfill(half))


def _bucket_sort(question: Words) -> Words:
    return sorted(question)


ANSWERS: dict[str, Callable[[Words], Words]] = {
    "even_pairs": _even_pairs,
    "modular_arithmetic": _value,
    "parity_check": _parity_check,
    "cycle_navigation": _cycle_navigation,
    "stack_manipulation": _stack_manipulation,
    "reverse_string": _reverse_string,
    "modular_arithmetic_brackets": _value,
    "solve_equation": _solve_equation,
    "duplicate_string": _duplicate_string,
    "missing_duplicate_string": _missing_duplicate_string,
    "odds_first": _odds_first,
    "binary_addition": _binary_addition,
    "binary_multiplication": _binary_multiplication,
    "compute_sqrt": _compute_sqrt,
    "bucket_sort": _bucket_sort,
}


def is_expression(words: Words, operators: str) -> bool:
    """Whether a string is an expression of the grammar in Ruoss et al.'s code; x is a number."""

    def number(word: str) -> bool:
        return word in {*"01234", "x"}

    size = len(words)
    if size == 1:
        return number(words[0])
    if size == 2:
        return words[0] == "-" and number(words[1])
    if (words[0], words[-1]) != ("(", ")"):
        return False
    if size <= 4:
        return is_expression(words[1:-1], operators)
    level = 0
    for at in range(1, size - 1):
        level += {"(": 1, ")": -1}.get(words[at], 0)
        if level == 0 and words[at] in operators and at > 1 and words[at - 1] not in "+-*":
            left, right = words[1:at], words[at + 1 : -1]
            return is_expression(left, operators) and is_expression(right, operators)
    return False
