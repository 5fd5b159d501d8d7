"""A tree of numpy arrays as an item of an Orbax checkpoint, from whichever process has them.

Orbax's own handlers write numpy arrays in process 0 alone, and refuse arrays of JAX that are on the
devices of one process among several.
"""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

_FILE = "arrays.npz"


class HostArraysHandler(ocp.CheckpointHandler):  # type: ignore[misc]
    """Reads and writes the arrays as one file, each under its path in the tree."""

    def save(self, directory: Path, args: "HostArraysSave") -> None:
        """Writes the tree of `args`."""
        with (directory / _FILE).open("wb") as file:
            np.savez(file, **dict(_named(args.tree)))

    def restore(self, directory: Path, args: "HostArraysRestore") -> Any:
        """The tree, with the structure of the one in `args`.

        Raises:
          ValueError: the file has other arrays, or of another shape or dtype.
        """
        like = dict(_named(args.like))
        with (directory / _FILE).open("rb") as file, np.load(file) as found:
            kept = {name: found[name] for name in found.files}
        for name in {**like, **kept}:
            wanted, there = (
                f"{tree[name].dtype}{list(tree[name].shape)}" if name in tree else "absent"
                for tree in (like, kept)
            )
            if wanted != there:
                raise ValueError(f"{name} is {there}, not {wanted}")
        return jax.tree.unflatten(jax.tree.structure(args.like), [kept[name] for name in like])


def _named(tree: Any) -> list[tuple[str, Any]]:
    return [(jax.tree_util.keystr(path), leaf) for path, leaf in jax.tree.leaves_with_path(tree)]


@ocp.args.register_with_handler(HostArraysHandler, for_save=True)
@dataclasses.dataclass
class HostArraysSave(ocp.args.CheckpointArgs):  # type: ignore[misc]
    """A tree of numpy arrays to save."""

    tree: Any


@ocp.args.register_with_handler(HostArraysHandler, for_restore=True)
@dataclasses.dataclass
class HostArraysRestore(ocp.args.CheckpointArgs):  # type: ignore[misc]
    """A tree of arrays, or of their shapes and dtypes, to restore alike."""

    like: Any
