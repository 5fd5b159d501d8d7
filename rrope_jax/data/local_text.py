"""Text in local files: plain text, one document a file; JSONL, one a line; either gzipped."""

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
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple, cast

from rrope_jax.data import local_files
from rrope_jax.data.document import Document, Documents, Names

_GZIP, _JSONL = ".gz", ".jsonl"
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")


class _Entry(NamedTuple):
    """Where a document lies."""

    name: str
    path: Path
    line: int  # from 1; 0 for a whole file
    offset: int  # of the line, in the uncompressed file


class LocalText(Documents):
    """The documents of a file, of a folder and all below it, or of a glob.

    A document is named by its file's path below the source's folder, with `:LINE` in JSONL. Text is
    UTF-8 and read as it is, line ends included; only a byte order mark is dropped.

    To read one line of a gzipped JSONL, all of the file before it is read too.
    """

    def __init__(self, source: str, *, text_key: str):
        """Finds the documents; of plain text it reads nothing yet.

        Args:
          source: a path, or a glob (`**` for folders of any depth): see `local_files.find`.
          text_key: the field of a JSONL object that holds the text.

        Raises:
          ValueError: there is no file to read, or a gzip file is damaged.
        """
        self._text_key = text_key
        self._file_names: list[str] = []
        # of each document, as in an `_Entry`: an object for each would take ten times as much
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
        """Reads documents; see `Documents`."""
        entries = map(self._entry, indices)
        for path, inside in itertools.groupby(entries, key=lambda entry: entry.path):
            with _saying(path), _opened(path) as file:
                for entry in inside:
                    file.seek(entry.offset)
                    data = file.readline() if entry.line else file.read()
                    yield Document(entry.name, self._text(data, entry))

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
            # float: Python reads whole numbers of 4,300 digits at most
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
        return _LONE_SURROGATE.sub("\ufffd", text)  # an escape can make one; UTF-8 has none


def _lines(file: Path) -> Iterator[tuple[int, int]]:
    """Number and offset of every line that is a document; zeros for a whole file."""
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
    if path.stat().st_size == 0:  # which Python takes for a compressed nothing
        raise EOFError("it is empty, not even a header")
    return cast(BinaryIO, gzip.open(path))


@contextlib.contextmanager
def _saying(path: Path) -> Iterator[None]:
    """Names the file where reading it fails."""
    try:
        yield
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f"{path} is damaged ({error}); copy or download it again") from error
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror or error}") from error


def _where(entry: _Entry) -> str:
    return f"{entry.path}:{entry.line}" if entry.line else str(entry.path)
