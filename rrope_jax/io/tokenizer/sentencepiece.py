"""Merges characters as SentencePiece does, for vocabularies with equal scores.

SentencePiece and llama.cpp merge the pair with the highest score and, among equals, the leftmost. A
tokenizer.json cannot express this: it ranks pairs in a fixed order. Equal scores occur in
vocabularies that were combined from several, and in files without scores.
"""

import heapq
import re
from collections.abc import Mapping, Sequence
from typing import Any

from rrope_jax.io import json_text

_SPACE = "▁"
# Number of words whose ids are cached, since most words of a text repeat.
_KEPT_WORDS = 1 << 16


class LeftmostFirst:
    """Encodes text with the vocabulary of a tokenizer.json and a score for each token."""

    def __init__(self, tokenizer: Mapping[str, Any], scores: Sequence[float]) -> None:
        """Takes the files that `io.gguf.tokenizer.tokenizer_files` makes.

        Args:
          tokenizer: the content of tokenizer.json.
          scores: the score of each token, by id.

        Raises:
          ValueError: the numbers of scores and tokens differ.
        """
        self._id_of: dict[str, int] = tokenizer["model"]["vocab"]
        if len(scores) != len(self._id_of):
            raise ValueError(f"{len(scores)} scores for {len(self._id_of)} tokens")
        self._scores = scores
        unknown = tokenizer["model"].get("unk_token")
        self._unknown = None if unknown is None else self._id_of[unknown]
        self._added = {entry["content"]: entry["id"] for entry in tokenizer["added_tokens"]}
        longest_first = sorted(self._added, key=len, reverse=True)
        pattern = "|".join(map(re.escape, longest_first))
        self._split = re.compile(f"({pattern})") if pattern else None
        steps = tokenizer["normalizer"]["normalizers"]
        self._prefix = _SPACE if any(step["type"] == "Prepend" for step in steps) else ""
        # If no token has a space after another character, no merge crosses a word boundary.
        across = any(re.search(f"[^{_SPACE}]{_SPACE}", token) for token in self._id_of)
        self._words = None if across else re.compile(f"{_SPACE}*[^{_SPACE}]+|{_SPACE}+")
        self._kept: dict[str, list[int]] = {}

    def encode(self, text: str) -> list[int]:
        """Encodes a text; spellings of added tokens in it become those tokens."""
        pieces = [text] if self._split is None else self._split.split(text)
        ids: list[int] = []
        for piece in pieces:
            if piece in self._added:
                ids.append(self._added[piece])
            elif piece:
                spaced = self._prefix + piece.replace(" ", _SPACE)
                words = [spaced] if self._words is None else self._words.findall(spaced)
                for word in words:
                    ids += self._word(word)
        return ids

    def _word(self, word: str) -> list[int]:
        ids = self._kept.get(word)
        if ids is None:
            ids = self._join(word)
            if len(self._kept) < _KEPT_WORDS:
                self._kept[word] = ids
        return ids

    def _join(self, word: str) -> list[int]:
        symbols: list[str | None] = list(word)
        after = [*range(1, len(word)), -1]
        before = list(range(-1, len(word) - 1))
        queue: list[tuple[float, int, int, str]] = []

        def offer(left: int, right: int) -> None:
            if left < 0 or right < 0:
                return
            joined = f"{symbols[left]}{symbols[right]}"
            if (index := self._id_of.get(joined)) is not None:
                heapq.heappush(queue, (-self._scores[index], left, right, joined))

        for left in range(len(word) - 1):
            offer(left, left + 1)
        while queue:
            _, left, right, joined = heapq.heappop(queue)
            first, second = symbols[left], symbols[right]
            if first is None or second is None or len(first) + len(second) != len(joined):
                continue  # one of them has been merged with another in the meantime
            symbols[left], symbols[right] = joined, None
            after[left] = after[right]
            if after[right] >= 0:
                before[after[right]] = left
            offer(before[left], left)
            offer(left, after[left])
        return [index for symbol in symbols if symbol is not None for index in self._ids(symbol)]

    def _ids(self, symbol: str) -> list[int]:
        """The id of a token, or the ids of a character's bytes if it is not a token."""
        if (index := self._id_of.get(symbol)) is not None:
            return [index]
        spelled = [f"<0x{byte:02X}>" for byte in symbol.encode(errors="surrogatepass")]
        if all(each in self._id_of for each in spelled):
            return [self._id_of[each] for each in spelled]
        return [] if self._unknown is None else [self._unknown]


def scores_of(data: bytes) -> list[float]:
    """Parses the content of a `SCORES` file.

    Raises:
      ValueError: the content has no list of numbers.
    """
    try:
        scores = json_text.parse(data)["scores"]
        return [float(score) for score in scores]
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"its scores are damaged ({error})") from error


def has_ties(pairs: Sequence[tuple[float, str]]) -> bool:
    """Whether two different merged tokens have the same score.

    Args:
      pairs: the score and the merged token of each pair.
    """
    token_of: dict[float, str] = {}
    return any(token_of.setdefault(score, token) != token for score, token in pairs)
