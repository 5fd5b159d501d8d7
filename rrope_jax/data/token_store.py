"""The token ids of all documents of a source, made once."""

import hashlib
import io
import json
import logging
import shutil
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO

import numpy as np

from rrope_jax.data.document import Documents
from rrope_jax.data.tokenizers import Tokenizer

_LOG = logging.getLogger(__name__)

_TOKENS, _SIZES, _META = "tokens.bin", "sizes.npy", "store.json"
_FORMAT = 1  # part of the key, so that another layout goes to another folder
_SECONDS_BETWEEN_LINES = 10.0


class TokenStore:
    """Token ids of documents, in memory or in a file that is read as needed.

    Attributes:
      names: of the N documents.
      fingerprint: another one whenever a name or a token is another.
    """

    def __init__(self, names: Sequence[str], sizes_N: np.ndarray, tokens: np.ndarray, content: str):
        """Use `tokenize`.

        Args:
          names: of the documents.
          sizes_N: int64[N], tokens of each.
          tokens: unsigned integers, the documents one after another.
          content: digest of `tokens`.
        """
        self.names = names
        self.fingerprint = _digest(*names, sizes_N.tobytes(), content)
        self._tokens = tokens
        self._bounds = np.concatenate([[0], np.cumsum(sizes_N)]).tolist()

    def select(self, indices: Sequence[int]) -> list[np.ndarray]:
        """Tokens of some documents, views of what the store holds."""
        return [self._tokens[self._bounds[i] : self._bounds[i + 1]] for i in indices]


def tokenize(
    documents: Documents,
    tokenizer: Tokenizer,
    *,
    bos: bool = False,
    eos: bool = False,
    cache_dir: str | None = None,
) -> TokenStore:
    """Tokenizes every document, or finds what was made earlier.

    Args:
      documents: the text.
      tokenizer: of the model.
      bos, eos: whether the tokenizer's special token begins and ends every document.
      cache_dir: keeps the ids in a subfolder of its own for every text and tokenizer; several hosts
        may share it. None keeps them in memory.

    Raises:
      ValueError: the tokenizer lacks a special token that is asked for, a document cannot be read,
        or cache_dir cannot be written.
    """
    around = _special(tokenizer, "bos", bos), _special(tokenizer, "eos", eos)
    dtype = np.dtype(np.uint16 if tokenizer.vocab_size <= 2**16 else np.uint32)
    if cache_dir is None:
        buffer = io.BytesIO()
        sizes_N, content = _write(buffer, documents, tokenizer, around, dtype)
        tokens = np.frombuffer(buffer.getbuffer(), dtype)
        return TokenStore(documents.names, sizes_N, tokens, content)
    key = _digest(str(_FORMAT), documents.fingerprint, tokenizer.fingerprint, repr(around))
    folder = Path(cache_dir) / f"tokens-{key}"
    try:
        if not _is_whole(folder):
            _make(folder, documents, tokenizer, around, dtype)
        return _load(folder, documents.names)
    except OSError as error:
        raise ValueError(
            f"cache_dir={cache_dir!r} cannot be used: {error.strerror or error}; give a folder "
            "with room that can be written, or None to keep the token ids in memory"
        ) from error


def _special(tokenizer: Tokenizer, name: str, wanted: bool) -> list[int]:
    if not wanted:
        return []
    token: int | None = getattr(tokenizer, f"{name}_id")
    if token is None:
        raise ValueError(f"{name}=True, but the tokenizer has no such token; set {name}=False")
    return [token]


def _write(
    file: IO[bytes],
    documents: Documents,
    tokenizer: Tokenizer,
    around: tuple[list[int], list[int]],
    dtype: np.dtype,
) -> tuple[np.ndarray, str]:
    """Writes the ids of all documents; returns int64[N] sizes and the digest of all ids."""
    before, after = (np.array(special, np.int32) for special in around)
    sizes: list[int] = []
    digest = hashlib.blake2b(dtype.name.encode(), digest_size=16)
    said = time.monotonic()
    for ids in tokenizer.encode_all(document.text for document in documents):
        data = np.concatenate([before, ids, after]).astype(dtype).tobytes()
        file.write(data)
        digest.update(data)
        sizes.append(len(data) // dtype.itemsize)
        if time.monotonic() - said > _SECONDS_BETWEEN_LINES:
            said = time.monotonic()
            _LOG.info("tokenized %d of %d documents", len(sizes), len(documents))
    return np.array(sizes, np.int64), digest.hexdigest()


def _make(
    folder: Path,
    documents: Documents,
    tokenizer: Tokenizer,
    around: tuple[list[int], list[int]],
    dtype: np.dtype,
) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        with (temporary / _TOKENS).open("wb") as file:
            sizes_N, content = _write(file, documents, tokenizer, around, dtype)
        np.save(temporary / _SIZES, sizes_N)
        meta = {"dtype": dtype.name, "content": content}
        (temporary / _META).write_text(json.dumps(meta))
        temporary.chmod(0o755)  # other hosts may read as other users
        try:
            temporary.rename(folder)
        except OSError:
            if not _is_whole(folder):  # else another process has made it meanwhile
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _is_whole(folder: Path) -> bool:
    """Whether there is a store; one that was cut short is removed."""
    if not folder.exists():
        return False
    try:
        meta = json.loads((folder / _META).read_text())
        expected = int(np.load(folder / _SIZES).sum()) * np.dtype(meta["dtype"]).itemsize
        if (folder / _TOKENS).stat().st_size == expected:
            return True
    except (OSError, ValueError, KeyError):
        pass
    _LOG.warning("%s is damaged and made again", folder)
    shutil.rmtree(folder)
    return False


def _load(folder: Path, names: Sequence[str]) -> TokenStore:
    meta = json.loads((folder / _META).read_text())
    sizes_N = np.load(folder / _SIZES)
    tokens = np.zeros(0, meta["dtype"])  # an empty file cannot be mapped
    if sizes_N.sum():
        tokens = np.memmap(folder / _TOKENS, meta["dtype"], mode="r")
    return TokenStore(names, sizes_N, tokens, meta["content"])


def _digest(*parts: str | bytes) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        data = part.encode(errors="surrogatepass") if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8) + data)
    return digest.hexdigest()
