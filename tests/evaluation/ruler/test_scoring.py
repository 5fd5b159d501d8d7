"""Scores worked by hand."""

import pytest

from rrope_jax.evaluation.ruler.scoring import cleaned, score


@pytest.mark.parametrize(
    ("scoring", "answer", "expected", "percent"),
    [
        ("all", "It is 12 and x.", ["12", "X", "7"], 66.67),
        ("part", "It is 12 and x.", ["12", "X", "7"], 100.0),
        ("part", "Nothing.", ["12", "7"], 0.0),
        ("all", "112", ["12"], 100.0),  # a string within another counts
        ("all", "", ["12"], 0.0),
    ],
)
def test_one_answer(scoring: str, answer: str, expected: list[str], percent: float) -> None:
    assert score(scoring, [answer], [expected]) == percent  # type: ignore[arg-type]


def test_answers_weigh_the_same_whatever_is_expected() -> None:
    assert score("all", ["a", "b c d"], [["a"], ["b", "x", "y", "z"]]) == 62.5


def test_control_characters_become_lines() -> None:
    assert cleaned(" \x07 a\x00b\t ") == "a\nb"
