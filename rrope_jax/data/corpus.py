"""The documents of one text, split once and tokenized on first use."""

import functools

import numpy as np

from rrope_jax.data.config import ReadingConfig
from rrope_jax.data.text import TextConfig, documents, split
from rrope_jax.data.token_store import Tokens, tokenize
from rrope_jax.data.tokenizers import Tokenizer


class Corpus:
    """A text: its training and its held-out documents.

    Attributes:
      holds_out: whether a document is held out.
    """

    def __init__(self, config: TextConfig, reading: ReadingConfig, tokenizer: Tokenizer):
        """Opens the source.

        Args:
          config: the text source.
          reading: how to tokenize and order it.
          tokenizer: the model's tokenizer.

        Raises:
          ValueError: the text cannot be read.
        """
        self._reading, self._tokenizer = reading, tokenizer
        self._documents = documents(config)
        self._parts = split(config, self._documents.names)
        self.holds_out = bool(len(self._parts.heldout))

    def trained_on_by(self, other: "Corpus") -> tuple[str, str] | None:
        """A document held out here that another corpus trains on, by its names in both; or None."""
        ours, theirs = self._documents, other._documents
        indices = {ours.place(index): index for index in self._parts.heldout}
        for index in other._parts.train if indices else ():
            if (heldout := indices.get(theirs.place(index))) is not None:
                return ours.names[heldout], theirs.names[index]
        return None

    @functools.cached_property
    def heldout(self) -> Tokens:
        """The tokens of the held-out documents, in the source's order.

        Raises:
          ValueError: the text cannot be read.
        """
        return self._tokenize(self._parts.heldout)

    @functools.cached_property
    def train(self) -> Tokens:
        """The tokens of the training documents (those not held out), shuffled.

        Raises:
          ValueError: the text cannot be read.
        """
        random = np.random.default_rng(self._reading.seed)
        return self._tokenize(self._parts.train[random.permutation(len(self._parts.train))])

    def _tokenize(self, indices: np.ndarray) -> Tokens:
        reading = self._reading
        return tokenize(
            self._documents,
            indices,
            self._tokenizer,
            bos=reading.bos,
            eos=reading.eos,
            cache_dir=reading.cache_dir,
        )
