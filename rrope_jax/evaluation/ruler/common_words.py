"""Common words: the ten words that appear most often in a numbered list."""

import dataclasses
import random
from typing import NamedTuple

from rrope_jax.evaluation.ruler.sample import SHORT_CONTEXT, Materials, Sample, Sizes, Task

_TASK = (
    "Below is a numbered list of words. In these words, some appear more often than others. "
    "Memorize the ones that appear most often.\n{context}\n"
    "Question: What are the 10 most common words in the above list?"
)
_ANSWER = " Answer: The top 10 words that appear most often in the list are:"
_COMMON = 10


class _Frequencies(NamedTuple):
    """How often common and other words appear in the list, and in that of the solved example."""

    common: int
    others: int
    example_words: int
    example_common: int
    example_others: int


_SHORT = _Frequencies(6, 1, example_words=20, example_common=3, example_others=1)
_LONG = _Frequencies(30, 3, example_words=40, example_common=10, example_others=3)


@dataclasses.dataclass(frozen=True)
class CommonWords(Task):
    """`cwe`: ten words appear 30 times each, all others three times.

    A solved example with fewer words comes first. For contexts below 4,096 tokens the words appear
    six times and once. For example:

        Below is a numbered list of words. In these words, some appear more often than others.
        Memorize the ones that appear most often.
        1. mill 2. river 3. mill 4. cart 5. mill [...]
        Question: What are the 10 most common words in the above list? Answer: The top 10 words that
        appear most often in the list are:
    """

    max_tokens: int = 120

    def sizes(self, materials: Materials, context: int, index: int) -> Sizes:
        """Numbers of different words."""
        del materials, context, index
        return Sizes(least=_COMMON + 1, shrink=10)

    def write(
        self, materials: Materials, context: int, size: int, index: int, draws: random.Random
    ) -> Sample:
        """Writes a prompt; see `Task.write`."""
        del index
        often = _SHORT if context < SHORT_CONTEXT else _LONG
        example = _listed(
            materials, often.example_words, often.example_common, often.example_others, draws
        )
        asked = _listed(materials, size, often.common, often.others, draws)
        return Sample(
            f"{example.prompt}{example.written}\n{asked.prompt}", asked.answers, asked.written
        )


def _listed(
    materials: Materials, size: int, common: int, others: int, draws: random.Random
) -> Sample:
    """A list with so many different words, and the question."""
    words = materials.words.singles(materials.seed)
    if size > len(words):
        words = materials.words.many
    if size > len(words):
        raise ValueError(
            f"words: cwe takes {size} different words, but there are {len(words)}; give a folder "
            "with more, or take shorter contexts"
        )
    chosen = draws.sample(words, size)
    listed = chosen[:_COMMON] * common + chosen[_COMMON:] * others
    materials.shuffle(listed)
    prompt = materials.prompt(_TASK.format(context=_numbered(listed)), _ANSWER)
    return Sample(prompt, tuple(chosen[:_COMMON]), f" {_numbered(chosen[:_COMMON])}")


def _numbered(words: list[str]) -> str:
    return " ".join(f"{number}. {each}" for number, each in enumerate(words, start=1))
