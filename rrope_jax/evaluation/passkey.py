"""Passkey retrieval: can the model repeat a number hidden in a long, dull text?

Prompts follow Mohtashami and Jaggi (arXiv 2305.16300, appendix B), as in YaRN's repository: an
introduction, repeated filler sentences with the key somewhere among them, and the question. The
wording is our own and can be changed in `PasskeySetting`.
"""

import dataclasses
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from rrope_jax.data.tokenizers import Tokenizer
from rrope_jax.evaluation.generation import Generator
from rrope_jax.evaluation.units import SECONDS, Benchmark, Unit, UnitStore, seconds_of, unit_name
from rrope_jax.model import Decoder
from rrope_jax.model.flops import causal_flops

_MOST = 10_000
_KEY = "{key}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class PasskeySetting:
    """The fields of `config.eval.passkey`.

    Attributes:
      enabled: whether to ask for passkeys.
      contexts: total lengths of prompt and answer, in tokens.
      depths: relative positions of the key, from 0 (the beginning) to 1 (the end).
      trials: number of prompts, with different keys, per context and depth.
      digits: number of digits of a key.
      extra_tokens: number of tokens that the model may write beyond those of the key.
      seed: seed of the keys. A key depends only on the seed, context, depth and trial, so all
        models get the same keys.
      introduction, filler, hidden, question: the wording. `filler` is repeated whole. `{key}` in
        `hidden` stands for the key. The answer to `question` is the key after a space.
      chunk: tokens of a prompt that go through the model at a time.
    """

    enabled: bool = True
    contexts: tuple[int, ...] = (2048, 4096, 8192, 16384, 32768)
    depths: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75, 1.0)
    trials: int = 1
    digits: int = 5
    extra_tokens: int = 4
    seed: int = 0
    introduction: str = (
        "Somewhere in the following text a pass key is given. Keep it in mind: the text is long "
        "and the rest of it does not matter. At the end you will be asked for the pass key.\n"
    )
    filler: str = (
        "The river runs past the old mill. A cart stands in the yard. The wind turns the leaves "
        "over. Evening comes, and then morning again.\n"
    )
    hidden: str = "The pass key is {key}. Do not forget it: {key} is the pass key.\n"
    question: str = "What was the pass key? The pass key is"
    chunk: int = 2048

    def __post_init__(self) -> None:
        for name in ("contexts", "depths"):
            entries = getattr(self, name)
            if not entries or len(set(entries)) < len(entries):
                raise ValueError(f"{name}={entries!r} must name at least one, and none twice")
        if min(self.depths) < 0 or max(self.depths) > 1:
            raise ValueError(f"depths={self.depths!r} must be from 0 to 1; 0 is the beginning")
        for name in ("trials", "digits", "chunk"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        for name in ("trials", "digits"):
            if getattr(self, name) > _MOST:
                raise ValueError(f"{name}={getattr(self, name)} must be at most {_MOST}")
        for name in ("extra_tokens", "seed"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 0")
        if _KEY not in self.hidden:
            raise ValueError(f"hidden={self.hidden!r} must contain {_KEY}, in place of the key")
        if not self.filler:
            raise ValueError("filler='' must be some text; it is what makes a prompt long")


@dataclasses.dataclass(frozen=True)
class Prompt:
    """One prompt and its answer.

    Attributes:
      tokens: token ids of the prompt.
      answer: token ids of the key as it follows the prompt.
      key: the digits of the key.
    """

    tokens: list[int]
    answer: list[int]
    key: str


class Passkey(Benchmark[tuple[int, float]]):
    """Passkey retrieval by context and depth; a unit is one trial."""

    def __init__(
        self, setting: PasskeySetting, decoder: Decoder, tokenizer: Tokenizer, *, bos: bool
    ):
        """Writes the prompts; computes nothing.

        Args:
          setting: what to ask.
          decoder: the model.
          tokenizer: its tokenizer.
          bos: whether prompts begin with the tokenizer's beginning-of-sequence token.

        Raises:
          ValueError: a context is too short for the text around the filler, or the tokenizer lacks
            a beginning-of-sequence token.
        """
        self._first = tokenizer.beginning(bos)
        self._setting = setting
        self._model = decoder.config
        self._tokenizer = tokenizer
        self._generator = Generator(decoder, chunk=setting.chunk)
        self.units = [
            self._unit(context, depth, trial)
            for context in sorted(setting.contexts)
            for depth in sorted(setting.depths)
            for trial in range(setting.trials)
        ]

    def prompt(self, context: int, depth: float, trial: int) -> Prompt:
        """The prompt of one trial, with as many whole fillers as the context has room for."""
        setting, encode = self._setting, self._tokenizer.encode
        # depths are scaled to integers, as the generator requires
        random = np.random.default_rng([setting.seed, context, round(1e6 * depth), trial])
        digits = random.integers(0, 10, setting.digits)
        key = "".join(map(str, [1 + digits[0] % 9, *digits[1:]]))  # without a leading 0
        question, answer = _question_and_answer(self._tokenizer, setting.question, f" {key}")
        introduction, filler, hidden = (
            encode(text)
            for text in (setting.introduction, setting.filler, setting.hidden.replace(_KEY, key))
        )
        around = [*self._first, *introduction, *hidden, *question, *answer]
        room = context - len(around) - setting.extra_tokens
        if room < 0:
            raise ValueError(
                f"contexts: {context} tokens are too few for a passkey; the text around the filler "
                f"takes {context - room}"
            )
        repeats = room // len(filler)
        before = round(depth * repeats)
        tokens = [
            *self._first,
            *introduction,
            *filler * before,
            *hidden,
            *filler * (repeats - before),
            *question,
        ]
        return Prompt(tokens, answer, key)

    def _unit(self, context: int, depth: float, trial: int) -> Unit[tuple[int, float]]:
        prompt = self.prompt(context, depth, trial)
        depends_on = [prompt.tokens, prompt.answer, context, self._setting.extra_tokens]
        return Unit(
            unit_name("passkey", [context, depth, trial], depends_on),
            causal_flops(self._model, 0, len(prompt.tokens), logits=False),
            self._run,
            (prompt, context),
            (context, depth),
            shape=(context, len(prompt.answer)),
        )

    def _run(self, inputs: Sequence[tuple[Prompt, int]]) -> list[dict[str, Any]]:
        """The results of prompts of one context, whose answers have as many tokens."""
        prompts = [prompt for prompt, _ in inputs]
        cache = self._generator.read([each.tokens for each in prompts], capacity=inputs[0][1])
        last_tokens = [each.tokens[-1] for each in prompts]
        answers = [each.answer for each in prompts]
        scores, cache = self._generator.score_in_place(last_tokens, cache, answers)
        max_tokens = len(answers[0]) + self._setting.extra_tokens
        written = self._generator.generate(last_tokens, cache, max_tokens=max_tokens, in_place=True)
        return [
            self._result(prompt, self._tokenizer.decode(row), *of_row)
            for prompt, row, of_row in zip(prompts, written, scores, strict=True)
        ]

    def _result(
        self, prompt: Prompt, answer: str, log_probability: np.ndarray, best: np.ndarray
    ) -> dict[str, Any]:
        return {
            "key": prompt.key,
            "answer": answer,
            "correct": first_number(answer) == prompt.key,
            "log_probability": float(log_probability.sum()),
            "token_accuracy": float(best.mean()),
            "tokens": len(prompt.tokens) + len(prompt.answer),
        }

    def results(self, store: UnitStore) -> dict[str, Any]:
        """The entries of results.json, from the finished units in the store.

        `passkey` has one entry per context and depth: `accuracy` is the share of keys repeated,
        `log_probability` the mean over trials of the key's log probability in nats, and
        `token_accuracy` the share of the key's tokens that the model finds most probable.
        """
        trials: dict[tuple[int, float], list[dict[str, Any]]] = {}
        for cell, result in self.finished(store):
            trials.setdefault(cell, []).append(result)
        return {
            "passkey": [
                {
                    "context": context,
                    "depth": depth,
                    "accuracy": _mean(results, "correct"),
                    "log_probability": _mean(results, "log_probability"),
                    "token_accuracy": _mean(results, "token_accuracy"),
                    "trials": len(results),
                    SECONDS: seconds_of(results),
                    "answers": [[result["key"], result["answer"]] for result in results],
                }
                for (context, depth), results in trials.items()
            ]
        }


def first_number(text: str) -> str | None:
    """The first run of digits in a text, as YaRN's code reads an answer."""
    match = re.search(r"\d+", text)
    return match.group() if match else None


def _question_and_answer(
    tokenizer: Tokenizer, question: str, answer: str
) -> tuple[list[int], list[int]]:
    """Token ids of both, split where the ids of the joined text differ from the question's own.

    A tokenizer may merge the end of the question with the beginning of the answer; the merged token
    then belongs to the answer.
    """
    whole, alone = tokenizer.encode(question + answer), tokenizer.encode(question)
    shared = next(
        (i for i, (a, b) in enumerate(zip(whole, alone, strict=False)) if a != b),
        min(len(whole), len(alone)),
    )
    return whole[:shared], whole[shared:]


def _mean(results: Sequence[dict[str, Any]], key: str) -> float:
    return float(np.mean([result[key] for result in results]))
