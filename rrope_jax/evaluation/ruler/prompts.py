"""The prompts of a run: materials read once, and each prompt as long as its context allows."""

import hashlib
import random
from typing import Any, NamedTuple

from rrope_jax.data.text import TextConfig, documents
from rrope_jax.data.tokenizers import Tokenizer
from rrope_jax.evaluation.ruler.questions_file import read_questions
from rrope_jax.evaluation.ruler.sample import Materials, Sample
from rrope_jax.evaluation.ruler.search import largest_size
from rrope_jax.evaluation.ruler.setting import RulerSetting
from rrope_jax.evaluation.ruler.tasks import DATASETS, TASKS
from rrope_jax.evaluation.ruler.word_lists import BUILT_IN, read_words

_SENTENCES_WORDS = 100_000  # of random text, which is repeated where a prompt needs more


class Prompt(NamedTuple):
    """A prompt as token ids.

    Attributes:
      sample: its text and answers.
      tokens: its token ids.
      size: how much text it has.
    """

    sample: Sample
    tokens: list[int]
    size: int


class Prompts:
    """Writes the prompts of a setting."""

    def __init__(self, setting: RulerSetting, tokenizer: Tokenizer, *, bos: bool):
        """Reads the materials and finds how much text fits the contexts.

        Args:
          setting: what to ask.
          tokenizer: the model's tokenizer.
          bos: whether prompts begin with the tokenizer's beginning-of-sequence token.

        Raises:
          ValueError: a file cannot be read or has too few questions, a context is too short for a
            task, or the tokenizer lacks a beginning-of-sequence token.
        """
        self._first = tokenizer.beginning(bos)
        self._setting = setting
        self._tokenizer = tokenizer
        self._materials = _materials(setting, tokenizer)
        materials = self._materials
        self._fingerprints = {
            dataset: hashlib.blake2b(repr(shown).encode(), digest_size=16).digest()
            for dataset, shown in [
                (None, (materials.words, materials.essay)),
                *materials.questions.items(),
            ]
        }
        self.sizes = {
            (name, context): self._size(name, context)
            for context in sorted(setting.contexts)
            for name in setting.tasks
        }
        self._digests = {cell: self._digest(*cell) for cell in self.sizes}

    def write(self, name: str, context: int, index: int) -> Prompt:
        """The prompt of one sample, with at most the size that suits the first sample.

        Raises:
          ValueError: the context is too short.
        """
        task = TASKS[name]
        sizes = task.sizes(self._materials, context, index)
        size = max(self.sizes[name, context], sizes.least)
        while True:
            prompt = self._of_size(name, context, size, index)
            if len(prompt.tokens) <= context - task.max_tokens:
                return prompt
            if size <= sizes.least:
                raise ValueError(_too_short(name, context, prompt, task.max_tokens))
            size = max(sizes.least, size - sizes.shrink)

    def depends_on(self, name: str, context: int, index: int) -> list[Any]:
        """What identifies a prompt without writing it, as JSON values."""
        return [self._digests[name, context], self._setting.seed, context, index, self._first]

    def _digest(self, name: str, context: int) -> str:
        """Identifies the prompts of a task at a context by the first and what others may show."""
        size = self.sizes[name, context]
        first = self._of_size(name, context, size, 0).sample
        digest = hashlib.blake2b(f"{first!r} {size}".encode(), digest_size=16)
        digest.update(self._fingerprints[DATASETS.get(name)])
        return digest.hexdigest()

    def _size(self, name: str, context: int) -> int:
        """The largest size of the first prompt; all others are checked to fit when small."""
        task, materials = TASKS[name], self._materials
        dataset = DATASETS.get(name)
        if dataset is not None:
            there = len(materials.questions[dataset].questions)
            if there < self._setting.samples:
                raise ValueError(
                    f"{dataset}: {self._setting.samples} samples take as many questions, but the "
                    f"file has {there}; give fewer samples"
                )
        for index in range(self._setting.samples):
            least = task.sizes(materials, context, index).least
            prompt = self._of_size(name, context, least, index)
            if len(prompt.tokens) > context - task.max_tokens:
                raise ValueError(_too_short(name, context, prompt, task.max_tokens))
        size = largest_size(
            task.sizes(materials, context, 0),
            lambda size: len(self._of_size(name, context, size, 0).tokens),
            context - task.max_tokens,
        )
        assert size is not None, "the least size was seen to fit"
        return size

    def _of_size(self, name: str, context: int, size: int, index: int) -> Prompt:
        draws = random.Random(f"{self._setting.seed} {name} {context} {index}")
        sample = TASKS[name].write(self._materials, context, size, index, draws)
        return Prompt(sample, [*self._first, *self._tokenizer.encode(sample.prompt)], size)


def _too_short(name: str, context: int, prompt: Prompt, max_tokens: int) -> str:
    return (
        f"contexts: {context} tokens are too few for {name}, which takes at least "
        f"{len(prompt.tokens)} and {max_tokens} for the answer; take a longer context, or leave "
        f"{name} out"
    )


def _materials(setting: RulerSetting, tokenizer: Tokenizer) -> Materials:
    words = read_words(setting.words) if setting.words is not None else BUILT_IN
    if setting.text is None:
        essay = words.sentences(setting.seed, _SENTENCES_WORDS)
    else:
        essay = tuple(
            word
            for document in documents(TextConfig(source=setting.text))
            for word in document.text.split()
        )
        if not essay:
            raise ValueError(f"text={setting.text!r} has no words; give a text, or None")
    datasets = [DATASETS[name] for name in setting.tasks if name in DATASETS]
    return Materials(
        words=words,
        essay=essay,
        questions={name: read_questions(name, getattr(setting, name)) for name in datasets},
        template=setting.chat_template,
        seed=setting.seed,
        count_tokens=lambda text: len(tokenizer.encode(text)),
    )
