"""The GGUF container format: metadata and named tensors, which are read one at a time.

A model may be split over several files (with llama.cpp's `gguf-split`), which are read as one.

The `gguf` package's own reader makes an array of every token in the vocabulary, which takes a
minute and 150 MiB for SmolLM2; this one reads the same header in a second. The package is only used
to decode quantized blocks. For the layout, see docs/gguf.md of ggml-org/ggml.
"""

import dataclasses
import functools
import math
import os
import re
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import numpy as np
from numpy.typing import NDArray

T = TypeVar("T")

MAGIC = b"GGUF"
ALIGNMENT = "general.alignment"
_DEFAULT_ALIGNMENT = 32
# The index of a part, from 0; the number of parts; and the number of tensors in all parts.
SPLIT_NUMBER, SPLIT_COUNT, SPLIT_TENSORS = "split.no", "split.count", "split.tensors.count"
_PART_NAME = re.compile(r"(?P<stem>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf", re.DOTALL)
_STRING, _ARRAY = 8, 9
# numpy dtypes by GGUF value type.
_SCALARS = {
    0: "<u1",
    1: "<i1",
    2: "<u2",
    3: "<i2",
    4: "<u4",
    5: "<i4",
    6: "<f4",
    7: "?",
    10: "<u8",
    11: "<i8",
    12: "<f8",
}


@dataclasses.dataclass(frozen=True)
class Tensor:
    """The location of a tensor in its file.

    Attributes:
      path: the file that contains it.
      shape: its shape, outermost axis first.
      kind: its `GGMLQuantizationType` as a number.
      offset: the position of its first byte in the file.
      size: its size in bytes.
    """

    path: Path
    shape: tuple[int, ...]
    kind: int
    offset: int
    size: int


@dataclasses.dataclass(frozen=True)
class Contents:
    """The header of a model's file, or of all its parts.

    Attributes:
      metadata: values by key, from the first part: numbers, strings and lists of either.
      tensors: the tensors of all parts by name.
    """

    metadata: dict[str, Any]
    tensors: dict[str, Tensor]


def read_header(path: Path) -> Contents:
    """Reads the metadata and tensor locations of a model.

    Args:
      path: the model's file, or any one of its parts.

    Raises:
      ValueError: the file is not GGUF version 2 or 3, is damaged or is truncated; or another part
        is missing or belongs to a different model.
    """
    named = _read_file(path)
    count = _split_key(path, named, SPLIT_COUNT, 1)
    match = _PART_NAME.fullmatch(path.name)
    if count <= 1:
        if SPLIT_COUNT not in named.metadata and match is not None and int(match["count"]) > 1:
            raise ValueError(
                f"{path} is called part {int(match['number'])} of {int(match['count'])} and has no "
                f"{SPLIT_COUNT}; split the model with llama-gguf-split, or give the file another "
                "name if it is a whole model"
            )
        return named
    number = _split_key(path, named, SPLIT_NUMBER, 0)
    this = f"{path} is part {number + 1} of {count} of a model ({SPLIT_COUNT}={count})"
    parts = _parts(path, named, match, number, count, this)
    tensors: dict[str, Tensor] = {}
    for contents in parts:
        for name, tensor in contents.tensors.items():
            if name in tensors:
                raise ValueError(
                    f"{this}: {tensor.path} and {tensors[name].path} both have {name!r}"
                )
            tensors[name] = tensor
    total = _split_key(path, named, SPLIT_TENSORS, len(tensors))
    if total != len(tensors):
        raise ValueError(
            f"{this}: its parts have {len(tensors)} tensors, {SPLIT_TENSORS} says {total}; copy or "
            "download all parts again"
        )
    return Contents(parts[0].metadata, tensors)


def _split_key(path: Path, contents: Contents, key: str, absent: int) -> int:
    value = contents.metadata.get(key, absent)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**31:
        raise ValueError(f"{path} is damaged: {key}={value!r}")
    return value


def _parts(
    path: Path,
    named: Contents,
    match: re.Match[str] | None,
    number: int,
    count: int,
    this: str,
) -> list[Contents]:
    """Reads the headers of all parts, in order."""
    if match is None or (int(match["number"]), int(match["count"])) != (number + 1, count):
        raise ValueError(
            f"{this}, and the others are found by its name: it has to end in "
            f"-{number + 1:05}-of-{count:05}.gguf, as it was made"
        )
    stem = match["stem"]
    if count > len(os.listdir(path.parent)):  # a damaged number must not cause a near-endless loop
        raise ValueError(f"{this}, and its folder does not have so many; copy all parts there")
    paths = [path.with_name(f"{stem}-{part:05}-of-{count:05}.gguf") for part in range(1, count + 1)]
    if missing := [each.name for each in paths if not each.is_file()]:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise ValueError(f"{this}, and {', '.join(missing[:3])}{more} is missing; copy it there")
    parts = []
    for place, each in enumerate(paths):
        contents = named if place == number else _read_file(each)
        values = tuple(
            _split_key(each, contents, key, 0) for key in (SPLIT_NUMBER, SPLIT_COUNT, SPLIT_TENSORS)
        )
        expected = (place, count, _split_key(path, named, SPLIT_TENSORS, 0))
        if values != expected:
            raise ValueError(
                f"{this}, and {each.name} does not belong to it: its {SPLIT_NUMBER}, {SPLIT_COUNT} "
                f"and {SPLIT_TENSORS} are {values} and not {expected}"
            )
        parts.append(contents)
    return parts


def _read_file(path: Path) -> Contents:
    """Reads the header of one file, which may be a whole model or a part."""
    with path.open("rb") as file:
        reader = _Reader(path, file)
        if reader.take(4) != MAGIC:
            raise ValueError(f"{path} does not start with {MAGIC!r}, so it is not a GGUF file")
        version = reader.number("<u4")
        if version not in (2, 3):
            swapped = int.from_bytes(version.to_bytes(4, "little"), "big")
            raise ValueError(
                f"{path} is GGUF in big-endian order; only little-endian files can be read"
                if swapped in (2, 3)
                else f"{path} is GGUF of version {version}; versions 2 and 3 can be read"
            )
        num_tensors, num_pairs = reader.number("<u8"), reader.number("<u8")
        metadata = _unique(path, ((reader.string(), reader.value()) for _ in range(num_pairs)))
        placed = _unique(path, (_tensor(reader) for _ in range(num_tensors)))
        alignment = metadata.get(ALIGNMENT, _DEFAULT_ALIGNMENT)
        if not isinstance(alignment, int) or isinstance(alignment, bool) or alignment < 1:
            raise ValueError(f"{path} is damaged: {ALIGNMENT}={alignment!r}")
        start = -(-file.tell() // alignment) * alignment
    tensors = {
        name: dataclasses.replace(tensor, offset=start + tensor.offset)
        for name, tensor in placed.items()
    }
    for name, tensor in tensors.items():
        if tensor.offset + tensor.size > reader.size:
            raise ValueError(
                f"{path} is truncated: {name!r} ends at byte {tensor.offset + tensor.size} and the "
                f"file at {reader.size}; copy or download it again"
            )
    return Contents(metadata, tensors)


def _unique(path: Path, pairs: Iterable[tuple[str, T]]) -> dict[str, T]:
    values: dict[str, T] = {}
    for name, value in pairs:
        if name in values:
            raise ValueError(f"{path} is damaged: it has {name!r} twice")
        values[name] = value
    return values


def check_kind(name: str, tensor: Tensor) -> None:
    """Raises ValueError if a tensor's type cannot be decoded; does not read the tensor."""
    kind = _kind(tensor.kind)
    if not _decodes(tensor.kind):
        raise ValueError(
            f"{tensor.path}: {name!r} is of the type {kind.name}, which cannot be decoded; take a "
            "file of another quantisation, such as Q8_0, or of F16, BF16 or F32"
        )


@functools.cache
def _decodes(number: int) -> bool:
    """Whether the `gguf` package can decode a type; tries it on one block of zeros."""
    from gguf import GGML_QUANT_SIZES, quants

    kind = _kind(number)
    try:
        quants.dequantize(np.zeros((1, GGML_QUANT_SIZES[kind][1]), np.uint8), kind)
    except NotImplementedError:
        return False
    return True


def read_tensor(
    name: str, tensor: Tensor, part: tuple[range, ...] | None = None
) -> NDArray[np.float32]:
    """Reads a tensor, or a part of a vector or matrix, and decodes it to float32.

    For a part, only the quantized blocks that overlap it are read.

    Args:
      name: the tensor's name, for error messages.
      tensor: the tensor's location.
      part: a range for each axis; None for the whole tensor.

    Raises:
      ValueError: the tensor's type cannot be decoded.
    """
    from gguf import GGML_QUANT_SIZES, quants

    check_kind(name, tensor)
    kind = _kind(tensor.kind)
    num_rows = math.prod(tensor.shape[:-1])
    shape = (num_rows, tensor.size // num_rows)
    stored = np.memmap(tensor.path, np.uint8, "r", tensor.offset, shape)
    if part is None:
        decoded = quants.dequantize(stored, kind)
        return np.asarray(decoded, np.float32).reshape(tensor.shape)
    *row_axes, columns = part
    rows = row_axes[0] if row_axes else range(1)
    block, block_bytes = GGML_QUANT_SIZES[kind]
    first, last = columns.start // block, -(-columns.stop // block)
    blocks = stored[rows.start : rows.stop, first * block_bytes : last * block_bytes]
    decoded = quants.dequantize(blocks, kind)[:, columns.start - first * block :][:, : len(columns)]
    return np.asarray(decoded, np.float32).reshape(tuple(map(len, part)))


def _kind(number: int) -> Any:
    """Returns the `GGMLQuantizationType` of a number; raises ValueError if it is unknown."""
    from gguf import GGMLQuantizationType

    return GGMLQuantizationType(number)


def _tensor(reader: "_Reader") -> tuple[str, Tensor]:
    from gguf import GGML_QUANT_SIZES

    name = reader.string()
    shape = tuple(reader.number("<u8") for _ in range(reader.number("<u4")))[::-1]
    kind, offset = reader.number("<u4"), reader.number("<u8")
    try:
        block, block_bytes = GGML_QUANT_SIZES[_kind(kind)]
    except ValueError:
        raise ValueError(
            f"{reader.path}: {name!r} is of the unknown type {kind}; the gguf package that is "
            "installed may be older than the file"
        ) from None
    if not all(shape) or not shape or shape[-1] % block:
        raise ValueError(f"{reader.path} is damaged: {name!r} has the shape {list(shape)}")
    return name, Tensor(reader.path, shape, kind, offset, math.prod(shape) // block * block_bytes)


class _Reader:
    """Reads values in sequence, never past the end of the file."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self.path = path
        self.size = os.fstat(file.fileno()).st_size
        self._file = file

    def take(self, count: int) -> bytes:
        if count > self.size:  # a damaged length must not cause a huge allocation
            raise self._damaged()
        data = self._file.read(count)
        if len(data) < count:
            raise self._damaged()
        return data

    def number(self, dtype: str) -> Any:
        """Reads an int, float or bool."""
        return np.frombuffer(self.take(np.dtype(dtype).itemsize), dtype)[0].item()

    def string(self) -> str:
        """Reads a name, which must be UTF-8."""
        try:
            return self.bytes().decode()
        except UnicodeDecodeError:
            raise self._damaged() from None

    def bytes(self) -> bytes:
        (length,) = struct.unpack("<Q", self.take(8))
        return self.take(length)

    def text(self) -> str:
        """Reads a string value; bytes that are not UTF-8, which llama.cpp accepts, are escaped."""
        return self.bytes().decode(errors="surrogateescape")

    def value(self) -> Any:
        return self._value_of(self.number("<u4"))

    def _value_of(self, kind: int) -> Any:
        if kind == _STRING:
            return self.text()
        if kind == _ARRAY:
            element, count = self.number("<u4"), self.number("<u8")
            if element in _SCALARS:
                dtype = np.dtype(_SCALARS[element])
                return np.frombuffer(self.take(count * dtype.itemsize), dtype).tolist()
            if element != _STRING or count > self.size:  # no known model has nested arrays
                raise self._damaged()
            return [self.text() for _ in range(count)]
        if kind not in _SCALARS:
            raise self._damaged()
        return self.number(_SCALARS[kind])

    def _damaged(self) -> ValueError:
        return ValueError(
            f"{self.path} is truncated or damaged near byte {self._file.tell()} of {self.size}; "
            "copy or download it again"
        )
