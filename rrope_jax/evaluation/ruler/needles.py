"""Needles in a haystack: values of named keys, hidden in a text, to be repeated."""

import dataclasses
import random
import re
import uuid
from collections.abc import Callable, Collection, Mapping
from typing import Literal

import numpy as np

from rrope_jax.evaluation.ruler.sample import SHORT_CONTEXT, Materials, Sample, Sizes, Task

NOISE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
"""The dull sentences of a haystack of noise."""

_NEEDLE = "One of the special magic {kind} for {key} is: {value}."
_TASK = (
    "Some special magic {kind} are hidden within the following text. Make sure to memorize it. I "
    "will quiz you about the {kind} afterwards.\n{context}\nWhat are all the special magic {kind} "
    "for {query} mentioned in the provided text?"
)
_ANSWER = " The special magic {kind} for {query} mentioned in the provided text are"
# What the wording becomes where one value is asked for, in this order.
_SINGULAR = (("Some", "A"), ("are all", "is"), ("are", "is"))

_DIGITS = 7
_DEPTHS = [int(depth) for depth in np.round(np.linspace(0, 100, 40))]  # percent of the sentences

# The end of a sentence: its mark, closing quotes and brackets, and space before a new beginning.
_SENTENCE_END = re.compile(r"""(?<=[.!?])["'\u201d\u2019)\]]*\s+(?=["'\u201c\u2018(\[]?[A-Z0-9])""")

Haystack = Literal["noise", "essay", "needle"]
Kind = Literal["words", "numbers", "uuids"]


def _a_word(materials: Materials, draws: random.Random) -> str:
    return draws.choice(materials.words.pairs)


def _a_number(materials: Materials, draws: random.Random) -> str:
    del materials
    return str(draws.randint(10 ** (_DIGITS - 1), 10**_DIGITS - 1))


def _a_uuid(materials: Materials, draws: random.Random) -> str:
    del materials
    return str(uuid.UUID(int=draws.getrandbits(128), version=4))


_DRAW: Mapping[Kind, Callable[[Materials, random.Random], str]] = {
    "words": _a_word,
    "numbers": _a_number,
    "uuids": _a_uuid,
}


@dataclasses.dataclass(frozen=True)
class Needles(Task):
    """`niah`: retrieve the values of `queries` keys among `keys` that are hidden.

    For example, with a haystack of noise, one key and one value:

        A special magic number is hidden within the following text. Make sure to memorize it. I will
        quiz you about the number afterwards.
        The grass is green. The sky is blue. [...]
        One of the special magic numbers for old-mill is: 8090293.
        The grass is green. The sky is blue. [...]
        What is the special magic number for old-mill mentioned in the provided text? The special
        magic number for old-mill mentioned in the provided text is

    Attributes:
      haystack: what needles are hidden in: repeated sentences, a text, or other needles.
      key, value: what keys and values are: pairs of words, numbers of seven digits or UUIDs.
      keys: number of keys that are hidden.
      values: number of values of a key.
      queries: number of keys that are asked for; at least as many are hidden.
    """

    haystack: Haystack
    key: Kind = "words"
    value: Kind = "numbers"
    keys: int = 1
    values: int = 1
    queries: int = 1
    max_tokens: int = 128

    def sizes(self, materials: Materials, context: int, index: int) -> Sizes:
        """Numbers of sentences, or of words of an essay."""
        del materials, index
        if self.haystack == "essay":
            return Sizes(least=1, shrink=500)
        return Sizes(least=self._hidden * self.values, shrink=5 if context < SHORT_CONTEXT else 25)

    def write(
        self, materials: Materials, context: int, size: int, index: int, draws: random.Random
    ) -> Sample:
        """Writes a prompt; see `Task.write`."""
        del context, index
        values_of: dict[str, list[str]] = {}
        needles = []
        for _ in range(self._hidden):
            key = self._new_key(materials, draws, values_of)
            values_of[key] = [_DRAW[self.value](materials, draws) for _ in range(self.values)]
            needles += [self._needle(key, value) for value in values_of[key]]
        materials.shuffle(needles)
        keys = list(values_of)
        if self.haystack == "essay":
            text = _in_essay(materials.essay, size, needles, draws)
        else:
            lines = [self._line(materials, keys, draws) for _ in range(size)]
            text = _between_lines(lines, needles, draws)
        asked = [keys[i] for i in draws.sample(range(len(keys)), self.queries)]
        answers = tuple(value for key in asked for value in values_of[key])
        query = ", ".join(asked[:-1]) + ", and " + asked[-1] if len(asked) > 1 else asked[0]
        task, answer_prefix, kind = _TASK, _ANSWER, str(self.value)
        if len(answers) == 1:
            kind = kind.removesuffix("s")
            for plural, singular in _SINGULAR:
                task, answer_prefix = (
                    each.replace(plural, singular) for each in (task, answer_prefix)
                )
        prompt = materials.prompt(
            task.format(kind=kind, context=text, query=query),
            answer_prefix.format(kind=kind, query=query),
        )
        return Sample(prompt, answers, " " + ", ".join(answers))

    @property
    def _hidden(self) -> int:
        return max(self.keys, self.queries)

    def _needle(self, key: str, value: str) -> str:
        return _NEEDLE.format(kind=self.value, key=key, value=value)

    def _new_key(self, materials: Materials, draws: random.Random, taken: Collection[str]) -> str:
        """A key that is not taken, so that a question has one answer (RULER does not look)."""
        while (key := _DRAW[self.key](materials, draws)) in taken:
            pass
        return key

    def _line(self, materials: Materials, keys: Collection[str], draws: random.Random) -> str:
        """A line that the needles are hidden among."""
        if self.haystack == "noise":
            return NOISE
        key = self._new_key(materials, draws, keys)
        return self._needle(key, _DRAW[self.value](materials, draws))


def _in_essay(words: tuple[str, ...], size: int, needles: list[str], draws: random.Random) -> str:
    """The first words, repeated if need be, with needles between the sentences."""
    repeats = -(-size // len(words))
    sentences = split_sentences(" ".join((words * repeats)[:size]))
    places = sorted(
        int(len(sentences) * (depth / 100)) for depth in draws.sample(_DEPTHS, len(needles))
    )
    parts: list[str] = []
    begin = 0
    for place, needle in zip(places, needles, strict=True):
        parts += [" ".join(sentences[begin:place]), needle]
        begin = place
    return " ".join([*parts, " ".join(sentences[begin:])])


def split_sentences(text: str) -> list[str]:
    """Splits after `.`, `!` or `?` before a capital letter or digit (RULER asks NLTK's Punkt)."""
    text = text.strip()
    sentences = []
    begin = 0
    for end in _SENTENCE_END.finditer(text):
        closing = end.group().rstrip()
        sentences.append(text[begin : end.start() + len(closing)])
        begin = end.end()
    return [*sentences, text[begin:]]


def _between_lines(lines: list[str], needles: list[str], draws: random.Random) -> str:
    """The lines with needles between them."""
    places = sorted(draws.sample(range(len(lines)), len(needles)), reverse=True)
    for place, needle in zip(places, needles, strict=True):
        lines.insert(place, needle)
    return "\n".join(lines)
