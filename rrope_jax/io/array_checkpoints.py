"""Checkpoints of numpy arrays that one process has, whatever other processes there are.

Orbax writes numpy arrays in process 0 only, so these do without it. The files are where those of
`io.orbax.checkpoint` are; the arrays are in one file, each under its path in the tree.
"""

import json
import logging
import shutil
from pathlib import Path
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
    save_error,
    steps_in,
)
from rrope_jax.io.target import whole_or_nothing

_LOG = logging.getLogger(__name__)
_FILE = "arrays.npz"


class ArrayCheckpoints:
    """The checkpoints of one run in one folder, newest last.

    A process that is killed while it saves leaves the checkpoints that there are as they are.
    Checksums are saved along, and what is restored is what was saved.
    """

    def __init__(self, folder: Path, *, keep: int = 2):
        """Opens a folder, which need not exist yet.

        Args:
          folder: absolute path.
          keep: how many of the newest checkpoints stay.
        """
        self._folder, self._keep = folder, keep

    def save(self, step: int, tree: Any, metadata: dict[str, Any]) -> None:
        """Saves arrays and JSON-able metadata under a step number, replacing what is there.

        Raises:
          SaveError: it could not be written.
        """
        goal = self._folder / str(step)
        # numpy's file has checksums of its own, which reading compares
        sums = {checksums.ARRAYS: {}, checksums.METADATA: checksums.of_json(metadata)}
        try:
            with whole_or_nothing(goal, overwrite=True) as new:
                for item in (TREE, METADATA, CHECKSUMS):
                    (new / item).mkdir(parents=True)
                with (new / TREE / _FILE).open("wb") as file:
                    np.savez(file, **_by_path(tree))
                (new / METADATA / METADATA).write_text(json.dumps(metadata))
                (new / CHECKSUMS / METADATA).write_text(json.dumps(sums))
            for old in steps_in(self._folder)[self._keep :]:
                shutil.rmtree(self._folder / str(old))
        except (OSError, ValueError) as error:
            raise save_error(goal, error, own=True) from error

    def restore(self, like: Any) -> tuple[Any, dict[str, Any]] | None:
        """The newest checkpoint that can be read, or None when there is none.

        One that cannot be read is passed over with a warning for the one before it.

        Args:
          like: a tree of arrays, or of their shapes and dtypes, of the structure to restore.
        """
        for step in steps_in(self._folder):
            path = self._folder / str(step)
            try:
                return _read_tree(path / TREE / _FILE, like), _read_metadata(path)
            except Exception as error:  # damaged files make numpy and zipfile raise many kinds
                _LOG.warning(
                    "checkpoint %s cannot be read (%s); trying an older one", path, one_line(error)
                )
        return None


def _read_metadata(path: Path) -> dict[str, Any]:
    metadata: dict[str, Any] = json_text.parse((path / METADATA / METADATA).read_bytes())
    if (path / CHECKSUMS).is_dir():  # those of earlier releases have none
        saved = json_text.parse((path / CHECKSUMS / METADATA).read_bytes())
        checksums.check_metadata(saved, metadata)
    return metadata


def _read_tree(file: Path, like: Any) -> Any:
    """The arrays of a file; ValueError where they are of other shapes or dtypes than `like`."""
    expected = _by_path(like)
    with np.load(file) as arrays:
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
