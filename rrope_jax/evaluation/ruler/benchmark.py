"""RULER as a benchmark: prompts asked in batches, scores by task and length."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from rrope_jax.data.tokenizers import Tokenizer
from rrope_jax.evaluation.generation import Generator
from rrope_jax.evaluation.ruler import scoring
from rrope_jax.evaluation.ruler.prompts import Prompt, Prompts
from rrope_jax.evaluation.ruler.setting import RulerSetting
from rrope_jax.evaluation.ruler.tasks import TASKS
from rrope_jax.evaluation.units import SECONDS, Benchmark, Unit, UnitStore, seconds_of, unit_name
from rrope_jax.model import Decoder
from rrope_jax.model.flops import causal_flops


class Cell(NamedTuple):
    """What a unit belongs to."""

    task: str
    context: int


class _AskedPrompt(NamedTuple):
    """A prompt, and the tokens of a right answer."""

    prompt: Prompt
    right: list[int]

    @property
    def size(self) -> int:
        """The number of tokens of both."""
        return len(self.prompt.tokens) + len(self.right)


class Ruler(Benchmark[Cell]):
    """RULER; a unit is one prompt."""

    def __init__(
        self,
        setting: RulerSetting,
        decoder: Decoder,
        tokenizer: Tokenizer,
        *,
        bos: bool,
        stop_ids: Sequence[int],
    ):
        """Reads the materials and plans the units; the model computes nothing.

        Args:
          setting: what to ask.
          decoder: the model.
          tokenizer: its tokenizer.
          bos: whether prompts begin with the tokenizer's beginning-of-sequence token.
          stop_ids: tokens that end an answer.

        Raises:
          ValueError: see `Prompts`.
        """
        self._tokenizer = tokenizer
        self._stop_ids = tuple(stop_ids)
        self._prompts = Prompts(setting, tokenizer, bos=bos)
        self._generator = Generator(decoder, chunk=setting.chunk)
        self._model = decoder.config
        self.units = [
            self._unit(Cell(task, context), index)
            for context in sorted(setting.contexts)
            for task in setting.tasks
            for index in range(setting.samples)
        ]

    def _unit(self, cell: Cell, index: int) -> Unit[Cell]:
        depends_on = [*self._prompts.depends_on(*cell, index), sorted(self._stop_ids)]
        return Unit(
            unit_name("ruler", [*cell, index], depends_on),
            causal_flops(self._model, 0, cell.context, logits=False),
            self._run,
            (cell, index),
            cell,
            shape=(cell.context, TASKS[cell.task].max_tokens),
        )

    def _run(self, inputs: Sequence[tuple[Cell, int]]) -> list[dict[str, Any]]:
        """The results of samples at one context, whose answers may be as long."""
        cell = inputs[0][0]
        samples = [
            _AskedPrompt(prompt, self._tokenizer.encode(prompt.sample.written))
            for prompt in (self._prompts.write(*each, index) for each, index in inputs)
        ]
        by_capacity: dict[int, list[int]] = {}
        for number, sample in enumerate(samples):
            # the right answer may be longer than what the model may write
            by_capacity.setdefault(max(cell.context, sample.size), []).append(number)
        results: dict[int, dict[str, Any]] = {}
        for capacity, numbers in by_capacity.items():
            batch = [samples[number] for number in numbers]
            answers = self._ask(batch, capacity, TASKS[cell.task].max_tokens)
            results |= dict(zip(numbers, answers, strict=True))
        return [results[number] for number in range(len(inputs))]

    def _ask(
        self, samples: Sequence[_AskedPrompt], capacity: int, max_tokens: int
    ) -> list[dict[str, Any]]:
        """The results of samples in one cache, whose capacity some embeddings depend on."""
        cache = self._generator.read([each.prompt.tokens for each in samples], capacity=capacity)
        last_tokens = [each.prompt.tokens[-1] for each in samples]
        right = [each.right for each in samples]
        scores, cache = self._generator.score_in_place(last_tokens, cache, right)
        answers = self._generator.generate(
            last_tokens, cache, max_tokens=max_tokens, stop_ids=self._stop_ids, in_place=True
        )
        return [
            {
                "expected": list(each.prompt.sample.answers),
                "answer": self._tokenizer.decode(answer),
                "answer_loss": -float(log_probability.mean()),
                "tokens": len(each.prompt.tokens),
                "size": each.prompt.size,
            }
            for each, answer, (log_probability, _) in zip(samples, answers, scores, strict=True)
        ]

    def results(self, store: UnitStore) -> dict[str, Any]:
        """The entries of results.json, from the finished units in the store.

        `ruler` has one entry per task and context: `score` is the percentage that RULER reports,
        `empty` the number of empty answers, `answer_loss` the mean over samples of the mean
        negative log likelihood, in nats, of the tokens of a right answer, `seconds` their sum.
        `ruler_mean` has for each context the means over its tasks.
        """
        cells: dict[Cell, list[dict[str, Any]]] = {}
        for cell, result in self.finished(store):
            cells.setdefault(cell, []).append(result)
        entries = [_entry(cell, samples) for cell, samples in cells.items()]
        return {"ruler": entries, "ruler_mean": _means(entries)}


def _entry(cell: Cell, samples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    answers = [sample["answer"] for sample in samples]
    expected = [sample["expected"] for sample in samples]
    return {
        "task": cell.task,
        "context": cell.context,
        "score": scoring.score(TASKS[cell.task].scoring, answers, expected),
        "answer_loss": float(np.mean([sample["answer_loss"] for sample in samples])),
        "samples": len(samples),
        SECONDS: seconds_of(samples),
        "empty": sum(not scoring.cleaned(answer) for answer in answers),
        "tokens": max(sample["tokens"] for sample in samples),
        "answers": [
            {"expected": right, "answer": answer}
            for right, answer in zip(expected, answers, strict=True)
        ],
    }


def _means(entries: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    contexts: dict[int, list[Mapping[str, Any]]] = {}
    for entry in entries:
        contexts.setdefault(entry["context"], []).append(entry)
    return [
        {
            "context": context,
            "score": float(np.mean([entry["score"] for entry in of_context])),
            "answer_loss": float(np.mean([entry["answer_loss"] for entry in of_context])),
            "tasks": len(of_context),
        }
        for context, of_context in contexts.items()
    ]
