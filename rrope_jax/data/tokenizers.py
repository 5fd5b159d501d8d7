"""Text to token ids and back: Hugging Face tokenizer files, and bytes."""

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
from rrope_jax.io.pretrained import describe
from rrope_jax.io.tokenizer import errors as tokenizers_errors
from rrope_jax.io.tokenizer import probes as tokenizer_probes
from rrope_jax.io.tokenizer import sentencepiece
from rrope_jax.io.tokenizer.files import SCORES, TokenizerFiles

_log = logging.getLogger(__name__)

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
    ordinary_size: int  # the same without tokens that were added to the vocabulary

    def spelling(self, index: int) -> str: ...

    def encode(self, texts: Sequence[str]) -> list[list[int]]: ...

    def decode(self, ids: Sequence[int]) -> str: ...

    def unfinished(self, ids: Sequence[int]) -> int: ...


class Tokenizer:
    """Turns text into token ids and back.

    Attributes:
      vocab_size: one more than the largest id.
      bos_id, eos_id: ids of the tokens that begin and end a text; None where it has none.
        `encode` adds neither.
      adds_bos: whether the files ask for `bos_id` before a text, as transformers then does.
      fingerprint: the same for tokenizers that were loaded from the same content, for models that
        have an embedding for the same ids of theirs.
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
        """Use `load_tokenizer` and `for_model`: this only holds what they made."""
        self._codec = codec
        self._embedded = codec.vocab_size if embedded is None else embedded
        self.vocab_size = codec.vocab_size
        self.fingerprint = fingerprint
        self.bos_id, self.eos_id, self.adds_bos = bos_id, eos_id, adds_bos

    def for_model(self, vocab_size: int) -> "Tokenizer":
        """This tokenizer for a model that has embeddings for ids below vocab_size only.

        Many checkpoints have an added token beyond their embedding, such as one for padding, which
        no text has. With a warning, such tokens are passed over: a text that has one is refused
        when it is encoded, and one that begins or ends a text is as if there were none.

        Raises:
          ValueError: there is no embedding for tokens of ordinary text; the message continues the
            name of the tokenizer.
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
        """Ids of a text, without special tokens around it.

        As in transformers, the spelling of a special token in the text (`<|im_start|>`) is read as
        that token.

        Raises:
          ValueError: the model of `for_model` has no embedding for one of the ids.
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
        for ids in self._checked(self._codec.encode(batch)):
            yield np.asarray(ids, np.int32)

    def decode(self, ids: Iterable[int]) -> str:
        """Text of ids; special tokens are left out, and what is not UTF-8 becomes U+FFFD."""
        return self._codec.decode([int(i) for i in ids])

    def decode_after(self, before: Sequence[int], ids: Sequence[int]) -> str:
        """Text of ids that follow others.

        Decoded alone, a text can lose the space before its first word. A character whose last
        bytes are still to come is left out.
        """
        start, whole = self.decode(before), self.decode([*before, *ids])
        # some decoders change what is before a token
        text = whole.removeprefix(start) if whole.startswith(start) else self.decode(ids)
        return text[: len(text) - self._codec.unfinished(ids)]


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
    """The spellings of bos_token and eos_token, where the files give them."""
    spellings: dict[str, str] = {}
    for name in _SPECIAL_TOKEN_FILES:
        entries: dict[str, Any] = json_text.parse(files.get(name, b"{}"))
        for key in ("bos_token", "eos_token"):
            token = entries.get(key)
            token = token.get("content") if isinstance(token, dict) else token
            if isinstance(token, str):
                spellings[key] = token
    return spellings


# How tokens of single bytes are spelled beside tokens of text.
_BYTE_TOKEN = re.compile("<0x([0-9A-F]{2})>")


class _HuggingFace:
    """A tokenizer.json, with another encoder where it cannot say how its characters are joined."""

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
        """Shows only broken bytes as such, where the library shows all bytes in a row so."""
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
        """How many characters at the end of a text stand for one that lacks bytes."""
        if self._byte_of:
            tail = itertools.takewhile(self._byte_of.__contains__, reversed(ids))
            return _unfinished(bytes(self._byte_of[index] for index in tail)[::-1])
        spelled = "".join(self.spelling(index) for index in ids[-_LONGEST_CHARACTER:])
        if "ByteLevel" not in repr(self._inner.decoder):
            return 0
        alphabet = _byte_alphabet()
        if not all(each in alphabet for each in spelled):  # of a special token, which is no text
            return 0
        return _unfinished(bytes(alphabet[each] for each in spelled))


_LONGEST_CHARACTER = 4  # bytes


def _unfinished(data: bytes) -> int:
    """1 where bytes end in the first ones of a character, else 0."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    decoder.decode(data)
    return int(bool(decoder.getstate()[0]))


def _readable(spelled: Sequence[str]) -> list[str]:
    """Byte tokens; those that do not form a whole character are replaced by U+FFFD."""
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
    """The characters that byte-level tokens spell bytes with."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {
        chr(256 + place): byte for place, byte in enumerate(others)
    }


class _Bytes:
    """Ids 0 to 255 are the bytes of UTF-8; 256 begins and 257 ends a text."""

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
