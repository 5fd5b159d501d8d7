"""One of two processes that load a model onto their devices; counts the bytes that it reads.

Usage: python -m tests.io.loading_process PROCESS PORT AXIS PATH...

Each path is a checkpoint. Prints a line of JSON for each: the bytes of the numbers that were asked
for, the bytes of all of them, and whether the shards hold what the whole model has there.
"""

import json
import sys
from pathlib import Path
from typing import Any

import gguf.quants
import jax
import numpy as np
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from rrope_jax.io import pretrained
from rrope_jax.io.huggingface import read as huggingface_read
from rrope_jax.io.source import read_parameter
from rrope_jax.io.weights import Weight, parameter_shapes

COUNTED = {"bytes": 0}


def main(process: int, port: int, axis: str, paths: list[str]) -> None:
    """Loads every checkpoint, with all parameters cut along one kind of axis."""
    jax.distributed.initialize(f"127.0.0.1:{port}", 2, process)
    _count_gguf()
    _count_safetensors()
    mesh = jax.make_mesh((4,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    for path in paths:
        source = pretrained.open_source(path)
        source.check()
        shapes = parameter_shapes(source.description.model)
        shardings = nnx.traversals.unflatten_mapping(
            {
                tuple(weight.path.split(".")): NamedSharding(mesh, _spec(axis, weight, shape))
                for weight, shape in shapes.items()
            }
        )
        COUNTED["bytes"] = 0
        before = _read_by_system_calls()
        params = nnx.traversals.flatten_mapping(pretrained.load_params(source, shardings))
        by_system_calls = _read_by_system_calls() - before
        asked = COUNTED["bytes"] if Path(path).name != "orbax" else by_system_calls
        whole = {weight: read_parameter(source, weight) for weight in shapes}
        same = all(
            np.array_equal(np.asarray(shard.data), whole[weight][shard.index])
            for weight in shapes
            for shard in params[tuple(weight.path.split("."))].addressable_shards
        )
        total = sum(array.size for array in whole.values())
        print(json.dumps({"path": Path(path).name, "asked": asked, "size": total, "same": same}))


def _spec(axis: str, weight: Weight, shape: tuple[int, ...]) -> PartitionSpec:
    """Cuts the layers, or the first axis of the rows or of the columns of each matrix."""
    rows, columns = weight.axes(len(shape) - weight.stacked)
    if axis == "layers":
        cut = 0 if weight.stacked else None
    else:
        group = {"rows": rows, "columns": columns}[axis]
        cut = group[0] + weight.stacked if group else None
    return PartitionSpec(*["x" if each == cut else None for each in range(len(shape))])


def _read_by_system_calls() -> int:
    return int(Path("/proc/self/io").read_text().split()[1])


def _count_gguf() -> None:
    dequantize = gguf.quants.dequantize

    def counted(data: np.ndarray, kind: Any) -> np.ndarray:
        COUNTED["bytes"] += data.nbytes
        return dequantize(data, kind)

    gguf.quants.dequantize = counted


def _count_safetensors() -> None:
    class Slice:
        def __init__(self, inner: Any):
            self._inner = inner

        def __getattr__(self, name: str) -> Any:
            return getattr(self._inner, name)

        def __getitem__(self, index: Any) -> np.ndarray:
            array: np.ndarray = self._inner[index]
            COUNTED["bytes"] += array.nbytes
            return array

    class File:
        def __init__(self, inner: Any):
            self._inner = inner

        def __enter__(self) -> "File":
            self._inner.__enter__()
            return self

        def __exit__(self, *error: object) -> None:
            self._inner.__exit__(*error)

        def keys(self) -> list[str]:
            names: list[str] = self._inner.keys()
            return names

        def get_tensor(self, name: str) -> np.ndarray:
            array: np.ndarray = self._inner.get_tensor(name)
            COUNTED["bytes"] += array.nbytes
            return array

        def get_slice(self, name: str) -> Slice:
            return Slice(self._inner.get_slice(name))

    safe_open: Any = huggingface_read.safe_open
    huggingface_read.safe_open = lambda *args, **keywords: File(safe_open(*args, **keywords))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4:])
