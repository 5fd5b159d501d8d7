"""JSONL files of questions for the closed-ended tasks."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rrope_jax.evaluation.closed_ended import metric_of, read_lines
from tests.fuzz.judging import Target

_FILE = "task.jsonl"


def _seeds() -> Sequence[dict[str, Any]]:
    def line(instructions: list[str], outputs: list[str]) -> dict[str, Any]:
        return {"input": "A document.", "instructions": instructions, "outputs": outputs}

    tasks = [
        [line(["Which, A or B?"], ["A"]), line(["And here?", "C or D?"], ["B", "CD"])],
        [line(["How many?"], ["The answer is 12."])],
        [line(["What?"], ["that"]), line([], [])],
    ]
    return [{_FILE: lines} for lines in tasks]


def _run(folder: Path) -> None:
    metric_of(read_lines(str(folder / _FILE)))


TARGET = Target("questions", _seeds, _run)
