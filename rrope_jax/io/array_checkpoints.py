"""Checkpoints of numpy arrays, written by one process independently of all others.

Orbax writes numpy arrays in process 0 only, so it is not used here. The folder layout is that of
`io.orbax.checkpoint`, except that all arrays are in one file, keyed by their paths in the tree.
"""

import io
import json
import logging
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from rrope_jax.io import json_text
from rrope_jax.io.orbax import checksums
from rrope_jax.io.orbax.checkpoint import (
    CHECKSUMS,
    METADATA,
    TREE,
    one_line,
    remove_checkpoint,
    save_error,
    steps_in,
)
from rrope_jax.io.stores import AnyPath, StorePath
from rrope_jax.io.target import whole_or_nothing

_LOG = logging.getLogger(__name__)
_FILE = "arrays.npz"


class ArrayCheckpoints:
    """The checkpoints of one run in one folder, newest last.

    A process that is killed while saving leaves existing checkpoints intact. Checksums are saved
    with the data and compared on restore.
    """

    def __init__(self, folder: AnyPath, *, keep: int = 2):
        """Opens a folder, which need not exist yet.

        Args:
          folder: absolute path, or a path in an object store.
          keep: number of most recent checkpoints to keep.
        """
        self._folder, self._keep = folder, keep

    def save(self, step: int, tree: Any, metadata: dict[str, Any]) -> None:
        """Saves arrays and JSON-serializable metadata, replacing any checkpoint of the same step.

        Raises:
          SaveError: the checkpoint could not be written.
        """
        goal = self._folder / str(step)
        # The .npz file has its own checksums, which are verified on reading.
        sums = {checksums.ARRAYS: {}, checksums.METADATA: checksums.of_json(metadata)}
        try:
            if isinstance(goal, StorePath):
                remove_checkpoint(goal)
                _write(goal, tree, metadata, sums)
            else:
                with whole_or_nothing(goal, overwrite=True) as new:
                    for item in (TREE, METADATA, CHECKSUMS):
                        (new / item).mkdir(parents=True)
                    _write(new, tree, metadata, sums)
            for old in steps_in(self._folder)[self._keep :]:
                remove_checkpoint(self._folder / str(old))
        except (OSError, ValueError) as error:
            raise save_error(goal, error, own=True) from error

    def restore(self, like: Any) -> tuple[Any, dict[str, Any]] | None:
        """Returns the tree and metadata of the newest readable checkpoint, or None.

        Unreadable checkpoints are skipped with a warning.

        Args:
          like: a tree of arrays, or of anything with `shape` and `dtype`, in the structure to
            restore.
        """
        for step in steps_in(self._folder):
            path = self._folder / str(step)
            try:
                return _read_tree(path / TREE / _FILE, like), _read_metadata(path)
            except Exception as error:  # damaged files make numpy and zipfile raise many types
                _LOG.warning(
                    "checkpoint %s cannot be read (%s); trying an older one", path, one_line(error)
                )
        return None


def _write(path: AnyPath, tree: Any, metadata: dict[str, Any], sums: Mapping[str, Any]) -> None:
    """Writes the files of a checkpoint, and last those that `steps_in` needs in a store."""
    data = io.BytesIO()
    np.savez(data, **_by_path(tree))
    (path / TREE / _FILE).write_bytes(data.getbuffer())
    (path / METADATA / METADATA).write_text(json.dumps(metadata))
    (path / CHECKSUMS / METADATA).write_text(json.dumps(sums))


def _read_metadata(path: AnyPath) -> dict[str, Any]:
    metadata: dict[str, Any] = json_text.parse((path / METADATA / METADATA).read_bytes())
    if (path / CHECKSUMS).is_dir():  # earlier releases did not save checksums
        saved = json_text.parse((path / CHECKSUMS / METADATA).read_bytes())
        checksums.check_metadata(saved, metadata)
    return metadata


def _read_tree(file: AnyPath, like: Any) -> Any:
    """Reads the arrays of a file; raises ValueError if shapes or dtypes differ from `like`."""
    expected = _by_path(like)
    with np.load(io.BytesIO(file.read_bytes())) as arrays:
        stored = {name: arrays[name] for name in arrays.files}
    for name in {**expected, **stored}:
        kinds = [
            f"{tree[name].dtype}{list(tree[name].shape)}" if name in tree else "absent"
            for tree in (stored, expected)
        ]
        if kinds[0] != kinds[1]:
            raise ValueError(f"{name} is {kinds[0]}, not {kinds[1]}")
    return jax.tree.unflatten(jax.tree.structure(like), [stored[name] for name in expected])


def _by_path(tree: Any) -> dict[str, Any]:
    return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree.leaves_with_path(tree)}
