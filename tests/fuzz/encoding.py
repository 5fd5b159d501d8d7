"""Trees to the files that they stand for, however wrong the trees are."""

import gzip
import json
import math
import struct
from collections.abc import Callable
from pathlib import PurePosixPath
from typing import Any

Files = dict[str, bytes]
"""The files of an input by their paths below its folder."""


def encode(tree: Any) -> Files:
    """The files of a tree {name: content}; names that would leave the folder are left out."""
    entries = tree.items() if isinstance(tree, dict) else [("input.json", tree)]
    files: Files = {}
    for name, content in entries:
        path = PurePosixPath(name)
        if _fits(path) and not any(parent in map(PurePosixPath, files) for parent in path.parents):
            files[str(path)] = content_of(path.name, content)
    return files


def _fits(path: PurePosixPath) -> bool:
    names = path.parts
    whole = bool(names) and not path.is_absolute() and ".." not in names and "\0" not in str(path)
    return (
        whole
        and all(len(part.encode(errors="replace")) < 200 for part in names)
        and (str(path).isprintable())
    )


def content_of(name: str, content: Any) -> bytes:
    """The bytes of a file; its name's end says in which format."""
    if isinstance(content, bytes):
        return content
    stem, _, suffix = name.rpartition(".")
    if suffix == "gz":
        return gzip.compress(content_of(stem, content), compresslevel=1, mtime=0)
    if isinstance(content, str):
        return content.encode(errors="surrogatepass")
    return _ENCODERS.get(suffix, _json)(content)


def _json(content: Any) -> bytes:
    return json.dumps(content, default=lambda value: value.decode("latin-1")).encode()


def _jsonl(content: Any) -> bytes:
    lines = content if isinstance(content, list) else [content]
    return b"".join(content_of("line", line) + b"\n" for line in lines)


def _safetensors(content: Any) -> bytes:
    """{"header": JSON, "data": bytes}, with "length" where that of the header is to be wrong."""
    if not (isinstance(content, dict) and {"header", "data"} <= content.keys()):
        return _json(content)
    header = content_of("header", content["header"])
    length = _integer(content.get("length", len(header)))
    return struct.pack("<Q", length % 2**64) + header + content_of("data", content["data"])


_SCALARS = dict(zip((0, 1, 2, 3, 4, 5, 6, 7, 10, 11, 12), "BbHhIif?Qqd", strict=True))
_STRING, _ARRAY = 8, 9


def _gguf(content: Any) -> bytes:
    """A dict of "version", "metadata", "tensors" and "data", which is bytes.

    Metadata are rows [key, kind, value], tensors [name, shape, kind, offset]. "counts" is there
    where the numbers of both are to be wrong.
    """
    keys = {"version", "metadata", "tensors", "data"}
    if not (isinstance(content, dict) and keys <= content.keys()):
        return _json(content)
    pairs = [row for row in _rows(content["metadata"]) if len(row) == 3]
    tensors = [row for row in _rows(content["tensors"]) if len(row) == 4]
    counts = _rows_of_numbers(content.get("counts", [len(tensors), len(pairs)]), 2)
    encoded = b"GGUF" + _scalar(4, content["version"])
    encoded += b"".join(_scalar(10, count) for count in counts)
    for key, kind, value in pairs:
        encoded += _string(key) + _scalar(4, kind) + _value(_integer(kind), value)
    for name, shape, kind, offset in tensors:
        axes = shape if isinstance(shape, list) else [shape]
        encoded += _string(name) + _scalar(4, len(axes))
        encoded += b"".join(_scalar(10, axis) for axis in axes)
        encoded += _scalar(4, kind) + _scalar(10, offset)
    return encoded + b"\0" * (-len(encoded) % 32) + content_of("data", content["data"])


def _rows(value: Any) -> list[list[Any]]:
    return [row for row in value if isinstance(row, list)] if isinstance(value, list) else []


def _rows_of_numbers(value: Any, count: int) -> list[Any]:
    return value if isinstance(value, list) and len(value) == count else [0] * count


def _value(kind: int, value: Any) -> bytes:
    if kind == _STRING:
        return _string(value)
    if kind == _ARRAY:
        element, *values = value if isinstance(value, list) and value else [_STRING]
        count = _scalar(10, len(values))
        return _scalar(4, element) + count + b"".join(_value(_integer(element), v) for v in values)
    return _scalar(kind, value)


def _scalar(kind: int, value: Any) -> bytes:
    code = _SCALARS.get(kind, "B")
    if code in "fd":
        number = float(_integer(value) % 2**53) if not isinstance(value, float) else value
        tame = number if code == "d" or abs(number) < 3e38 or not math.isfinite(number) else 3e38
        return struct.pack("<" + code, tame)
    if code == "?":
        return bytes([_integer(value) % 256])
    size = struct.calcsize(code)
    return (_integer(value) % 256**size).to_bytes(size, "little")


def _string(value: Any) -> bytes:
    data = content_of("string", value)
    return struct.pack("<Q", len(data)) + data


def _integer(value: Any) -> int:
    if isinstance(value, int):
        return value
    if isinstance(value, float) and math.isfinite(value):
        return int(value)
    return len(str(value))


_ENCODERS: dict[str, Callable[[Any], bytes]] = {
    "jsonl": _jsonl,
    "safetensors": _safetensors,
    "gguf": _gguf,
}
