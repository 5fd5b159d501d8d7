"""Passkey retrieval."""

import dataclasses
from typing import Any

import numpy as np
import pytest

from rrope_jax.data.tokenizers import Tokenizer, load_tokenizer
from rrope_jax.evaluation.passkey import Passkey, PasskeySetting, first_number
from rrope_jax.evaluation.units import run_units
from tests.closeness import assert_close
from tests.evaluation.tiny import Memory, byte_decoder, log_probabilities

SHORT = PasskeySetting(
    contexts=(96, 128),
    depths=(0.0, 0.5, 1.0),
    introduction="Find it.\n",
    filler="Grass.\n",
    hidden="Key {key}.\n",
    question="Key?",
    chunk=32,
)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return load_tokenizer("bytes")


@pytest.mark.parametrize("context", SHORT.contexts)
def test_prompts(context: int, tokenizer: Tokenizer) -> None:
    task = Passkey(SHORT, byte_decoder(), tokenizer, bos=False)
    for depth in SHORT.depths:
        prompt = task.prompt(context, depth, 0)
        text = tokenizer.decode(prompt.tokens)
        assert len(prompt.key) == 5
        assert prompt.key.isdigit()
        assert tokenizer.decode(prompt.answer) == f" {prompt.key}"
        head, tail = text.split(f"Key {prompt.key}.\n")
        before, after = head.count("Grass."), tail.count("Grass.")
        filler = SHORT.filler
        assert head == "Find it.\n" + filler * before
        assert tail == filler * after + "Key?"
        assert before == round(depth * (before + after))
        # as many whole sentences as there is room for, with the answer and what may follow it
        used = len(prompt.tokens) + len(prompt.answer) + SHORT.extra_tokens
        assert context - len("Grass.\n") < used <= context


def test_keys_depend_on_the_cell_alone(tokenizer: Tokenizer) -> None:
    def keys(**changes: Any) -> dict[tuple[int, float, int], str]:
        setting = dataclasses.replace(SHORT, trials=2, **changes)
        task = Passkey(setting, byte_decoder(), tokenizer, bos=False)
        return {
            (context, depth, trial): task.prompt(context, depth, trial).key
            for context in setting.contexts
            for depth in setting.depths
            for trial in range(2)
        }

    everything = keys()
    assert len(set(everything.values())) == len(everything)
    fewer = keys(contexts=(128,), depths=(1.0, 0.5))
    assert fewer == {cell: key for cell, key in everything.items() if cell in fewer}
    assert keys(seed=1) != everything


def test_bos_begins_the_prompt(tokenizer: Tokenizer) -> None:
    task = Passkey(SHORT, byte_decoder(), tokenizer, bos=True)
    assert task.prompt(96, 0.0, 0).tokens[0] == tokenizer.bos_id


def test_scores_are_those_of_the_whole_sequence(tokenizer: Tokenizer) -> None:
    decoder = byte_decoder()
    task = Passkey(dataclasses.replace(SHORT, contexts=(96,)), decoder, tokenizer, bos=False)
    memory = Memory()
    run_units(task.units, memory)
    cells = task.results(memory)["passkey"]
    assert [(cell["context"], cell["depth"]) for cell in cells] == [(96, 0.0), (96, 0.5), (96, 1.0)]
    for cell in cells:
        prompt = task.prompt(96, cell["depth"], 0)
        tokens = np.array(prompt.tokens + prompt.answer)
        start = len(prompt.tokens)
        found = log_probabilities(decoder, tokens)[start - 1 : -1]
        expected = found[np.arange(len(prompt.answer)), np.array(prompt.answer)].sum()
        assert_close(cell["log_probability"], expected)
        assert cell["answers"][0][0] == prompt.key


class Parrot:
    """In place of a `Generator`: it always answers with the same text."""

    def __init__(self, tokenizer: Tokenizer, text: str):
        self._ids = tokenizer.encode(text)

    def read(self, prompts: Any, *, capacity: int) -> None:
        assert max(map(len, prompts)) <= capacity

    def score_in_place(self, last: Any, cache: None, continuations: list[list[int]]) -> Any:
        sizes = [len(continuation) for continuation in continuations]
        scores = [(np.full(size, -0.5, np.float32), np.arange(size) % 2 == 0) for size in sizes]
        return scores, cache

    def generate(
        self, last: Any, cache: None, *, max_tokens: int, in_place: bool
    ) -> list[list[int]]:
        return [self._ids[:max_tokens]]


def test_an_answer_counts_by_its_first_number(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    setting = dataclasses.replace(SHORT, contexts=(96,), depths=(0.5,), trials=2)
    task = Passkey(setting, byte_decoder(), tokenizer, bos=False)
    key = task.prompt(96, 0.5, 0).key
    monkeypatch.setattr(task, "_generator", Parrot(tokenizer, f" {key}. "))
    memory = Memory()
    run_units(task.units, memory)
    (cell,) = task.results(memory)["passkey"]
    assert cell["accuracy"] == 0.5  # the other trial has another key
    assert cell["trials"] == 2
    assert cell["log_probability"] == pytest.approx(-3.0)
    assert cell["token_accuracy"] == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("text", "number"), [(" 71432. It", "71432"), ("is 5", "5"), ("none", None)]
)
def test_first_number(text: str, number: str | None) -> None:
    assert first_number(text) == number


def test_a_context_that_is_too_short(tokenizer: Tokenizer) -> None:
    with pytest.raises(ValueError, match="20 tokens are too few for a passkey"):
        Passkey(dataclasses.replace(SHORT, contexts=(20,)), byte_decoder(), tokenizer, bos=False)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"contexts": ()}, "contexts=.* must name at least one"),
        ({"depths": (0.0, 1.5)}, "must be from 0 to 1"),
        ({"trials": 0}, "trials=0 must be at least 1"),
        ({"hidden": "The key is lost."}, "must contain {key}"),
        ({"filler": ""}, "must be some text"),
    ],
)
def test_wrong_settings(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        PasskeySetting(**fields)
