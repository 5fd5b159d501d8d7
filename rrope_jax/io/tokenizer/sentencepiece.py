"""Joins characters as SentencePiece does, for vocabularies with equal scores.

A tokenizer.json lists pairs in one order, so one of two pairs is always joined first. SentencePiece
and llama.cpp join the pair with the higher score, and the leftmost of equal ones, which no list can
express. Scores are equal in vocabularies that were merged from several, and in files without any.
"""

import heapq
import re
from collections.abc import Mapping, Sequence
from typing import Any

from rrope_jax.io import json_text

_SPACE = "▁"
# So many words are kept with their ids; those of a language repeat.
_KEPT_WORDS = 1 << 16


class LeftmostFirst:
    """Encodes texts with the vocabulary of a tokenizer.json and a score for each token."""

    def __init__(self, tokenizer: Mapping[str, Any], scores: Sequence[float]) -> None:
        """Takes what `gguf_tokenizer.tokenizer_files` makes.

        Args:
          tokenizer: the content of the tokenizer.json.
          scores: by id.

        Raises:
          ValueError: there are not as many scores as tokens.
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
        # Where no token has a space behind another character, none is joined across one.
        across = any(re.search(f"[^{_SPACE}]{_SPACE}", token) for token in self._id_of)
        self._words = None if across else re.compile(f"{_SPACE}*[^{_SPACE}]+|{_SPACE}+")
        self._kept: dict[str, list[int]] = {}

    def encode(self, text: str) -> list[int]:
        """Ids of a text; spellings of added tokens are those tokens."""
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
                continue  # one of them was joined with another since
            symbols[left], symbols[right] = joined, None
            after[left] = after[right]
            if after[right] >= 0:
                before[after[right]] = left
            offer(before[left], left)
            offer(left, after[left])
        return [index for symbol in symbols if symbol is not None for index in self._ids(symbol)]

    def _ids(self, symbol: str) -> list[int]:
        """A token, or the bytes of a character that is none."""
        if (index := self._id_of.get(symbol)) is not None:
            return [index]
        spelled = [f"<0x{byte:02X}>" for byte in symbol.encode(errors="surrogatepass")]
        if all(each in self._id_of for each in spelled):
            return [self._id_of[each] for each in spelled]
        return [] if self._unknown is None else [self._unknown]


def scores_of(data: bytes) -> list[float]:
    """The scores in a file of `tokenizer_files.SCORES`.

    Raises:
      ValueError: they are not a list of numbers.
    """
    try:
        scores = json_text.parse(data)["scores"]
        return [float(score) for score in scores]
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"its scores are damaged ({error})") from error


def has_ties(pairs: Sequence[tuple[float, str]]) -> bool:
    """Whether two different tokens that pairs are joined to have one score.

    Args:
      pairs: score and token of each pair.
    """
    token_of: dict[float, str] = {}
    return any(token_of.setdefault(score, token) != token for score, token in pairs)
