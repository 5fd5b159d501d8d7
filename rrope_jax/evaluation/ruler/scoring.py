"""Scores of answers: is the expected string in them, ignoring case?"""

import re
from collections.abc import Callable, Mapping, Sequence

from rrope_jax.evaluation.ruler.sample import Scoring

_CONTROL = re.compile(r"[\x00-\x1f]")


def cleaned(answer: str) -> str:
    """The answer without space around it, and with newlines for all control characters."""
    return _CONTROL.sub("\n", answer.strip()).strip()


def matches_all(answer: str, expected: Sequence[str]) -> float:
    """The share of the expected strings that are in an answer, ignoring case.

    `matches_all("It is 12 and x.", ["12", "X", "7"])` is 2 / 3.
    """
    return sum(_contains(answer, each) for each in expected) / len(expected)


def matches_part(answer: str, expected: Sequence[str]) -> float:
    """1.0 if any of the expected strings is in an answer, ignoring case, otherwise 0.0."""
    return float(any(_contains(answer, each) for each in expected))


SCORES: Mapping[Scoring, Callable[[str, Sequence[str]], float]] = {
    "all": matches_all,
    "part": matches_part,
}
"""How a task is scored -> the score of one answer, from 0 to 1."""


def score(scoring: Scoring, answers: Sequence[str], expected: Sequence[Sequence[str]]) -> float:
    """The score of a task as RULER prints it: percent, rounded to two digits.

    Args:
      scoring: how single answers are scored.
      answers: the model's answers, at least one.
      expected: the expected strings of each.
    """
    scores = [
        SCORES[scoring](cleaned(answer), of_answer)
        for answer, of_answer in zip(answers, expected, strict=True)
    ]
    return round(sum(scores) / len(scores) * 100, 2)


def _contains(answer: str, expected: str) -> bool:
    return expected.lower() in answer.lower()
