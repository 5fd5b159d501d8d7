"""Frequent words: the three most frequent of made-up words under Zipf's law."""

import dataclasses
import math
import random
import string

import numpy as np

from rrope_jax.evaluation.ruler.sample import Materials, Sample, Sizes, Task, word

_TASK = (
    "Read the following coded text and track the frequency of each coded word. Find the three most "
    "frequently appeared coded words. {context}\nQuestion: Do not provide any explanation. Please "
    "ignore the dots '....'. What are the three most frequently appeared words in the above coded "
    "text?"
)
_ANSWER = (
    " Answer: According to the coded text above, the three most frequently appeared words are:"
)
_NOISE = "..."
_LETTERS = 6
_TOKENS_PER_WORD = 50  # of the context, for each different word
_ZETA_2 = math.pi**2 / 6


@dataclasses.dataclass(frozen=True)
class FrequentWords(Task):
    """`fwe`: the k-th most frequent word has a share of 1 / (k^2 zeta(2)); the first is noise.

    For example:

        Read the following coded text and track the frequency of each coded word. Find the three
        most frequently appeared coded words. ... bqzkeu ... ... cdlzxm [...]
        Question: Do not provide any explanation. Please ignore the dots '....'. What are the three
        most frequently appeared words in the above coded text? Answer: According to the coded text
        above, the three most frequently appeared words are:
    """

    max_tokens: int = 50

    def sizes(self, materials: Materials, context: int, index: int) -> Sizes:
        """Numbers of words, up to rounding; RULER goes up from a sixth of the tokens."""
        del materials, index
        room = context - self.max_tokens
        step = max(1, room // 32)
        least = room // _LETTERS % step or step
        return Sizes(least=least, shrink=step, unit=step)

    def write(
        self, materials: Materials, context: int, size: int, index: int, draws: random.Random
    ) -> Sample:
        """Writes a prompt; see `Task.write`."""
        del index
        # at least the three that are asked for, the noise and one other
        different = max(5, (context - self.max_tokens) // _TOKENS_PER_WORD)
        drawn = [word(draws, string.ascii_lowercase, _LETTERS) for _ in range(different)]
        while len(set(drawn)) < different:
            drawn.append(word(draws, string.ascii_lowercase, _LETTERS))
        vocabulary = sorted(set(drawn))
        materials.shuffle(vocabulary)
        vocabulary[0] = _NOISE
        shares = size * np.arange(1, different + 1) ** -2.0 / _ZETA_2
        text = [
            each
            for each, count in zip(vocabulary, shares.astype(int), strict=True)
            for _ in range(count)
        ]
        materials.shuffle(text)
        answers = tuple(vocabulary[1:4])
        prompt = materials.prompt(_TASK.format(context=" ".join(text)), _ANSWER)
        return Sample(prompt, answers, " " + ", ".join(answers))
