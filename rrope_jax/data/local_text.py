"""Local text: plain text, one document per file, or JSONL, one per line; both may be gzipped."""

import codecs
import contextlib
import gzip
import hashlib
import itertools
import json
import os
import re
import zlib
from array import array
from collections.abc import Hashable, Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple, cast

from rrope_jax.data import local_files
from rrope_jax.data.document import Document, Documents, Names

_GZIP, _JSONL = ".gz", ".jsonl"
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")


class _Entry(NamedTuple):
    """The location of a document."""

    name: str
    path: Path
    line: int  # from 1; 0 for a whole file
    offset: int  # byte offset of the line in the uncompressed file


class LocalText(Documents):
    """The documents of a file, of a folder (recursively) or of a glob.

    A document's name is its file's path relative to the source's folder, plus `:LINE` for JSONL.
    Text must be UTF-8 and is not modified, including line endings; only a byte order mark is
    dropped.

    Reading a line of a gzipped JSONL file also reads everything before it.
    """

    def __init__(self, source: str, *, text_key: str):
        """Finds the documents. JSONL files are scanned for lines; plain text is not read yet.

        Args:
          source: a path or a glob (`**` matches any number of folders); see `local_files.find`.
          text_key: the field of a JSONL object that has the text.

        Raises:
          ValueError: there is no file or document, or a gzip file is damaged.
        """
        self._text_key = text_key
        self._file_names: list[str] = []
        self._inodes: list[tuple[int, int]] = []  # the same for all links to a file
        # The fields of `_Entry` for each document; objects would take ten times the memory.
        self._file_N, self._line_N, self._offset_N = array("i"), array("q"), array("q")
        digest = hashlib.blake2b(text_key.encode(errors="surrogatepass"), digest_size=16)
        with _saying(Path(source)):
            folder, files = local_files.find(source)
        self._files = files
        for number, file in enumerate(files):
            name = file.relative_to(folder).as_posix()
            self._file_names.append(name)
            with _saying(file):
                status = file.stat()
                self._inodes.append((status.st_dev, status.st_ino))
                for line, offset in _lines(file):
                    self._file_N.append(number)
                    self._line_N.append(line)
                    self._offset_N.append(offset)
            digest.update(os.fsencode(f"\n{name}\0{status.st_size}\0{status.st_mtime_ns}"))
        self.names = Names(len(self._file_N), self._name)
        self.fingerprint = digest.hexdigest()
        if not self._file_N:
            raise ValueError(f"source={source!r}: there is no line in it, so no document")

    def read(self, indices: Iterable[int]) -> Iterator[Document]:
        """Yields documents; see `Documents.read`."""
        entries = map(self._entry, indices)
        for path, inside in itertools.groupby(entries, key=lambda entry: entry.path):
            with _saying(path), _opened(path) as file:
                for entry in inside:
                    file.seek(entry.offset)
                    data = file.readline() if entry.line else file.read()
                    yield Document(entry.name, self._text(data, entry))

    def place(self, index: int) -> Hashable:
        """The file and, in JSONL, the line and the field; see `Documents.place`."""
        line = self._line_N[index]
        return self._inodes[self._file_N[index]], line, self._text_key if line else ""

    def _name(self, index: int) -> str:
        name, line = self._file_names[self._file_N[index]], self._line_N[index]
        return f"{name}:{line}" if line else name

    def _entry(self, index: int) -> _Entry:
        path = self._files[self._file_N[index]]
        return _Entry(self._name(index), path, self._line_N[index], self._offset_N[index])

    def _text(self, data: bytes, entry: _Entry) -> str:
        try:
            text = data.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            what = f"{error.reason} at byte {error.start}"
            if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
                what = "it begins like UTF-16"
            raise ValueError(
                f"{_where(entry)} is not UTF-8 ({what}); convert it first, with iconv for instance"
            ) from error
        if "\0" in text:
            raise ValueError(
                f"{_where(entry)} is no text (byte {data.index(0)} is NUL): an archive, or UTF-16, "
                "which has to be converted first, with iconv for instance"
            )
        return self._field(text, entry) if entry.line else text

    def _field(self, line: str, entry: _Entry) -> str:
        try:
            # float, since Python's int() rejects more than 4,300 digits.
            fields = json.loads(line, parse_int=float)
        except (ValueError, RecursionError) as error:
            raise ValueError(
                f"{_where(entry)} is not JSON ({error}); JSONL has one JSON object a line"
            ) from error
        text = fields.get(self._text_key) if isinstance(fields, dict) else None
        if not isinstance(text, str):
            names = ", ".join(fields) if isinstance(fields, dict) else type(fields).__name__
            raise ValueError(
                f"{_where(entry)} has no string {self._text_key!r} (found: {names}); name the "
                "field of the text with text_key"
            )
        return _LONE_SURROGATE.sub("\ufffd", text)  # JSON escapes can produce one


def _lines(file: Path) -> Iterator[tuple[int, int]]:
    """Yields the number and byte offset of each nonblank JSONL line, or (0, 0) for plain text."""
    if not file.name.lower().removesuffix(_GZIP).endswith(_JSONL):
        yield 0, 0
        return
    offset = 0
    with _opened(file) as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                yield number, offset
            offset += len(line)


def _opened(path: Path) -> BinaryIO:
    if path.suffix.lower() != _GZIP:
        return path.open("rb")
    if path.stat().st_size == 0:  # Python accepts this as empty compressed data
        raise EOFError("it is empty, not even a header")
    return cast(BinaryIO, gzip.open(path))


@contextlib.contextmanager
def _saying(path: Path) -> Iterator[None]:
    """Turns errors in reading a file into a ValueError that names it."""
    try:
        yield
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f"{path} is damaged ({error}); copy or download it again") from error
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror or error}") from error


def _where(entry: _Entry) -> str:
    return f"{entry.path}:{entry.line}" if entry.line else str(entry.path)
