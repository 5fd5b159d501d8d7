"""Batches of packed text; each of any number of processes reads its own rows."""

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

# Assembling a row is copying memory, so few threads keep up with any model.
_READ_THREADS = 4


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig(TextConfig):
    """The fields of `config.data`: where text is and how it becomes rows.

    Attributes:
      tokenizer: as in `load_tokenizer`; None for the one that travels with the model.
      bos, eos: whether every document begins and ends with the tokenizer's special token.
      packing: a key of `packing.PACKINGS`.
      seed: of the order of documents and of rows.
      prefetch: batches that are made ahead.
      cache_dir: folder that caches token ids; None keeps them in memory.

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
    """Endless batches of shuffled rows, of each the rows that this process provides.

    Iterating gives dicts of arrays as in `packing.Rows` with a leading axis: the rows asked for, in
    that order. Which rows a batch has does not depend on who reads them. Every epoch has another
    order; a batch may hold the end of one epoch and the beginning of the next, so no row is left
    out.

    Attributes:
      summary: what an epoch holds.
      waiting_seconds: time spent so far waiting for batches.
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
        """Use `Text.batches`."""
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
        """Where the iteration is, JSON-able and the same on every host."""
        return {**self._identity, _NEXT_ROW: self._step * self._batch_size}

    def restore(self, state: dict[str, Any]) -> None:
        """Resumes where `state()` was called, with these or any other rows of the same batches.

        Raises:
          ValueError: the state is that of other data or of another batch size, or is no state.
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
        """Ends the threads that read ahead."""
        self._reader.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _read(self) -> grain.DatasetIterator[Row]:
        """Reads ahead from the next step on, once its batch is asked for."""
        own = self._source.own
        left = grain.MapDataset.source(self._source)[self._step * own :]
        options = grain.ReadOptions(
            num_threads=min(_READ_THREADS, self._prefetch), prefetch_buffer_size=self._prefetch
        )
        return iter(left.batch(own, drop_remainder=True).to_iter_dataset(options))


# Where `TextBatches.state` keeps the number of rows that lie before the next batch.
_NEXT_ROW = "global_next_index"


class _OwnRows:
    """The rows that a process provides, batch after batch, of an endless sequence of rows.

    Attributes:
      own: how many of each batch.
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
    """The text of a config: opened and split once, each part tokenized once when it is needed."""

    def __init__(self, config: DataConfig, tokenizer: Tokenizer):
        """Opens the source.

        Args:
          config: the text and how to pack it.
          tokenizer: the model's.

        Raises:
          ValueError: the text cannot be read.
        """
        self._config, self._tokenizer = config, tokenizer
        self._documents = documents(config)
        self._parts = split(config, self._documents.names)

    @functools.cached_property
    def heldout(self) -> list[tuple[str, np.ndarray]]:
        """Names and tokens, int32[N], of the held-out documents, whole and in the source's order.

        `config.bos` applies; the token of `config.eos` is left out, as it is no part of the text.

        Raises:
          ValueError: the text cannot be read or nothing of it is held out.
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
        """The tokens of the documents that are not held out, shuffled.

        Raises:
          ValueError: the text cannot be read.
        """
        random = np.random.default_rng(self._config.seed)
        return self._tokenize(self._parts.train[random.permutation(len(self._parts.train))])

    def batches(
        self, *, batch_size: int, length: int, rows: Sequence[int] | None = None
    ) -> TextBatches:
        """Batches of the documents that are not held out.

        Args:
          batch_size: rows of a batch over all processes.
          length: tokens of a row.
          rows: numbers of the rows of a batch that this process provides, in any order; all by
            default.

        Raises:
          ValueError: the text leaves nothing to train on, or the sizes do not fit.
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
