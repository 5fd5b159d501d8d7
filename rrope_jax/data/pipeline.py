"""Batches of packed text, of which each process reads its own rows."""

import dataclasses
import functools
import hashlib
import logging
import time
from collections.abc import Iterator, Sequence
from typing import Any, Self

import grain
import numpy as np

from rrope_jax.data.packing import PACKINGS, Row, Rows, Summary
from rrope_jax.data.text import TextConfig, documents, split
from rrope_jax.data.token_store import Tokens, tokenize
from rrope_jax.data.tokenizers import Tokenizer

_LOG = logging.getLogger(__name__)

# Assembling a row only copies memory, so a few threads are fast enough for any model.
_READ_THREADS = 4


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig(TextConfig):
    """The fields of `config.data`: the source of the text, and how to make rows of it.

    Attributes:
      tokenizer: a source as for `load_tokenizer`; None for the model's own tokenizer.
      bos, eos: whether to add the tokenizer's `bos` token before each document, and `eos` after.
      packing: a key of `packing.PACKINGS`.
      seed: seed for the order of documents and rows.
      prefetch: number of batches to prepare in advance.
      cache_dir: folder to cache token ids in; None keeps them in memory.

    Raises:
      ValueError: a field is out of range.
    """

    tokenizer: str | None = None
    bos: bool = False
    eos: bool = False
    packing: str = "documents"
    seed: int = 0
    prefetch: int = 2
    cache_dir: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.packing not in PACKINGS:
            raise ValueError(
                f"packing={self.packing!r} is unknown; choose one of {', '.join(PACKINGS)}"
            )
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"seed={self.seed} must be from 0 to 2^32 - 1")
        if self.prefetch < 1:
            raise ValueError(f"prefetch={self.prefetch} must be at least 1")


class TextBatches(Iterator[Row]):
    """An infinite iterator over batches of shuffled rows; yields this process's rows of each.

    A batch is a dict of arrays as in `packing.Rows` with a leading axis for the requested rows, in
    the requested order. The content of a batch does not depend on how its rows are divided among
    processes. Each epoch is shuffled differently. A batch may span two epochs, so no row is
    dropped.

    Attributes:
      summary: statistics of one epoch.
      waiting_seconds: total time spent waiting for batches.
    """

    def __init__(
        self,
        text: Rows,
        *,
        fingerprint: str,
        seed: int,
        batch_size: int,
        rows: Sequence[int],
        prefetch: int,
    ):
        """Not for direct use; call `Text.batches`."""
        self.summary: Summary = text.summary
        self.waiting_seconds = 0.0
        self._identity = {"data": fingerprint, "batch_size": batch_size}
        self._batch_size, self._prefetch = batch_size, prefetch
        shuffled = grain.MapDataset.source(text).shuffle(seed=seed).repeat()
        self._source = _OwnRows(shuffled, batch_size, rows)
        self._step = 0
        self._reader = self._read()

    def __next__(self) -> Row:
        began = time.perf_counter()
        batch: Row = next(self._reader)
        self._step += 1
        self.waiting_seconds += time.perf_counter() - began
        return batch

    def state(self) -> dict[str, Any]:
        """Returns the position of the iterator, JSON-serializable and the same on every host."""
        return {**self._identity, _NEXT_ROW: self._step * self._batch_size}

    def restore(self, state: dict[str, Any]) -> None:
        """Resumes where `state()` was called, even if by a process with other rows of the batches.

        Raises:
          ValueError: the state is invalid, or belongs to other data or another batch size.
        """
        for key, here in self._identity.items():
            if state.get(key) != here:
                raise ValueError(
                    f"the saved place in the data belongs to {key}={state.get(key)!r}, here it is "
                    f"{here!r}; continue with the text, tokenizer, length, packing, seed and batch "
                    "size that it was saved with, or begin anew"
                )
        row = state.get(_NEXT_ROW)
        if type(row) is not int or row < 0 or row % self._batch_size:
            raise ValueError(
                f"the saved place in the data has {_NEXT_ROW}={row!r}, which is no beginning of a "
                f"batch of {self._batch_size} rows; restore an earlier checkpoint, or begin anew"
            )
        self.close()
        self._step = row // self._batch_size
        self._reader = self._read()

    def close(self) -> None:
        """Stops the threads that prefetch."""
        self._reader.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _read(self) -> grain.DatasetIterator[Row]:
        """Creates an iterator from the current step on; the first access starts prefetching."""
        own = self._source.own
        left = grain.MapDataset.source(self._source)[self._step * own :]
        options = grain.ReadOptions(
            num_threads=min(_READ_THREADS, self._prefetch), prefetch_buffer_size=self._prefetch
        )
        return iter(left.batch(own, drop_remainder=True).to_iter_dataset(options))


# The key in `TextBatches.state` for the number of rows before the next batch.
_NEXT_ROW = "global_next_index"


class _OwnRows:
    """The rows of an endless sequence that one process provides, batch by batch.

    Attributes:
      own: number of this process's rows in each batch.
    """

    def __init__(self, rows: grain.MapDataset[Row], batch_size: int, numbers: Sequence[int]):
        self.own = len(numbers)
        self._rows, self._batch_size, self._numbers = rows, batch_size, numbers

    def __len__(self) -> int:
        return len(self._rows) // self._batch_size * self.own

    def __getitem__(self, index: int) -> Row:
        step, place = divmod(index, self.own)
        row: Row = self._rows[step * self._batch_size + self._numbers[place]]
        return row


class Text:
    """The text of a config, opened and split once; each part is tokenized on first use."""

    def __init__(self, config: DataConfig, tokenizer: Tokenizer):
        """Opens the source.

        Args:
          config: the text source, and how to pack it.
          tokenizer: the model's tokenizer.

        Raises:
          ValueError: the text cannot be read.
        """
        self._config, self._tokenizer = config, tokenizer
        self._documents = documents(config)
        self._parts = split(config, self._documents.names)

    @functools.cached_property
    def heldout(self) -> list[tuple[str, np.ndarray]]:
        """The name and all tokens, int32[N], of each held-out document, in the source's order.

        The tokens start with `bos` if `config.bos`. They never end with `eos`, which is not part of
        the text.

        Raises:
          ValueError: the text cannot be read, or no document is held out.
        """
        if not len(self._parts.heldout):
            raise ValueError(
                f"no document of source={self._config.source!r} is held out; name some in heldout, "
                "or set heldout_share"
            )
        tokens = self._tokenize(self._parts.heldout)
        end = -1 if self._config.eos else None
        arrays = (np.asarray(array[:end], np.int32) for array in tokens.arrays)
        return list(zip(tokens.names, arrays, strict=True))

    @functools.cached_property
    def train(self) -> Tokens:
        """The tokens of the training documents (those not held out), shuffled.

        Raises:
          ValueError: the text cannot be read.
        """
        random = np.random.default_rng(self._config.seed)
        return self._tokenize(self._parts.train[random.permutation(len(self._parts.train))])

    def batches(
        self, *, batch_size: int, length: int, rows: Sequence[int] | None = None
    ) -> TextBatches:
        """Returns batches of the training documents (those not held out).

        Args:
          batch_size: rows per batch over all processes.
          length: tokens per row.
          rows: indices of the rows of a batch that this process provides, in any order; None for
            all.

        Raises:
          ValueError: there is no text to train on, or an argument is out of range.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size} must be at least 1")
        own_rows = range(batch_size) if rows is None else tuple(rows)
        if not own_rows or not all(0 <= row < batch_size for row in own_rows):
            raise ValueError(
                f"rows={own_rows} must be some of the {batch_size} rows of a batch, from 0 to "
                f"{batch_size - 1}"
            )
        config = self._config
        packed = Rows(self.train.arrays, length=length, packing=config.packing)
        _LOG.info("text to train on: %s", packed.summary)
        layout = f"{self.train.fingerprint} {config.packing} {length} {config.seed}"
        return TextBatches(
            packed,
            fingerprint=hashlib.blake2b(layout.encode(), digest_size=16).hexdigest(),
            seed=config.seed,
            batch_size=batch_size,
            rows=own_rows,
            prefetch=config.prefetch,
        )

    def _tokenize(self, indices: np.ndarray) -> Tokens:
        config = self._config
        return tokenize(
            self._documents,
            indices,
            self._tokenizer,
            bos=config.bos,
            eos=config.eos,
            cache_dir=config.cache_dir,
        )
