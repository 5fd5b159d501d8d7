"""Words for keys, values and lists: built in, or from files."""

import dataclasses
import functools
import random
from collections.abc import Mapping
from pathlib import Path

from rrope_jax.evaluation.ruler import common_english
from rrope_jax.io import json_text
from rrope_jax.io.local_copies import file_here

FILES: Mapping[str, str] = {
    "nouns": "nounlist.txt",
    "adjectives": "adjectivelist.txt",
    "verbs": "verblist.txt",
}
"""Field of `WordLists` -> its file in a folder, one word a line, named as in `wonderwords`."""

MORE = "english_words.json"
"""A JSON object whose values are words, as in RULER's repository; it may be missing."""

_WORDS_IN_SENTENCE = (6, 14)


@dataclasses.dataclass(frozen=True)
class WordLists:
    """Words by kind.

    Attributes:
      nouns, adjectives, verbs: words of the kind.
      english: many words, for lists that need more than the three kinds have; may be empty.
    """

    nouns: tuple[str, ...] = tuple(common_english.NOUNS.split())
    adjectives: tuple[str, ...] = tuple(common_english.ADJECTIVES.split())
    verbs: tuple[str, ...] = tuple(common_english.VERBS.split())
    english: tuple[str, ...] = ()

    @functools.cached_property
    def pairs(self) -> list[str]:
        """An adjective and a noun each, such as `old-mill`; sorted."""
        return sorted({f"{a}-{noun}" for a in self.adjectives for noun in self.nouns})

    @functools.cached_property
    def many(self) -> list[str]:
        """The largest list: `english`, or else `pairs`."""
        return list(self.english) or self.pairs

    def singles(self, seed: int) -> list[str]:
        """All nouns, adjectives and verbs, in an order that depends on the seed."""
        words = sorted({*self.nouns, *self.adjectives, *self.verbs})
        random.Random(seed).shuffle(words)
        return words

    def sentences(self, seed: int, words: int) -> tuple[str, ...]:
        """So many words or a few more in random sentences, the last of each with a period."""
        draws = random.Random(f"{seed} sentences")
        vocabulary = self.singles(seed)
        text: list[str] = []
        while len(text) < words:
            first, *others = draws.choices(vocabulary, k=draws.randint(*_WORDS_IN_SENTENCE))
            text += [first.capitalize(), *others[:-1], f"{others[-1]}."]
        return tuple(text)


BUILT_IN = WordLists()
"""The words that come with the package."""


def read_words(folder: str) -> WordLists:
    """Reads the lists of a folder.

    Args:
      folder: has the files of `FILES` and may have `MORE`, such as the folder `assets` of the
        package `wonderwords` with RULER's file beside.

    Raises:
      ValueError: a list is missing, empty or cannot be read.
    """
    try:
        path = Path(file_here(folder))
        lists = {
            kind: tuple((path / name).read_text(encoding="utf-8").split("\n"))
            for kind, name in FILES.items()
        }
        english = (path / MORE).read_bytes() if (path / MORE).exists() else b"{}"
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(
            f"words={folder!r} cannot be read: {error}; give a folder with "
            f"{', '.join(FILES.values())}, one word a line, or None for the words built in"
        ) from error
    lists = {
        kind: tuple(word.strip() for word in lines if word.strip()) for kind, lines in lists.items()
    }
    for kind, words in lists.items():
        if not words:
            raise ValueError(f"words={folder!r}: {FILES[kind]} has no words")
    more = json_text.parse_object(english, path / MORE)
    return WordLists(**lists, english=tuple(map(str, more.values())))
