"""Arrays of checkpoints in object stores, read and written with TensorStore.

Orbax itself cannot write to S3, and to Google Cloud Storage only with more packages. The objects
are those of an Orbax folder without its database (OCDBT): a Zarr array for each leaf, in chunks
that processes write independently. Copied to a disk, Orbax opens them; and folders that Orbax has
written, with the database, are read when they are copied to a store.
"""

import concurrent.futures
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
import tensorstore as ts

from rrope_jax.io import json_text
from rrope_jax.io.stores import StorePath, context

_DATABASE, _TREE_METADATA, _ARRAY = "manifest.ocdbt", "_METADATA", ".zarray"
# S3 takes at most 5 GB in one request; and what is lost in a request is sent again.
_CHUNK_BYTES = 256 << 20
_READERS = 8


def name_of(path: Sequence[Any]) -> str:
    """The name of a leaf, such as `params.embed.table`, from its path in a tree."""
    return jax.tree_util.keystr(tuple(path), simple=True, separator=".")


def names_of(tree: Any) -> dict[str, Any]:
    """The leaves of a tree by name."""
    return {name_of(path): leaf for path, leaf in jax.tree.leaves_with_path(tree)}


class LocalPart:
    """The part of an array that this process writes, as a copy in host memory.

    Attributes:
      shape, dtype: of the whole array.
      chunk: the shape of its chunks, none of which spans two shards.
      pieces: indices and values of the shards that no other process writes.
    """

    def __init__(self, array: jax.Array) -> None:
        """Copies the shards, so that the array may be donated afterward."""
        self.shape, self.dtype = array.shape, np.dtype(array.dtype)
        self.chunk = _chunk(array.sharding.shard_shape(array.shape), self.dtype.itemsize)
        shards = [shard for shard in array.addressable_shards if shard.replica_id == 0]
        for shard in shards:
            shard.data.copy_to_host_async()
        self.pieces = [(shard.index, np.array(shard.data)) for shard in shards]


def write_arrays(folder: StorePath, parts: Mapping[str, LocalPart], *, first: bool) -> None:
    """Writes this process's part of all arrays, and waits for it.

    Args:
      folder: the folder of the arrays.
      parts: the parts by name, with the same names in all processes.
      first: whether this is the process that also writes what describes the arrays.

    Raises:
      StoreError: the store does not take them.
    """
    writes = []
    for name, part in parts.items():
        spec = {
            "driver": "zarr",
            "kvstore": (folder / name).spec(),
            "dtype": part.dtype.name,
            "metadata": {
                "shape": part.shape,
                "chunks": part.chunk,
                "compressor": {"id": "zstd", "level": 1},
                "dimension_separator": ".",
            },
        }
        try:
            array = ts.open(
                spec, context=context(), open=True, create=first, assume_metadata=not first
            ).result()
            for index, piece in part.pieces:
                write = array[index].write(piece, can_reference_source_data_indefinitely=True)
                writes.append((name, write))
        except Exception as error:  # TensorStore raises many types
            raise (folder / name).explain(error) from error
    for name, write in writes:
        try:
            write.result()
        except Exception as error:  # TensorStore raises many types
            raise (folder / name).explain(error) from error


def tree_metadata(tree: Any) -> str:
    """What Orbax needs to open the arrays of a tree on a disk: its structure, as JSON."""
    leaves = {}
    for path, leaf in jax.tree.leaves_with_path(tree, is_leaf=_is_empty):
        keys = [_key(entry) for entry in path]
        kind = _EMPTY.get(type(leaf), "None") if _is_empty(leaf) else "jax.Array"
        leaves[str(tuple(key["key"] for key in keys))] = {
            "key_metadata": keys,
            "value_metadata": {"value_type": kind, "skip_deserialize": _is_empty(leaf)},
        }
    return json.dumps({"tree_metadata": leaves, "use_ocdbt": False, "use_zarr3": False})


def write_tree_metadata(folder: StorePath, tree: Any) -> None:
    """Writes `tree_metadata` where Orbax looks for it."""
    (folder / _TREE_METADATA).write_text(tree_metadata(tree))


class StoredArrays:
    """The arrays in a folder of a store."""

    def __init__(self, folder: StorePath) -> None:
        """Looks whether the folder has a database.

        Raises:
          StoreError: the store cannot be read.
        """
        self._folder = folder
        self._spec: dict[str, Any] = folder.spec()
        if (folder / _DATABASE).is_file():
            self._spec = {"driver": "ocdbt", "base": self._spec}

    def shapes(self, inside: Sequence[str] = ()) -> dict[str, tuple[int, ...]]:
        """Returns the shapes of the arrays by name.

        Args:
          inside: keys that lead to the part of the tree to look at; names are without them.

        Raises:
          StoreError: the store cannot be read.
          ValueError: an array's description is damaged.
        """
        store = self._result(ts.KvStore.open(self._spec, context=context()))
        prefix, ending = "".join(f"{key}." for key in inside), f"/{_ARRAY}"
        keys = [key.decode() for key in self._result(store.list())]
        names = [key for key in keys if key.startswith(prefix) and key.endswith(ending)]
        reads = {name: store.read(name) for name in names}
        described = {name: json_text.parse(self._result(reads[name]).value) for name in names}
        return {
            name[len(prefix) : -len(ending)]: tuple(value["shape"])
            for name, value in described.items()
        }

    def read(
        self, name: str, sharding: jax.sharding.Sharding | None, dtype: np.dtype[Any]
    ) -> jax.Array | np.ndarray:
        """Reads an array, of which each process only the chunks that overlap its shards.

        Args:
          name: its name.
          sharding: where to put it; None for a numpy array.
          dtype: the dtype to convert it to.

        Raises:
          StoreError: the store cannot be read.
          ValueError: the array is missing or damaged.
        """
        spec = {"driver": "zarr", "kvstore": {**self._spec, "path": self._path(name)}}
        array = self._result(ts.open(spec, context=context(), open=True, read=True))

        def part(index: Any) -> np.ndarray:
            values: np.ndarray = self._result(array[index].read())
            return values.astype(dtype, copy=False)

        if sharding is None:
            return part(...)
        return jax.make_array_from_callback(array.shape, sharding, part)

    def read_tree(self, like: Any) -> Any:
        """Reads the arrays of a tree; see `read`.

        Args:
          like: a tree of anything with `shape`, `dtype` and `sharding`.
        """

        def leaf(item: tuple[str, Any]) -> jax.Array | np.ndarray:
            name, expected = item
            array = self.read(name, expected.sharding, np.dtype(expected.dtype))
            if array.shape != tuple(expected.shape):
                raise ValueError(f"{name} has shape {array.shape}, not {tuple(expected.shape)}")
            return array

        with concurrent.futures.ThreadPoolExecutor(_READERS) as pool:
            leaves = list(pool.map(leaf, names_of(like).items()))
        return jax.tree.unflatten(jax.tree.structure(like), leaves)

    def _path(self, name: str) -> str:
        base: str = self._spec.get("path", "")
        return f"{base}{name}/"

    def _result(self, future: Any) -> Any:
        try:
            return future.result()
        except Exception as error:  # TensorStore raises many types
            explained = self._folder.explain(error)
            if explained.of_access:
                raise explained from error
            raise ValueError(" ".join(str(error).split())[:200]) from error


def _chunk(shape: tuple[int, ...], itemsize: int) -> list[int]:
    """The shape of the largest chunks that tile a shard and are not too large to send."""
    chunk = list(shape)
    for axis, size in enumerate(shape):
        most = max(1, _CHUNK_BYTES * size // max(1, math.prod(chunk) * itemsize))
        if most >= size:
            break
        chunk[axis] = max(divisor for divisor in range(1, most + 1) if size % divisor == 0)
    return chunk


# How Orbax calls nodes without leaves; it takes named tuples for None.
_EMPTY: dict[type, str] = {dict: "Dict", list: "List", tuple: "Tuple"}


def _is_empty(node: Any) -> bool:
    return node is None or (isinstance(node, dict | list | tuple) and not node)


def _key(entry: Any) -> dict[str, Any]:
    """One key of a leaf's path, as Orbax describes it: 1 is a place in a sequence, 2 a name."""
    is_place = isinstance(entry, jax.tree_util.SequenceKey)
    return {"key": name_of([entry]), "key_type": 1 if is_place else 2}
