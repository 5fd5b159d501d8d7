"""Batches of packed text, of which each process reads its own rows."""

import functools
import hashlib
import logging
import math
import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Protocol, Self

import grain
import numpy as np

from rrope_jax.data.config import DataConfig as DataConfig  # also found here by users
from rrope_jax.data.corpus import Corpus
from rrope_jax.data.packing import Row, Rows, Summary
from rrope_jax.data.token_store import Tokens
from rrope_jax.data.tokenizers import Tokenizer

_LOG = logging.getLogger(__name__)

# Assembling a row only copies memory, so a few threads are fast enough for any model.
_READ_THREADS = 4


class RowSequence(Protocol):
    """The rows of a whole run in order; their number is larger than any run needs."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Row: ...


class TextBatches(Iterator[Row]):
    """An infinite iterator over batches of shuffled rows; yields this process's rows of each.

    A batch is a dict of arrays as in `packing.Rows` with a leading axis for the requested rows, in
    the requested order. The content of a batch does not depend on how its rows are divided among
    processes. Each epoch is shuffled differently. A batch may span two epochs, so no row is
    dropped.

    Attributes:
      summary: statistics of one epoch, of all texts together if there are several.
      waiting_seconds: total time spent waiting for batches.
    """

    def __init__(
        self,
        rows_of_run: RowSequence,
        *,
        summary: Summary,
        fingerprint: str,
        batch_size: int,
        rows: Sequence[int],
        prefetch: int,
    ):
        """Not for direct use; call `Text.batches` or `Mixture.batches`."""
        self.summary = summary
        self.waiting_seconds = 0.0
        self._identity = {"data": fingerprint, "batch_size": batch_size}
        self._batch_size, self._prefetch = batch_size, prefetch
        self._source = _OwnRows(rows_of_run, batch_size, rows)
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
        return {**self._identity, _NEXT_ROW: self.rows_before}

    @property
    def rows_before(self) -> int:
        """The number of rows before the next batch, over all processes."""
        return self._step * self._batch_size

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

    def __init__(self, rows: RowSequence, batch_size: int, numbers: Sequence[int]):
        self.own = len(numbers)
        self._rows, self._batch_size, self._numbers = rows, batch_size, numbers

    def __len__(self) -> int:
        return len(self._rows) // self._batch_size * self.own

    def __getitem__(self, index: int) -> Row:
        step, place = divmod(index, self.own)
        row: Row = self._rows[step * self._batch_size + self._numbers[place]]
        return row


class PackedText(NamedTuple):
    """The rows of a text, and their order over all epochs.

    Attributes:
      rows: the rows of an epoch, unshuffled.
      shuffled: the rows of all epochs, of which each is shuffled differently.
      fingerprint: a string that changes with any row or the order.
    """

    rows: Rows
    shuffled: grain.MapDataset[Row]
    fingerprint: str


class Text:
    """The text of a config, opened and split once; each part is tokenized on first use."""

    def __init__(self, config: DataConfig, tokenizer: Tokenizer, corpus: Corpus | None = None):
        """Opens the source.

        Args:
          config: the text source, and how to pack it.
          tokenizer: the model's tokenizer.
          corpus: the source, if it is open already.

        Raises:
          ValueError: the text cannot be read.
        """
        self._config = config
        self._corpus = corpus or Corpus(config, config, tokenizer)

    @property
    def holds_out(self) -> bool:
        """Whether a document is held out, of whatever size."""
        return self._corpus.holds_out

    def trained_on_by(self, other: "Text") -> tuple[str, str] | None:
        """A document held out here that another text trains on, by its names in both; or None.

        Texts of sizes that do not meet have no document in common.
        """
        sizes = (self._config, other._config)
        smallest = max(config.min_tokens or 0 for config in sizes)
        largest = min(config.max_tokens or math.inf for config in sizes)
        if self._corpus is other._corpus or smallest > largest:
            return None
        return self._corpus.trained_on_by(other._corpus)

    @functools.cached_property
    def heldout(self) -> list[tuple[str, np.ndarray]]:
        """The name and all tokens, int32[N], of each held-out document, in the source's order.

        The tokens start with `bos` if `config.bos`. They never end with `eos`, which is not part of
        the text.

        Raises:
          ValueError: the text cannot be read, or no document is held out.
        """
        config = self._config
        if not self.holds_out:
            raise ValueError(
                f"no document of source={config.source!r} is held out; name some in heldout, "
                "or set heldout_share"
            )
        tokens = self._corpus.heldout.of_sizes(config.min_tokens, config.max_tokens)
        end = -1 if config.eos else None
        arrays = (np.asarray(array[:end], np.int32) for array in tokens.arrays)
        return list(zip(tokens.names, arrays, strict=True))

    @functools.cached_property
    def train(self) -> Tokens:
        """The tokens of the training documents (those not held out), shuffled.

        Raises:
          ValueError: the text cannot be read.
        """
        return self._corpus.train.of_sizes(self._config.min_tokens, self._config.max_tokens)

    def pack(self, length: int) -> PackedText:
        """Packs the training documents into rows.

        Args:
          length: tokens per row.

        Raises:
          ValueError: there is no text to train on, or the length is out of range.
        """
        config = self._config
        rows = Rows(self.train.arrays, length=length, packing=config.packing)
        layout = f"{self.train.fingerprint} {config.packing} {length} {config.seed}"
        shuffled = grain.MapDataset.source(rows).shuffle(seed=config.seed).repeat()
        return PackedText(
            rows, shuffled, hashlib.blake2b(layout.encode(), digest_size=16).hexdigest()
        )

    def batches(
        self,
        *,
        batch_size: int,
        length: int,
        rows: Sequence[int] | None = None,
        steps: int | None = None,
    ) -> TextBatches:
        """Returns batches of the training documents (those not held out).

        Args:
          batch_size: rows per batch over all processes.
          length: tokens per row.
          rows: indices of the rows of a batch that this process provides, in any order; None for
            all.
          steps: number of batches that the whole run reads, for `max_epochs`; None to not check it.

        Raises:
          ValueError: there is no text to train on or too little, or an argument is out of range.
        """
        own_rows = check_rows(rows, batch_size)
        packed = self.pack(length)
        _LOG.info("text to train on: %s", packed.rows.summary)
        if steps is not None:
            check_epochs(self._config.max_epochs, len(packed.rows), steps * batch_size)
        return TextBatches(
            packed.shuffled,
            summary=packed.rows.summary,
            fingerprint=packed.fingerprint,
            batch_size=batch_size,
            rows=own_rows,
            prefetch=self._config.prefetch,
        )


def check_rows(rows: Sequence[int] | None, batch_size: int) -> Sequence[int]:
    """The indices of a process's rows of a batch; raises ValueError if they are none of it."""
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size} must be at least 1")
    own_rows = range(batch_size) if rows is None else tuple(rows)
    if not own_rows or not all(0 <= row < batch_size for row in own_rows):
        raise ValueError(
            f"rows={own_rows} must be some of the {batch_size} rows of a batch, from 0 to "
            f"{batch_size - 1}"
        )
    return own_rows


def check_epochs(max_epochs: int | None, rows: int, needed: int) -> None:
    """Raises ValueError if training reads a text more often than it may.

    Args:
      max_epochs: how often it may; None for no bound.
      rows: rows of an epoch.
      needed: rows that training reads.
    """
    if max_epochs is not None and needed > max_epochs * rows:
        raise ValueError(
            f"max_epochs={max_epochs}, but training reads {needed} rows of this text, which has "
            f"{rows}: {needed / rows:.3g} epochs; give more text or a lower share of the steps, or "
            "raise max_epochs"
        )
