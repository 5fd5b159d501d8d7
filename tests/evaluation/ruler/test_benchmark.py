"""RULER on a model: units, scores, means."""

import dataclasses
from typing import Any

import numpy as np
import pytest

from rrope_jax.data.tokenizers import Tokenizer, load_tokenizer
from rrope_jax.evaluation.ruler.benchmark import Ruler
from rrope_jax.evaluation.ruler.prompts import Prompts
from rrope_jax.evaluation.ruler.setting import RulerSetting
from rrope_jax.evaluation.units import run_units
from tests.closeness import assert_close
from tests.evaluation.tiny import Memory, byte_decoder, log_probabilities

SETTING = RulerSetting(
    tasks=("niah_single_1", "niah_multivalue"), contexts=(1200, 1400), samples=2, chunk=512
)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return load_tokenizer("bytes")


def ruler(setting: RulerSetting, tokenizer: Tokenizer) -> Ruler:
    return Ruler(setting, byte_decoder(), tokenizer, bos=False, stop_ids=(257,))


class Reciter:
    """In place of a `Generator`: it answers with the same text, or with a right one."""

    def __init__(self, tokenizer: Tokenizer, text: str | None):
        self._tokenizer, self._text = tokenizer, text

    def read(self, prompts: Any, *, capacity: int) -> None:
        assert max(map(len, prompts)) <= capacity

    def score_in_place(self, last: Any, cache: None, continuations: list[list[int]]) -> Any:
        (self._right,) = continuations
        return [(np.full(len(self._right), -0.5, np.float32), None)], cache

    def generate(
        self, last: Any, cache: None, *, max_tokens: int, stop_ids: Any, in_place: bool
    ) -> Any:
        assert stop_ids == (257,)
        right = self._right if self._text is None else self._tokenizer.encode(self._text)
        return [right[:max_tokens]]


def results(
    setting: RulerSetting, tokenizer: Tokenizer, text: str | None, monkeypatch: pytest.MonkeyPatch
) -> dict[str, Any]:
    task = ruler(setting, tokenizer)
    monkeypatch.setattr(task, "_generator", Reciter(tokenizer, text))
    memory = Memory()
    run_units(task.units, memory)
    return task.results(memory)


def test_right_answers_score_100(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    found = results(SETTING, tokenizer, None, monkeypatch)
    assert [(entry["task"], entry["context"]) for entry in found["ruler"]] == [
        (task, context) for context in SETTING.contexts for task in SETTING.tasks
    ]
    for entry in found["ruler"]:
        assert entry["score"] == 100.0
        assert entry["samples"] == 2
        assert entry["answer_loss"] == 0.5
        assert entry["tokens"] <= entry["context"] - 128
    assert found["ruler_mean"] == [
        {"context": context, "score": 100.0, "answer_loss": 0.5, "tasks": 2}
        for context in SETTING.contexts
    ]


def test_the_mean_weighs_tasks_the_same(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One value of the four of one sample is said, of two samples and two tasks: 12.5 and 0."""
    setting = dataclasses.replace(SETTING, contexts=(1400,))
    prompts = Prompts(setting, tokenizer, bos=False)
    value = prompts.write("niah_multivalue", 1400, 1).sample.answers[2]
    found = results(setting, tokenizer, f"I say {value}.", monkeypatch)
    assert [entry["score"] for entry in found["ruler"]] == [0.0, 12.5]
    assert found["ruler_mean"][0]["score"] == 6.25
    silent = results(setting, tokenizer, " \n", monkeypatch)
    assert [entry["empty"] for entry in silent["ruler"]] == [2, 2]


def test_answer_loss_is_that_of_the_whole_sequence(tokenizer: Tokenizer) -> None:
    setting = dataclasses.replace(SETTING, tasks=("fwe",), contexts=(640,), samples=1)
    task = ruler(setting, tokenizer)
    memory = Memory()
    run_units(task.units, memory)
    (entry,) = task.results(memory)["ruler"]
    prompt = Prompts(setting, tokenizer, bos=False).write("fwe", 640, 0)
    written = tokenizer.encode(prompt.sample.written)
    tokens = np.array(prompt.tokens + written)
    found = log_probabilities(byte_decoder(), tokens)[len(prompt.tokens) - 1 : -1]
    assert_close(entry["answer_loss"], -found[np.arange(len(written)), np.array(written)].mean())
    assert entry["answers"][0]["expected"] == list(prompt.sample.answers)
    assert len(tokenizer.encode(entry["answers"][0]["answer"])) >= 1


def test_units_are_the_same_in_a_larger_run(tokenizer: Tokenizer) -> None:
    larger = dataclasses.replace(SETTING, samples=3, tasks=("fwe", *SETTING.tasks))
    names = {unit.name for unit in ruler(SETTING, tokenizer).units}
    assert len(names) == 8
    assert names < {unit.name for unit in ruler(larger, tokenizer).units}
    other = ruler(dataclasses.replace(SETTING, seed=1), tokenizer)
    assert names.isdisjoint(unit.name for unit in other.units)
