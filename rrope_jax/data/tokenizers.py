"""Text to token ids and back: Hugging Face tokenizer files, and bytes."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import tokenizers

from rrope_jax.io.pretrained import describe
from rrope_jax.io.tokenizer_files import TokenizerFiles

BYTES = "bytes"
"""The source that names the byte tokenizer."""

_TOKENIZER = "tokenizer.json"
# Later files win where both name a token.
_SPECIAL_TOKEN_FILES = ("special_tokens_map.json", "tokenizer_config.json")
# Texts go to the Rust side so many characters at a time: enough to busy all cores, few enough that
# the offsets it keeps beside every token stay small.
_BATCH_CHARACTERS = 4_000_000


class _Codec(Protocol):
    """What differs between kinds of tokenizers."""

    vocab_size: int

    def encode(self, texts: Sequence[str]) -> list[list[int]]: ...

    def decode(self, ids: Sequence[int]) -> str: ...


class Tokenizer:
    """Turns text into token ids and back.

    Attributes:
      vocab_size: one more than the largest id.
      bos_id, eos_id: ids of the tokens that begin and end a text; None where it has none.
        `encode` adds neither.
      adds_bos: whether the files ask for `bos_id` before a text, as transformers then does.
      fingerprint: the same for tokenizers that were loaded from the same content.
    """

    def __init__(
        self,
        codec: _Codec,
        *,
        fingerprint: str,
        bos_id: int | None,
        eos_id: int | None,
        adds_bos: bool = False,
    ):
        """Use `load_tokenizer`: this only holds what it made."""
        self._codec = codec
        self.vocab_size = codec.vocab_size
        self.fingerprint = fingerprint
        self.bos_id, self.eos_id, self.adds_bos = bos_id, eos_id, adds_bos

    def encode(self, text: str) -> list[int]:
        """Ids of a text, without special tokens around it.

        As in transformers, the spelling of a special token in the text (`<|im_start|>`) is read as
        that token.
        """
        return self._codec.encode([text])[0]

    def beginning(self, bos: bool) -> list[int]:
        """What stands before a text: the token that begins one, or nothing.

        Raises:
          ValueError: there is no such token.
        """
        if not bos:
            return []
        if self.bos_id is None:
            raise ValueError("bos=True: the tokenizer has no token that begins a text; use False")
        return [self.bos_id]

    def encode_all(self, texts: Iterable[str]) -> Iterator[np.ndarray]:
        """`encode` for many texts, on all cores: int32[N] for each, in order."""
        batch: list[str] = []
        characters = 0
        for text in texts:
            batch.append(text)
            characters += len(text)
            if characters >= _BATCH_CHARACTERS:
                yield from self._encode_batch(batch)
                batch, characters = [], 0
        yield from self._encode_batch(batch)

    def _encode_batch(self, batch: Sequence[str]) -> Iterator[np.ndarray]:
        for ids in self._codec.encode(batch):
            yield np.asarray(ids, np.int32)

    def decode(self, ids: Iterable[int]) -> str:
        """Text of ids; special tokens are left out, and what is not UTF-8 becomes U+FFFD."""
        return self._codec.decode([int(i) for i in ids])


def load_tokenizer(source: str | TokenizerFiles) -> Tokenizer:
    """Loads a tokenizer.

    Args:
      source: "bytes"; the path of a tokenizer.json, of a folder with one, or of a checkpoint of any
        format; or the files of a checkpoint's description.

    Raises:
      ValueError: there is no tokenizer at the path, or it cannot be read.
    """
    if source == BYTES:
        return Tokenizer(_Bytes(), fingerprint=BYTES, bos_id=256, eos_id=257)
    if isinstance(source, TokenizerFiles):
        return _from_files(source.files, "the checkpoint's")
    files = read_files(source)
    return _from_files(files.files if files else {}, source)


def read_files(source: str) -> TokenizerFiles | None:
    """The files of a tokenizer that is not "bytes"; None where a checkpoint has none.

    Args:
      source: a path as for `load_tokenizer`.

    Raises:
      ValueError: there is nothing at the path.
    """
    path = Path(source)
    if path.suffix == ".json" and path.is_file():
        beside = TokenizerFiles.of_folder(path.parent)
        files = {**(beside.files if beside else {}), _TOKENIZER: path.read_bytes()}
        return TokenizerFiles(files)
    if not path.exists():
        raise ValueError(
            f"tokenizer={str(path)!r} does not exist; give {BYTES!r}, a {_TOKENIZER}, a folder "
            "with one or a checkpoint"
        )
    found = TokenizerFiles.of_folder(path) if path.is_dir() else None
    if found is None or _TOKENIZER not in found.files:
        found = describe(path).tokenizer
    return found


def _from_files(files: Mapping[str, bytes], source: str) -> Tokenizer:
    if _TOKENIZER not in files:
        raise ValueError(
            f"tokenizer={source!r} has no {_TOKENIZER}; write one with save_pretrained of "
            "transformers' AutoTokenizer, or name another tokenizer"
        )
    try:
        inner = tokenizers.Tokenizer.from_buffer(files[_TOKENIZER])
        special = _special_tokens(files)
    except Exception as error:  # the Rust side raises bare Exceptions
        raise ValueError(
            f"tokenizer={source!r} cannot be read: {' '.join(str(error).split())}; give a "
            f"{_TOKENIZER} as the tokenizers library writes it"
        ) from error
    inner.no_truncation()  # a file may ask for either; here every text stays as it is
    inner.no_padding()
    digest = hashlib.blake2b(files[_TOKENIZER], digest_size=16).hexdigest()
    bos_id, eos_id = (inner.token_to_id(special.get(key, "")) for key in ("bos_token", "eos_token"))
    return Tokenizer(
        _HuggingFace(inner),
        fingerprint=digest,
        bos_id=bos_id,
        eos_id=eos_id,
        adds_bos=bos_id in inner.encode("").ids[:1],
    )


def _special_tokens(files: Mapping[str, bytes]) -> dict[str, str]:
    """The spellings of bos_token and eos_token, where the files give them."""
    found: dict[str, str] = {}
    for name in _SPECIAL_TOKEN_FILES:
        entries: dict[str, Any] = json.loads(files.get(name, b"{}"))
        for key in ("bos_token", "eos_token"):
            token = entries.get(key)
            token = token.get("content") if isinstance(token, dict) else token
            if isinstance(token, str):
                found[key] = token
    return found


class _HuggingFace:
    def __init__(self, inner: tokenizers.Tokenizer):
        self._inner = inner
        self.vocab_size = 1 + max(inner.get_vocab(with_added_tokens=True).values(), default=-1)

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        encodings = self._inner.encode_batch_fast(list(texts), add_special_tokens=False)
        return [encoding.ids for encoding in encodings]

    def decode(self, ids: Sequence[int]) -> str:
        text: str = self._inner.decode(list(ids), skip_special_tokens=True)
        return text


class _Bytes:
    """Ids 0 to 255 are the bytes of UTF-8; 256 begins and 257 ends a text."""

    vocab_size = 258

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        return [list(text.encode()) for text in texts]

    def decode(self, ids: Sequence[int]) -> str:
        return bytes(i for i in ids if i < 256).decode(errors="replace")
