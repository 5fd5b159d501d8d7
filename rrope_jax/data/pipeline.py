"""Batches of packed text for one host or many, resumable on another number of hosts."""

import dataclasses
import hashlib
import logging
import time
from collections.abc import Iterator
from typing import Any, Self

import grain
import numpy as np
from grain import experimental as grain_experimental

from rrope_jax.data.document import Documents
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
      cache_dir: folder in which token ids are kept and found again; None keeps them in memory.

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


class Batches(Iterator[Row]):
    """Endless batches of shuffled rows, this host's share of them.

    Iterating gives dicts of arrays as in `packing.Rows` with a leading axis: the host's rows of
    the global batch, which are consecutive, so that laying the hosts' parts side by side in order
    gives the same global batch for any number of hosts. Every epoch has another order; a batch may
    hold the end of one epoch and the beginning of the next, so no row is left out.

    Attributes:
      summary: what an epoch holds.
      waiting_seconds: time spent so far waiting for batches.
    """

    def __init__(
        self,
        rows: Rows,
        *,
        fingerprint: str,
        seed: int,
        batch_size: int,
        process_index: int,
        process_count: int,
        prefetch: int,
    ):
        """Use `build_batches`."""
        self.summary: Summary = rows.summary
        self.waiting_seconds = 0.0
        self._identity = {"data": fingerprint, "batch_size": batch_size}
        shuffled = grain.MapDataset.source(rows).shuffle(seed=seed).repeat()
        by_host = grain.MapDataset.source(_HostOrder(shuffled, batch_size, process_count))
        self._iterator = grain_experimental.ElasticIterator(
            by_host,
            batch_size,
            grain.sharding.ShardOptions(process_index, process_count),
            read_options=grain.ReadOptions(
                num_threads=min(_READ_THREADS, prefetch), prefetch_buffer_size=prefetch
            ),
        )

    def __next__(self) -> Row:
        began = time.perf_counter()
        batch: Row = next(self._iterator)
        self.waiting_seconds += time.perf_counter() - began
        return batch

    def state(self) -> dict[str, Any]:
        """Where the iteration is, JSON-able and the same on every host."""
        return {**self._identity, **self._iterator.get_state()}

    def restore(self, state: dict[str, Any]) -> None:
        """Goes on where `state()` was called, on this or any other number of hosts.

        Raises:
          ValueError: the state is that of other data or of another batch size.
        """
        for key, here in self._identity.items():
            if state.get(key) != here:
                raise ValueError(
                    f"the saved place in the data belongs to {key}={state.get(key)!r}, here it is "
                    f"{here!r}; continue with the text, tokenizer, length, packing, seed and batch "
                    "size that it was saved with, or begin anew"
                )
        self._iterator.set_state({k: v for k, v in state.items() if k not in self._identity})

    def close(self) -> None:
        """Ends the threads that read ahead."""
        self._iterator.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


class _HostOrder:
    """Reorders every global batch so that the hosts' strided shares are consecutive rows.

    ElasticIterator gives host p the elements p, p + P, p + 2P, ... of a batch; this puts row
    p (B / P) + j of the batch where host p reads its j-th.
    """

    def __init__(self, rows: grain.MapDataset[Row], batch_size: int, process_count: int):
        self._rows, self._batch, self._hosts = rows, batch_size, process_count

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Row:
        batch, place = divmod(index, self._batch)
        turn, host = divmod(place, self._hosts)
        row: Row = self._rows[batch * self._batch + host * (self._batch // self._hosts) + turn]
        return row


def build_batches(
    config: DataConfig,
    tokenizer: Tokenizer,
    *,
    batch_size: int,
    length: int,
    process_index: int = 0,
    process_count: int = 1,
) -> Batches:
    """Batches of the documents that are not held out.

    Args:
      config: the text and how to pack it.
      tokenizer: the model's.
      batch_size: rows of a batch over all hosts.
      length: tokens of a row.
      process_index, process_count: this host and how many there are.

    Raises:
      ValueError: the text cannot be read or leaves nothing to train on, or the sizes do not fit.
    """
    if batch_size < 1 or batch_size % process_count:
        raise ValueError(
            f"batch_size={batch_size} must be a positive multiple of the number of hosts "
            f"({process_count})"
        )
    text = documents(config)
    train = split(config, text.names).train
    order = np.random.default_rng(config.seed).permutation(len(train))
    tokens = _tokens(config, tokenizer, text, [train[i] for i in order])
    rows = Rows(tokens.arrays, length=length, packing=config.packing)
    _LOG.info("text to train on: %s", rows.summary)
    layout = f"{tokens.fingerprint} {config.packing} {length} {config.seed}"
    return Batches(
        rows,
        fingerprint=hashlib.blake2b(layout.encode(), digest_size=16).hexdigest(),
        seed=config.seed,
        batch_size=batch_size,
        process_index=process_index,
        process_count=process_count,
        prefetch=config.prefetch,
    )


def heldout_documents(config: DataConfig, tokenizer: Tokenizer) -> list[tuple[str, np.ndarray]]:
    """Names and tokens, int32[N], of the held-out documents, whole and in the source's order.

    `config.bos` applies; the token of `config.eos` is left out, as nothing of the text.

    Raises:
      ValueError: the text cannot be read or nothing of it is held out.
    """
    text = documents(config)
    heldout = split(config, text.names).heldout
    if not heldout:
        raise ValueError(
            f"no document of source={config.source!r} is held out; name some in heldout, or "
            "set heldout_share"
        )
    tokens = _tokens(config, tokenizer, text, heldout)
    end = -1 if config.eos else None
    arrays = [np.asarray(array[:end], np.int32) for array in tokens.arrays]
    return list(zip(tokens.names, arrays, strict=True))


def _tokens(
    config: DataConfig, tokenizer: Tokenizer, text: Documents, indices: list[int]
) -> Tokens:
    return tokenize(
        text, indices, tokenizer, bos=config.bos, eos=config.eos, cache_dir=config.cache_dir
    )
