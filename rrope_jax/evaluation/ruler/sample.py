"""What the kinds of tasks have in common: their materials, and the prompts that they write."""

import abc
import dataclasses
import random
from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple

from rrope_jax.evaluation.ruler.questions_file import Questions
from rrope_jax.evaluation.ruler.word_lists import WordLists

TASK = "{task}"
"""Stands for the task in a chat template."""

SHORT_CONTEXT = 4096
"""Below this length in tokens, some tasks are easier or made in smaller steps, as in RULER."""

Scoring = Literal["all", "part"]
"""Whether an answer is scored by the share of expected strings in it, or by any of them."""


class Sample(NamedTuple):
    """One prompt.

    Attributes:
      prompt: what the model reads, with the beginning of its answer.
      answers: the strings that the answer should contain.
      written: a right answer as it would follow the prompt.
    """

    prompt: str
    answers: tuple[str, ...]
    written: str


@dataclasses.dataclass(frozen=True, eq=False)
class Materials:
    """What prompts are made from, the same for all samples of a run.

    Attributes:
      words: nouns, adjectives and verbs.
      essay: the words of a long text, in order.
      questions: name of a data set -> its questions and documents.
      template: the chat template, with `{task}`; what follows it begins the model's answer.
      seed: seed of the shuffles that are the same for all samples, as in RULER.
      count_tokens: the number of tokens of a text.
    """

    words: WordLists
    essay: tuple[str, ...]
    questions: Mapping[str, Questions]
    template: str
    seed: int
    count_tokens: Callable[[str], int]

    def prompt(self, task: str, answer_prefix: str) -> str:
        """The task in the chat template, and the beginning of the answer after it."""
        return self.template.replace(TASK, task) + answer_prefix

    def shuffle(self, entries: list[str]) -> None:
        """Shuffles in place; lists of the same length get the same order."""
        random.Random(self.seed).shuffle(entries)


class Sizes(NamedTuple):
    """The sizes that a prompt can have, such as numbers of sentences.

    Attributes:
      least: the smallest size.
      shrink: by how much a prompt that is too long gets smaller. The search for the largest size
        that fits begins here.
      unit: sizes are `least` plus multiples of it.
    """

    least: int
    shrink: int
    unit: int = 1


class Task(abc.ABC):
    """One kind of task with its parameters; a row of the table of tasks.

    Attributes:
      max_tokens: how many tokens the model may write.
      scoring: how an answer is scored.
    """

    max_tokens: int
    scoring: Scoring = "all"

    @abc.abstractmethod
    def sizes(self, materials: Materials, context: int, index: int) -> Sizes:
        """The sizes of the prompt of sample `index` for a context of so many tokens."""

    @abc.abstractmethod
    def write(
        self, materials: Materials, context: int, size: int, index: int, draws: random.Random
    ) -> Sample:
        """Writes a prompt.

        Args:
          materials: what it is made from.
          context: length of prompt and answer in tokens, on which the difficulty may depend.
          size: how much text it has, one of `sizes`.
          index: number of the sample.
          draws: where its random choices come from. The calls are those of RULER's code in the
            same order, so that the same state gives the same prompt.
        """


def word(draws: random.Random, alphabet: str, length: int) -> str:
    """A made-up word."""
    return "".join(draws.choices(alphabet, k=length))
