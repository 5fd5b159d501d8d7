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
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple, cast

from rrope_jax.data import local_files
from rrope_jax.data.document import Document, Documents

_GZIP, _JSONL = ".gz", ".jsonl"
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")


class _Entry(NamedTuple):
    """Where a document lies."""

    name: str
    path: Path
    line: int | None = None  # from 1; None for a whole file
    offset: int = 0  # of the line, in the uncompressed file


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
        self._entries: list[_Entry] = []
        digest = hashlib.blake2b(text_key.encode(errors="surrogatepass"), digest_size=16)
        with _saying(Path(source)):
            folder, files = local_files.find(source)
        for file in files:
            name = file.relative_to(folder).as_posix()
            with _saying(file):
                status = file.stat()
                self._entries += _entries(name, file)
            digest.update(os.fsencode(f"\n{name}\0{status.st_size}\0{status.st_mtime_ns}"))
        self.names = [entry.name for entry in self._entries]
        self.fingerprint = digest.hexdigest()
        if not self._entries:
            raise ValueError(f"source={source!r}: there is no line in it, so no document")

    def read(self, indices: Iterable[int]) -> Iterator[Document]:
        """Reads documents; see `Documents`."""
        entries = (self._entries[index] for index in indices)
        for path, inside in itertools.groupby(entries, key=lambda entry: entry.path):
            with _saying(path), _opened(path) as file:
                for entry in inside:
                    file.seek(entry.offset)
                    data = file.read() if entry.line is None else file.readline()
                    yield Document(entry.name, self._text(data, entry))

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
        return text if entry.line is None else self._field(text, entry)

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
            found = ", ".join(fields) if isinstance(fields, dict) else type(fields).__name__
            raise ValueError(
                f"{_where(entry)} has no string {self._text_key!r} (found: {found}); name the "
                "field of the text with text_key"
            )
        return _LONE_SURROGATE.sub("\ufffd", text)  # an escape can make one; UTF-8 has none


def _entries(name: str, file: Path) -> Iterator[_Entry]:
    if not file.name.lower().removesuffix(_GZIP).endswith(_JSONL):
        yield _Entry(name, file)
        return
    offset = 0
    with _opened(file) as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                yield _Entry(f"{name}:{number}", file, number, offset)
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
