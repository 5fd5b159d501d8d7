"""Tokenizers: Hugging Face's tokenizer.json, and bytes."""

import codecs
import functools
import hashlib
import itertools
import json
import logging
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import tokenizers

from rrope_jax.io import json_text
from rrope_jax.io.local_copies import tokenizer_here
from rrope_jax.io.pretrained import describe
from rrope_jax.io.tokenizer import errors as tokenizers_errors
from rrope_jax.io.tokenizer import probes as tokenizer_probes
from rrope_jax.io.tokenizer import sentencepiece
from rrope_jax.io.tokenizer.files import SCORES, TokenizerFiles

_log = logging.getLogger(__name__)

BYTES = "bytes"
"""The source that names the byte tokenizer."""

_TOKENIZER = "tokenizer.json"
# Later files take precedence.
_SPECIAL_TOKEN_FILES = ("special_tokens_map.json", "tokenizer_config.json")
# Characters per batch passed to the Rust library: enough to keep all cores busy, few enough to
# limit the memory for the offsets that it stores with each token.
_BATCH_CHARACTERS = 4_000_000


class _Codec(Protocol):
    """The operations that differ between kinds of tokenizers."""

    vocab_size: int
    ordinary_size: int  # like vocab_size, but without added tokens

    def spelling(self, index: int) -> str: ...

    def encode(self, texts: Sequence[str]) -> list[list[int]]: ...

    def decode(self, ids: Sequence[int]) -> str: ...

    def unfinished(self, ids: Sequence[int]) -> int: ...


class Tokenizer:
    """Turns text into token ids and back.

    Attributes:
      vocab_size: the largest id plus one.
      bos_id, eos_id: ids of the tokens that begin and end a text, or None; `encode` adds neither.
      adds_bos: whether the tokenizer's files say to add `bos_id` before a text, as transformers
        then does.
      fingerprint: a string that is the same for tokenizers with the same content and the same limit
        from `for_model`.
    """

    def __init__(
        self,
        codec: _Codec,
        *,
        fingerprint: str,
        bos_id: int | None,
        eos_id: int | None,
        adds_bos: bool = False,
        embedded: int | None = None,
    ):
        """Not for direct use; call `load_tokenizer` or `for_model`."""
        self._codec = codec
        self._embedded = codec.vocab_size if embedded is None else embedded
        self.vocab_size = codec.vocab_size
        self.fingerprint = fingerprint
        self.bos_id, self.eos_id, self.adds_bos = bos_id, eos_id, adds_bos

    def for_model(self, vocab_size: int) -> "Tokenizer":
        """Returns this tokenizer for a model that only has embeddings for ids below `vocab_size`.

        Many checkpoints have an added token without an embedding, such as one for padding. Such
        tokens are excluded with a warning: `encode` rejects texts that contain them, and `bos_id`
        or `eos_id` becomes None if it is one of them.

        Raises:
          ValueError: tokens of ordinary text have no embedding. The message is meant to follow the
            tokenizer's name.
        """
        if self.vocab_size <= vocab_size:
            return self
        if self._codec.ordinary_size > vocab_size:
            raise ValueError(
                f"has {self.vocab_size} tokens, but the model's vocab_size is {vocab_size}; give "
                "the model's own tokenizer"
            )
        _log.warning(
            "the tokenizer has ids up to %d (%r), the model embeddings for %d; texts with ids "
            "beyond are refused",
            self.vocab_size - 1,
            self._codec.spelling(self.vocab_size - 1),
            vocab_size,
        )
        bos_id, eos_id = (
            None if index is None or index >= vocab_size else index
            for index in (self.bos_id, self.eos_id)
        )
        return Tokenizer(
            self._codec,
            fingerprint=f"{self.fingerprint}-{vocab_size}",
            bos_id=bos_id,
            eos_id=eos_id,
            adds_bos=self.adds_bos and bos_id is not None,
            embedded=vocab_size,
        )

    def encode(self, text: str) -> list[int]:
        """Returns the ids of a text, without adding special tokens.

        As in transformers, the spelling of a special token in the text (such as `<|im_start|>`)
        becomes that token.

        Raises:
          ValueError: an id has no embedding in the model of `for_model`.
        """
        return self._checked(self._codec.encode([text]))[0]

    def _checked(self, batch: list[list[int]]) -> list[list[int]]:
        for ids in batch:
            if (largest := max(ids, default=0)) >= self._embedded:
                raise ValueError(
                    f"a text has the token {self._codec.spelling(largest)!r} of id {largest}, but "
                    f"the model has embeddings for {self._embedded} ids only; remove it from the "
                    "text, or give the model's own tokenizer"
                )
        return batch

    def beginning(self, bos: bool) -> list[int]:
        """Returns the ids to put before a text: `[bos_id]` if `bos`, otherwise none.

        Raises:
          ValueError: `bos` is true, but the tokenizer has no such token.
        """
        if not bos:
            return []
        if self.bos_id is None:
            raise ValueError("bos=True: the tokenizer has no token that begins a text; use False")
        return [self.bos_id]

    def encode_all(self, texts: Iterable[str]) -> Iterator[np.ndarray]:
        """Encodes many texts on all cores; yields int32[N] for each, in order."""
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
        for ids in self._checked(self._codec.encode(batch)):
            yield np.asarray(ids, np.int32)

    def decode(self, ids: Iterable[int]) -> str:
        """Returns the text of ids, without special tokens; invalid UTF-8 becomes U+FFFD."""
        return self._codec.decode([int(i) for i in ids])

    def decode_after(self, before: Sequence[int], ids: Sequence[int]) -> str:
        """Returns the text of ids that continue others.

        Decoding the ids alone could lose the space before the first word. An incomplete character
        at the end is omitted.

        Args:
          before: the preceding ids.
          ids: the ids to decode.
        """
        start, whole = self.decode(before), self.decode([*before, *ids])
        # Some decoders change the text before a token.
        text = whole.removeprefix(start) if whole.startswith(start) else self.decode(ids)
        return text[: len(text) - self._codec.unfinished(ids)]


def load_tokenizer(source: str | TokenizerFiles) -> Tokenizer:
    """Loads a tokenizer.

    Args:
      source: "bytes"; the path of a tokenizer.json, of a folder that contains one or of a
        checkpoint in any format; or the tokenizer files of a checkpoint's description.

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
    """Reads the files of a tokenizer; returns None if the checkpoint has none.

    Args:
      source: a path as for `load_tokenizer`, not "bytes".

    Raises:
      ValueError: the path does not exist, or is neither a tokenizer nor a checkpoint.
    """
    path = Path(tokenizer_here(source))
    if path.suffix == ".json" and path.is_file():
        beside = TokenizerFiles.of_folder(path.parent)
        files = {**(beside.files if beside else {}), _TOKENIZER: path.read_bytes()}
        return TokenizerFiles(files)
    if not path.exists():
        raise ValueError(
            f"tokenizer={str(path)!r} does not exist; give {BYTES!r}, a {_TOKENIZER}, a folder "
            "with one or a checkpoint"
        )
    tokenizer = TokenizerFiles.of_folder(path) if path.is_dir() else None
    if tokenizer is None or _TOKENIZER not in tokenizer.files:
        tokenizer = describe(path).tokenizer
    return tokenizer


def _from_files(files: Mapping[str, bytes], source: str) -> Tokenizer:
    if _TOKENIZER not in files:
        raise ValueError(
            f"tokenizer={source!r} has no {_TOKENIZER}; write one with save_pretrained of "
            "transformers' AutoTokenizer, or name another tokenizer"
        )
    with tokenizers_errors.explained(
        f"tokenizer={source!r} cannot be read: ",
        f"; give a {_TOKENIZER} as the tokenizers library writes it",
    ):
        inner = tokenizer_probes.load(files[_TOKENIZER])
        special = _special_tokens(files)
        first, _ = tokenizer_probes.around(inner)
        bos_id, eos_id = (
            inner.token_to_id(special.get(key, "")) for key in ("bos_token", "eos_token")
        )
        exact = None
        if SCORES in files:
            scores = sentencepiece.scores_of(files[SCORES])
            exact = sentencepiece.LeftmostFirst(json.loads(files[_TOKENIZER]), scores)
        codec = _HuggingFace(inner, exact)
    content = files[_TOKENIZER] + files.get(SCORES, b"")
    digest = hashlib.blake2b(content, digest_size=16).hexdigest()
    return Tokenizer(
        codec,
        fingerprint=digest,
        bos_id=bos_id,
        eos_id=eos_id,
        adds_bos=bos_id in first[:1],
    )


def _special_tokens(files: Mapping[str, bytes]) -> dict[str, str]:
    """Returns the spellings of `bos_token` and `eos_token` that the files give."""
    spellings: dict[str, str] = {}
    for name in _SPECIAL_TOKEN_FILES:
        entries: dict[str, Any] = json_text.parse(files.get(name, b"{}"))
        for key in ("bos_token", "eos_token"):
            token = entries.get(key)
            token = token.get("content") if isinstance(token, dict) else token
            if isinstance(token, str):
                spellings[key] = token
    return spellings


# The spelling of single-byte tokens in vocabularies with byte fallback.
_BYTE_TOKEN = re.compile("<0x([0-9A-F]{2})>")


class _HuggingFace:
    """A tokenizer.json, with a separate encoder if it cannot express the order of merges."""

    def __init__(self, inner: tokenizers.Tokenizer, exact: sentencepiece.LeftmostFirst | None):
        self._inner, self._exact = inner, exact
        vocabulary = inner.get_vocab(with_added_tokens=True)
        self.vocab_size = 1 + max(vocabulary.values(), default=-1)
        added = inner.get_added_tokens_decoder()
        ordinary = (index for index in vocabulary.values() if index not in added)
        self.ordinary_size = 1 + max(ordinary, default=-1)
        falls_back = inner.decoder is not None and "ByteFallback" in repr(inner.decoder)
        matches = ((_BYTE_TOKEN.fullmatch(token), index) for token, index in vocabulary.items())
        self._byte_of = (
            {index: int(match[1], 16) for match, index in matches if match} if falls_back else {}
        )

    def spelling(self, index: int) -> str:
        return str(self._inner.id_to_token(index))

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        if self._exact is not None:
            return [self._exact.encode(text) for text in texts]
        with tokenizers_errors.explained("the tokenizer fails on a text: "):
            encodings = self._inner.encode_batch_fast(list(texts), add_special_tokens=False)
        return [encoding.ids for encoding in encodings]

    def decode(self, ids: Sequence[int]) -> str:
        if any(index in self._byte_of for index in ids):
            return self._decode_with_bytes(ids)
        with tokenizers_errors.explained("the tokenizer fails on token ids: "):
            text: str = self._inner.decode(list(ids), skip_special_tokens=True)
        return text

    def _decode_with_bytes(self, ids: Sequence[int]) -> str:
        """Decodes ids that include byte tokens, replacing only invalid bytes by U+FFFD.

        The library replaces all of a run of byte tokens if any of them is invalid.
        """
        added = self._inner.get_added_tokens_decoder()
        special = {index for index, token in added.items() if token.special}
        tokens: list[str] = []
        for is_byte, group in itertools.groupby(
            (index for index in ids if index not in special), self._byte_of.__contains__
        ):
            spelled = [token for token in map(self._inner.id_to_token, group) if token is not None]
            tokens += _readable(spelled) if is_byte else spelled
        with tokenizers_errors.explained("the tokenizer fails on token ids: "):
            text: str = self._inner.decoder.decode(tokens)
        return text

    def unfinished(self, ids: Sequence[int]) -> int:
        """Number of U+FFFD at the end of the text that stand for an incomplete character."""
        if self._byte_of:
            tail = itertools.takewhile(self._byte_of.__contains__, reversed(ids))
            return _unfinished(bytes(self._byte_of[index] for index in tail)[::-1])
        spelled = "".join(self.spelling(index) for index in ids[-_LONGEST_CHARACTER:])
        if "ByteLevel" not in repr(self._inner.decoder):
            return 0
        alphabet = _byte_alphabet()
        if not all(each in alphabet for each in spelled):  # part of a special token, not text
            return 0
        return _unfinished(bytes(alphabet[each] for each in spelled))


_LONGEST_CHARACTER = 4  # bytes


def _unfinished(data: bytes) -> int:
    """Returns 1 if the bytes end with an incomplete character, otherwise 0."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    decoder.decode(data)
    return int(bool(decoder.getstate()[0]))


def _readable(spelled: Sequence[str]) -> list[str]:
    """Replaces byte tokens that do not form a complete character by U+FFFD."""
    tokens: list[str] = []
    data = bytes(int(token[3:5], 16) for token in spelled)
    while data:
        try:
            data.decode()
        except UnicodeDecodeError as error:
            good, data = data[: error.start], data[error.end :]
            tokens += [*(f"<0x{byte:02X}>" for byte in good), "\ufffd"]
        else:
            return tokens + [f"<0x{byte:02X}>" for byte in data]
    return tokens


@functools.cache
def _byte_alphabet() -> dict[str, int]:
    """The byte for each character with which byte-level tokens spell bytes."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {
        chr(256 + place): byte for place, byte in enumerate(others)
    }


class _Bytes:
    """The byte tokenizer: ids 0 to 255 are UTF-8 bytes, 256 begins a text and 257 ends it."""

    vocab_size, ordinary_size = 258, 256

    def spelling(self, index: int) -> str:
        return {256: "<bos>", 257: "<eos>"}.get(index, repr(bytes([index % 256])))

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        return [list(text.encode()) for text in texts]

    def decode(self, ids: Sequence[int]) -> str:
        return self._bytes(ids).decode(errors="replace")

    def unfinished(self, ids: Sequence[int]) -> int:
        return _unfinished(self._bytes(ids))

    def _bytes(self, ids: Sequence[int]) -> bytes:
        return bytes(i for i in ids if i < 256)
