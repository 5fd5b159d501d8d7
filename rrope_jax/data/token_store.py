"""Tokenizes documents, in memory or with a cache on disk."""

import hashlib
import io
import itertools
import json
import logging
import shutil
import time
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from rrope_jax.data.document import Document, Documents, Names
from rrope_jax.data.tokenizers import Tokenizer
from rrope_jax.io.target import made_once

_LOG = logging.getLogger(__name__)

_TOKENS, _TABLE, _META = "tokens.bin", "documents.npy", "store.json"
_FORMAT = 1  # part of the key, so that other layouts go to other folders
# The table's row for a document: its number of tokens, and a digest of them.
_ROW = np.dtype([("size", np.int64), ("digest", np.uint8, 16)])
_SECONDS_BETWEEN_LINES = 10.0


class Tokens(NamedTuple):
    """The token ids of some documents.

    Attributes:
      names: the documents' names.
      arrays: the token ids of each document, uint16[N] or uint32[N], as views of memory or of a
        memory-mapped file.
      fingerprint: a string that changes with any name, any token or the order.
    """

    names: Sequence[str]
    arrays: Sequence[np.ndarray]
    fingerprint: str

    def of_sizes(self, smallest: int | None, largest: int | None) -> "Tokens":
        """The documents of `smallest` to `largest` tokens; None sets no bound.

        The fingerprint is that of all documents and the bounds.
        """
        if smallest is None and largest is None:
            return self
        sizes_N = np.array([len(array) for array in self.arrays], np.int64)
        inside_N = sizes_N >= (smallest or 0)
        if largest is not None:
            inside_N &= sizes_N <= largest
        places = np.flatnonzero(inside_N)
        return Tokens(
            Names(len(places), lambda place: self.names[places[place]]),
            _Chosen(self.arrays, places),
            _digest([self.fingerprint, f"{smallest} {largest}"]),
        )


def tokenize(
    documents: Documents,
    indices: Sequence[int] | np.ndarray,
    tokenizer: Tokenizer,
    *,
    bos: bool = False,
    eos: bool = False,
    cache_dir: str | None = None,
) -> Tokens:
    """Tokenizes documents, or reads their ids from the cache.

    Args:
      documents: the documents of a source.
      indices: the documents to return, without duplicates, in the order of the result.
      tokenizer: the model's tokenizer.
      bos, eos: whether to add the tokenizer's `bos` token before each document, and `eos` after.
      cache_dir: folder for the ids of all documents, with one subfolder per text and tokenizer;
        hosts may share it. None tokenizes only the documents in `indices`, in memory.

    Raises:
      ValueError: the tokenizer lacks a requested special token, a document cannot be read, or
        `cache_dir` cannot be used.
    """
    indices = np.asarray(indices, np.int64)
    writer = _TokenWriter(
        tokenizer, _special(tokenizer, "bos", bos), _special(tokenizer, "eos", eos)
    )
    if cache_dir is None:
        buffer = io.BytesIO()
        stored = np.sort(indices)  # reading in file order is fastest
        table = writer.write(buffer, documents.read(stored.tolist()), len(stored))
        tokens = np.frombuffer(buffer.getbuffer(), writer.dtype)
    else:
        stored = np.arange(len(documents))
        folder = Path(cache_dir) / f"tokens-{writer.key(documents)}"
        try:
            if not _is_whole(folder):
                _make(folder, documents, writer)
            tokens, table = _load(folder)
        except OSError as error:
            raise ValueError(
                f"cache_dir={cache_dir!r} cannot be used: {error.strerror or error}; give a folder "
                "with room that can be written, or None to keep the token ids in memory"
            ) from error
    stops = np.cumsum(table["size"])
    places = np.searchsorted(stored, indices)
    names = Names(len(indices), lambda place: documents.names[indices[place]])
    return Tokens(
        names,
        _Slices(tokens, (stops - table["size"])[places], stops[places]),
        _digest(itertools.chain([writer.dtype.name], names, [table[places].tobytes()])),
    )


class _Slices(Sequence[np.ndarray]):
    """Slices of one array that are made on access, since there may be millions."""

    def __init__(self, array: np.ndarray, starts_N: np.ndarray, stops_N: np.ndarray):
        self._array, self._starts_N, self._stops_N = array, starts_N, stops_N

    def __len__(self) -> int:
        return len(self._starts_N)

    def __getitem__(self, index: Any) -> Any:
        return self._array[self._starts_N[index] : self._stops_N[index]]


class _Chosen(Sequence[np.ndarray]):
    """Some elements of a sequence of arrays, which are made on access."""

    def __init__(self, arrays: Sequence[np.ndarray], places: np.ndarray):
        self._arrays, self._places = arrays, places

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: Any) -> Any:
        return self._arrays[self._places[index]]


def _special(tokenizer: Tokenizer, name: str, is_added: bool) -> list[int]:
    if not is_added:
        return []
    token: int | None = getattr(tokenizer, f"{name}_id")
    if token is None:
        raise ValueError(f"{name}=True, but the tokenizer has no such token; set {name}=False")
    return [token]


class _TokenWriter:
    """Tokenizes documents and writes their ids."""

    def __init__(self, tokenizer: Tokenizer, before: list[int], after: list[int]):
        self._tokenizer = tokenizer
        self._before, self._after = np.array(before, np.int32), np.array(after, np.int32)
        self.dtype = np.dtype(np.uint16 if tokenizer.vocab_size <= 2**16 else np.uint32)

    def key(self, documents: Documents) -> str:
        """Returns a digest of everything that the ids of these documents depend on."""
        around = f"{self._before.tolist()} {self._after.tolist()}"
        return _digest([str(_FORMAT), documents.fingerprint, self._tokenizer.fingerprint, around])

    def write(self, file: IO[bytes], documents: Iterable[Document], count: int) -> np.ndarray:
        """Writes the ids of `count` documents in sequence; returns their rows, [count]."""
        table = np.zeros(count, _ROW)
        said = time.monotonic()
        arrays = self._tokenizer.encode_all(document.text for document in documents)
        for place, ids in enumerate(arrays):
            data = np.concatenate([self._before, ids, self._after]).astype(self.dtype).tobytes()
            file.write(data)
            digest = hashlib.blake2b(data, digest_size=_ROW["digest"].itemsize).digest()
            table[place] = len(data) // self.dtype.itemsize, np.frombuffer(digest, np.uint8)
            if time.monotonic() - said > _SECONDS_BETWEEN_LINES:
                said = time.monotonic()
                _LOG.info("tokenized %d of %d documents", place + 1, count)
        return table


def _make(folder: Path, documents: Documents, writer: _TokenWriter) -> None:
    with made_once(folder, _is_whole) as new:
        with (new / _TOKENS).open("wb") as file:
            table = writer.write(file, documents, len(documents))
        np.save(new / _TABLE, table)
        (new / _META).write_text(json.dumps({"dtype": writer.dtype.name}))


def _is_whole(folder: Path) -> bool:
    """Whether a folder is a complete cache; removes a damaged one."""
    if not folder.exists():
        return False
    try:
        tokens, table = _load(folder)
        if len(tokens) == table["size"].sum():
            return True
    except (OSError, EOFError, ValueError, LookupError, TypeError, zipfile.BadZipFile):
        pass  # all that JSON and numpy raise for damaged files
    _LOG.warning("%s is damaged and made again", folder)
    shutil.rmtree(folder)
    return False


def _load(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Loads the ids of all documents, and the table."""
    dtype = json.loads((folder / _META).read_text())["dtype"]
    table = np.load(folder / _TABLE)
    if (folder / _TOKENS).stat().st_size == 0:  # an empty file cannot be mapped
        return np.zeros(0, dtype), table
    return np.memmap(folder / _TOKENS, dtype, mode="r"), table


def _digest(parts: Iterable[str | bytes]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        data = part.encode(errors="surrogatepass") if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8) + data)
    return digest.hexdigest()
