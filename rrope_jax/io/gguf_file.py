"""The container format GGUF: metadata and tensors by name, read one at a time.

The reader of the `gguf` package makes an array of every token of a vocabulary, which takes a
minute and 150 MiB for SmolLM2; this one reads the same file's header in a second. Layout:
docs/gguf.md of ggml-org/ggml. Quantized blocks are decoded by the package.
"""

import dataclasses
import math
import os
import struct
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

MAGIC = b"GGUF"
ALIGNMENT = "general.alignment"
_DEFAULT_ALIGNMENT = 32
_STRING, _ARRAY = 8, 9
# by the number of the value type
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
    """Where a tensor is in its file.

    Attributes:
      shape: outermost axis first.
      kind: number of the `GGMLQuantizationType`.
      offset: of the first byte in the file.
      size: in bytes.
    """

    shape: tuple[int, ...]
    kind: int
    offset: int
    size: int


@dataclasses.dataclass(frozen=True)
class Contents:
    """What is in a file.

    Attributes:
      metadata: numbers, strings, and arrays of them as lists.
      tensors: by name.
    """

    metadata: dict[str, Any]
    tensors: dict[str, Tensor]


def read_header(path: Path) -> Contents:
    """Reads the metadata, and where the tensors are.

    Raises:
      ValueError: the file is not GGUF of version 2 or 3, is damaged, or ends too early.
    """
    with path.open("rb") as file:
        reader = _Reader(path, file)
        if reader.take(4) != MAGIC:
            raise ValueError(f"{path} does not start with {MAGIC!r}, so it is not a GGUF file")
        version = reader.number("<u4")
        if version not in (2, 3):
            raise ValueError(f"{path} is GGUF of version {version}; versions 2 and 3 can be read")
        num_tensors, num_pairs = reader.number("<u8"), reader.number("<u8")
        metadata = {reader.string(): reader.value() for _ in range(num_pairs)}
        found = [_tensor(reader) for _ in range(num_tensors)]
        alignment = metadata.get(ALIGNMENT, _DEFAULT_ALIGNMENT)
        if not isinstance(alignment, int) or alignment < 1:
            raise ValueError(f"{path} is damaged: {ALIGNMENT}={alignment!r}")
        start = -(-file.tell() // alignment) * alignment
    tensors = {
        name: dataclasses.replace(tensor, offset=start + tensor.offset) for name, tensor in found
    }
    for name, tensor in tensors.items():
        if tensor.offset + tensor.size > reader.size:
            raise ValueError(
                f"{path} is truncated: {name} ends at byte {tensor.offset + tensor.size} and the "
                f"file at {reader.size}; copy or download it again"
            )
    return Contents(metadata, tensors)


def read_tensor(path: Path, tensor: Tensor) -> NDArray[np.float32]:
    """Reads one tensor and decodes it to float32."""
    from gguf import GGMLQuantizationType, quants

    with path.open("rb") as file:
        file.seek(tensor.offset)
        data = np.fromfile(file, np.uint8, tensor.size)
    kind = GGMLQuantizationType(tensor.kind)
    rows = math.prod(tensor.shape[:-1])
    decoded = quants.dequantize(data.reshape(rows, -1), kind)
    return np.asarray(decoded, np.float32).reshape(tensor.shape)


def _tensor(reader: "_Reader") -> tuple[str, Tensor]:
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    name = reader.string()
    shape = tuple(reader.number("<u8") for _ in range(reader.number("<u4")))[::-1]
    kind, offset = reader.number("<u4"), reader.number("<u8")
    try:
        block, block_bytes = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
    except ValueError:
        raise ValueError(
            f"{reader.path}: {name} is of the unknown type {kind}; the gguf package that is "
            "installed may be older than the file"
        ) from None
    if not shape or shape[-1] % block:
        raise ValueError(f"{reader.path} is damaged: {name} has the shape {list(shape)}")
    return name, Tensor(shape, kind, offset, math.prod(shape) // block * block_bytes)


class _Reader:
    """Takes one value after the other, and never more than the file has."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self.path = path
        self.size = os.fstat(file.fileno()).st_size
        self._file = file

    def take(self, count: int) -> bytes:
        if count > self.size:  # a damaged length must not become an allocation
            raise self._damaged()
        data = self._file.read(count)
        if len(data) < count:
            raise self._damaged()
        return data

    def number(self, dtype: str) -> Any:
        """An int, float or bool."""
        return np.frombuffer(self.take(np.dtype(dtype).itemsize), dtype)[0].item()

    def string(self) -> str:
        (length,) = struct.unpack("<Q", self.take(8))
        try:
            return self.take(length).decode()
        except UnicodeDecodeError:
            raise self._damaged() from None

    def value(self) -> Any:
        return self._value_of(self.number("<u4"))

    def _value_of(self, kind: int) -> Any:
        if kind == _STRING:
            return self.string()
        if kind == _ARRAY:
            element, count = self.number("<u4"), self.number("<u8")
            if element in _SCALARS:
                dtype = np.dtype(_SCALARS[element])
                return np.frombuffer(self.take(count * dtype.itemsize), dtype).tolist()
            if element != _STRING or count > self.size:  # arrays of arrays are in no model
                raise self._damaged()
            return [self.string() for _ in range(count)]
        if kind not in _SCALARS:
            raise self._damaged()
        return self.number(_SCALARS[kind])

    def _damaged(self) -> ValueError:
        return ValueError(
            f"{self.path} is truncated or damaged near byte {self._file.tell()} of {self.size}; "
            "copy or download it again"
        )
