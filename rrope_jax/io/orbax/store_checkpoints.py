"""The checkpoints of a run in an object store, with the interface of `BackgroundCheckpoints`."""

import functools
import json
import logging
import threading
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import multihost

from rrope_jax.io import json_text
from rrope_jax.io.orbax import checksums
from rrope_jax.io.orbax.checkpoint import (
    CHECKSUMS,
    METADATA,
    TREE,
    BackgroundCheckpoints,
    Gather,
    Pending,
    Read,
    newest_readable,
    one_line,
    remove_checkpoint,
    save_error,
    seconds_to_save,
    steps_in,
)
from rrope_jax.io.orbax.store_arrays import (
    LocalPart,
    StoredArrays,
    names_of,
    write_arrays,
    write_tree_metadata,
)
from rrope_jax.io.stores import AnyPath, StoreError, StorePath

_LOG = logging.getLogger(__name__)


class StoreCheckpoints:
    """Checkpoints that are written while the run continues; use as a context manager.

    Every process writes its own shards. Process 0 then writes the checksums, which make the
    checkpoint count; what a killed process has left is removed with the next save.
    """

    def __init__(self, folder: StorePath, *, keep: int = 2, keep_every: int | None = None):
        """Opens a folder; see `Checkpoints` for the arguments."""
        self._folder, self._keep, self._keep_every = folder, keep, keep_every
        self._pending: Pending | None = None
        self._first = jax.process_index() == 0
        self._saves = 0

    def save(self, step: int, tree: Any, metadata: dict[str, Any]) -> None:
        """Starts a save after waiting for the previous one; see `BackgroundCheckpoints.save`."""
        self.wait()
        pending = self._pending = Pending(step)
        try:
            sums = {
                checksums.ARRAYS: checksums.of_tree(tree),
                checksums.METADATA: checksums.of_json(metadata),
            }
            if self._first:
                self._remove_all_but(steps_in(self._folder), without=step)
            timeout = seconds_to_save(tree)
            self._barrier("room", timeout)
            parts = {name: LocalPart(leaf) for name, leaf in names_of(tree).items()}
        except Exception as error:  # JAX raises many types
            pending.fail(error)
            raise self._failed(pending, error) from error
        shapes = jax.tree.map(ocp.utils.to_shape_dtype_struct, tree)
        write = functools.partial(self._write, step, parts, shapes, metadata, sums, timeout)
        threading.Thread(target=pending.write, args=(write,), daemon=True).start()

    def wait(self) -> None:
        """Waits until the last save is in the store.

        Raises:
          SaveError: the checkpoint could not be written.
        """
        if self._pending is None:
            return
        try:
            self._pending.wait()
        except Exception as error:  # TensorStore and JAX raise many types
            raise self._failed(self._pending, error) from error
        self._pending = None

    def restore(
        self, like: Any, *, gather: Gather = lambda value: [value]
    ) -> tuple[Any, dict[str, Any]] | None:
        """Returns the newest readable checkpoint; see `Checkpoints.restore`.

        Raises:
          StoreError: the store does not answer, so nothing is known of its checkpoints.
        """
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        steps = gather(steps_in(self._folder))[0]
        return newest_readable(self._folder, steps, lambda step: self._read(step, abstract), gather)

    @property
    def newest(self) -> int | None:
        """The step of the newest checkpoint, or None; it is not checked for damage."""
        return next(iter(steps_in(self._folder)), None)

    def _read(self, step: int, like: Any) -> Read:
        """Reads this process's part of a checkpoint."""
        path = self._folder / str(step)
        try:
            tree = StoredArrays(path / TREE).read_tree(like)
            metadata = json_text.parse((path / METADATA / METADATA).read_bytes())
            saved = json_text.parse((path / CHECKSUMS / METADATA).read_bytes())
            return Read(tree, metadata, checksums.check_metadata(saved, metadata))
        except StoreError:
            raise
        except Exception as error:  # damaged objects make TensorStore and JSON raise many types
            return Read(trouble=one_line(error))

    def _write(
        self,
        step: int,
        parts: Mapping[str, LocalPart],
        like: Any,
        metadata: dict[str, Any],
        sums: dict[str, Any],
        timeout: int,
    ) -> None:
        """Writes a checkpoint; runs in a thread."""
        path = self._folder / str(step)
        write_arrays(path / TREE, parts, first=self._first)
        self._barrier("written", timeout)
        if self._first:
            write_tree_metadata(path / TREE, like)
            (path / METADATA / METADATA).write_text(json.dumps(metadata))
            (path / CHECKSUMS / METADATA).write_text(json.dumps(sums))
            steps = steps_in(self._folder)
            periodic = [s for s in steps if self._keep_every and s % self._keep_every == 0]
            self._remove_all_but([*steps[: self._keep], *periodic])
        self._barrier("counts", timeout)

    def _remove_all_but(self, steps: list[int], *, without: int | None = None) -> None:
        """Removes all other checkpoints, whole or not; also the one of step `without`."""
        for path in self._folder.iterdir():
            if path.name.isdigit() and (int(path.name) not in steps or int(path.name) == without):
                remove_checkpoint(path)

    def _barrier(self, name: str, timeout: int) -> None:
        """Waits for all processes, over the host network."""
        self._saves += 1
        key = f"rrope {name} {self._saves}"
        multihost.get_barrier_sync_fn()(key=key, timeout_ms=timeout * 1000)

    def _failed(self, pending: Pending, error: Exception) -> Exception:
        self._pending = None
        return save_error(self._folder / str(pending.step), error, own=pending.own)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            if error is None or jax.process_count() == 1:
                self.wait()
        except Exception:
            if error is None:
                raise


RunCheckpoints = BackgroundCheckpoints | StoreCheckpoints


def checkpoints_of_run(
    folder: AnyPath, *, keep: int = 2, keep_every: int | None = None
) -> RunCheckpoints:
    """Opens the checkpoints of a run on a disk or in a store; see `Checkpoints`."""
    if isinstance(folder, StorePath):
        return StoreCheckpoints(folder, keep=keep, keep_every=keep_every)
    return BackgroundCheckpoints(folder, keep=keep, keep_every=keep_every)
