"""Orbax checkpoints of a pytree with JSON metadata."""

import dataclasses
import errno
import functools
import logging
import os
import shutil
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent import futures
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import jax
import orbax.checkpoint as ocp

from rrope_jax.io import json_text
from rrope_jax.io.orbax import checksums
from rrope_jax.io.orbax.watched_save import WatchedHandler
from rrope_jax.io.paths import check_orbax
from rrope_jax.io.stores import AnyPath, StorePath

_LOG = logging.getLogger(__name__)

T = TypeVar("T")

# Orbax keeps state that all savers of a process share, so threads must take turns.
_ONE_AT_A_TIME = threading.Lock()

# The items of a checkpoint, each a subfolder; JSON items are in a file METADATA inside it.
TREE, METADATA, CHECKSUMS = "tree", "metadata", "checksums"

# Timeout of a save: a base that lets all processes start and synchronize, plus the time to write
# at a rate that any disk suitable for training reaches.
_LEAST_SECONDS, _LEAST_BYTES_PER_SECOND = 600, 20e6

# Longest time that the handling of a signal is delayed.
_TURN_SECONDS = 0.2

# Operating system errors for a full disk.
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class SaveError(RuntimeError):
    """Raised when a checkpoint could not be written; earlier checkpoints are intact.

    Attributes:
      own: whether this process failed to write its part, rather than another process.
    """

    def __init__(self, message: str, *, own: bool):
        super().__init__(message)
        self.own = own


Gather = Callable[[Any], list[Any]]
"""A collective function that returns the values of all processes, in process order."""


class Checkpoints:
    """The checkpoints of one run in one folder, newest last.

    Saving is synchronous and atomic: a process killed while saving leaves a temporary folder that
    is ignored and later replaced. With several processes, all must save at the same steps; each
    writes its own shards. Checksums are saved with the data and compared on restore.
    """

    def __init__(
        self,
        folder: Path,
        *,
        keep: int = 2,
        keep_every: int | None = None,
        asynchronous: bool = False,
    ):
        """Opens a folder, which need not exist yet.

        Args:
          folder: absolute path.
          keep: number of most recent checkpoints to keep.
          keep_every: also keep checkpoints at multiples of this number of steps.
          asynchronous: set by `BackgroundCheckpoints`.

        Raises:
          ValueError: Orbax cannot save in a folder with this name.
        """
        check_orbax(folder, writing=True)
        self._folder = folder
        self._unreadable: set[int] = set()
        self._options = ocp.CheckpointManagerOptions(
            max_to_keep=keep,
            keep_period=keep_every,
            enable_async_checkpointing=asynchronous,
            create=True,
            lightweight_initialize=True,  # one damaged step must not make the others inaccessible
            cleanup_tmp_directories=True,  # left by a process that was killed while saving
        )

    def save(self, step: int, tree: Any, metadata: dict[str, Any]) -> None:
        """Saves arrays and JSON-serializable metadata, replacing any checkpoint of the same step.

        If the process is killed while saving, checkpoints of other steps stay intact.

        Raises:
          SaveError: the checkpoint could not be written.
        """
        try:
            with _ONE_AT_A_TIME, self._manager(tree) as manager:
                self._save(manager, step, tree, metadata)
                manager.wait_until_finished()
            self._check_saved(step)
        except Exception as error:  # Orbax and its drivers raise many types
            raise save_error(self._folder / str(step), error, own=True) from error

    def restore(
        self, like: Any, *, gather: Gather = lambda value: [value]
    ) -> tuple[Any, dict[str, Any]] | None:
        """Returns the tree and metadata of the newest readable checkpoint, or None.

        Unreadable checkpoints (with a damaged file, for example) are skipped with a warning.

        Args:
          like: a tree of arrays with the structure, shapes, dtypes and shardings to restore.
          gather: collects a value from every process, so that all restore a checkpoint that every
            one of them can read.
        """
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        tree = ocp.args.StandardRestore(abstract)
        steps = gather(steps_in(self._folder))[0]
        if not steps:
            return None
        with _ONE_AT_A_TIME, self._reader() as manager:
            return newest_readable(
                self._folder, steps, lambda step: self._read(manager, step, tree), gather
            )

    def _read(
        self, manager: ocp.CheckpointManager, step: int, tree: ocp.args.CheckpointArgs
    ) -> "Read":
        """Reads this process's part of a checkpoint."""
        arguments = ocp.args.Composite(tree=tree, metadata=ocp.args.JsonRestore())
        try:
            items = manager.restore(step, args=arguments)
            sums = self._folder / str(step) / CHECKSUMS
            arrays = None
            if sums.is_dir():  # earlier releases did not save checksums
                saved = json_text.parse((sums / METADATA).read_bytes())
                arrays = checksums.check_metadata(saved, items[METADATA])
            return Read(items[TREE], items[METADATA], arrays)
        except Exception as error:  # Orbax and its drivers raise many types
            return Read(trouble=one_line(error))

    def _save(
        self, manager: ocp.CheckpointManager, step: int, tree: Any, metadata: dict[str, Any]
    ) -> None:
        """Starts a save."""
        if step in manager.all_steps():
            manager.delete(step)
        sums = {
            checksums.ARRAYS: checksums.of_tree(tree),
            checksums.METADATA: checksums.of_json(metadata),
        }
        arguments = ocp.args.Composite(
            tree=ocp.args.StandardSave(tree),
            metadata=ocp.args.JsonSave(metadata),
            checksums=ocp.args.JsonSave(sums),
        )
        manager.save(step, args=arguments, force=True)

    def _check_saved(self, step: int) -> None:
        """Raises ValueError unless a saved checkpoint can be opened.

        Only process 0 checks: it renames the finished checkpoint, and on a network disk the other
        processes may not see it yet.
        """
        if jax.process_index() > 0:
            return
        try:
            ocp.StandardCheckpointHandler().metadata(self._folder / str(step) / TREE)
        except Exception as error:  # Orbax and its drivers raise many types
            self._unreadable.add(step)
            raise ValueError(f"it was saved, but does not open: {one_line(error)}") from error

    @property
    def newest(self) -> int | None:
        """The step of the newest checkpoint, or None; it is not checked for damage.

        Checkpoints that this object saved and could not open afterwards are excluded.
        """
        return next((step for step in steps_in(self._folder) if step not in self._unreadable), None)

    def _manager(self, tree: Any) -> ocp.CheckpointManager:
        """Creates a manager that saves trees of this size; removes partial checkpoints."""
        return ocp.CheckpointManager(self._folder, options=_with_time(self._options, tree))

    def _reader(self) -> ocp.CheckpointManager:
        """Creates a manager for this process alone, so that restoring never waits for another."""
        index = jax.process_index()
        only_this = ocp.options.MultiprocessingOptions(
            primary_host=index,
            active_processes={index},
            barrier_sync_key_prefix=f"process_{index}",
        )
        options = dataclasses.replace(
            self._options,
            cleanup_tmp_directories=False,
            create=False,
            multiprocessing_options=only_this,
        )
        return ocp.CheckpointManager(self._folder, options=options)


@dataclasses.dataclass(frozen=True)
class Read:
    """The part of a checkpoint that a process has read.

    Attributes:
      tree, metadata: the items as read; the tree is not yet compared with its checksums.
      sums: checksums of the tree's arrays; None if none were saved.
      trouble: the error message; empty on success.
    """

    tree: Any = None
    metadata: dict[str, Any] = dataclasses.field(default_factory=dict)
    sums: Mapping[str, str] | None = None
    trouble: str = ""

    def checked(self) -> "Read":
        """Compares the arrays with their checksums; a collective, so all processes must call it."""
        if self.sums is not None:
            try:
                checksums.check_arrays(self.sums, self.tree)
            except ValueError as error:
                return Read(trouble=str(error))
        return self


def newest_readable(
    folder: AnyPath, steps: Sequence[int], read: Callable[[int], Read], gather: Gather
) -> tuple[Any, dict[str, Any]] | None:
    """Returns the tree and metadata of the first of some checkpoints that all processes can read.

    Args:
      folder: the folder of the checkpoints.
      steps: their steps.
      read: reads this process's part of one.
      gather: as for `Checkpoints.restore`.
    """
    for step in steps:
        part = read(step)
        if not (troubles := list(filter(None, gather(part.trouble)))):
            # No gather: the check gives the same result in all processes.
            part = part.checked()
            troubles = [part.trouble]
        if not any(troubles):
            return part.tree, part.metadata
        _LOG.warning(
            "checkpoint %s cannot be read (%s); trying an older one",
            folder / str(step),
            troubles[0],
        )
    return None


def seconds_to_save(tree: Any) -> int:
    """The timeout of a save: what the slowest process may need for these arrays."""
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(tree))
    return _LEAST_SECONDS + int(size / _LEAST_BYTES_PER_SECOND)


def _with_time(options: ocp.CheckpointManagerOptions, tree: Any) -> ocp.CheckpointManagerOptions:
    """Sets the timeout of a save of these arrays."""
    seconds = seconds_to_save(tree)
    return dataclasses.replace(options, async_options=ocp.AsyncOptions(timeout_secs=seconds))


def steps_in(folder: AnyPath) -> list[int]:
    """The steps of the checkpoints in a folder, newest first.

    In an object store, which has no folders to rename, a checkpoint counts once its checksums are
    there, which are written last.
    """
    if isinstance(folder, StorePath):
        whole = (CHECKSUMS, METADATA)
        names = [path.parent.parent.name for path in folder.walk() if path.parts[-2:] == whole]
    elif folder.is_dir():
        names = [path.name for path in folder.iterdir()]
    else:
        return []
    return sorted((int(name) for name in names if name.isdigit()), reverse=True)


def remove_checkpoint(checkpoint: AnyPath) -> None:
    """Removes a checkpoint; in a store first what makes it count."""
    if isinstance(checkpoint, StorePath):
        (checkpoint / CHECKSUMS / METADATA).unlink()
        checkpoint.rmtree()
    else:
        shutil.rmtree(checkpoint)


def save_error(checkpoint: AnyPath, error: Exception, *, own: bool) -> SaveError:
    """Creates the error for a checkpoint that cannot be written."""
    text = " ".join(str(error).split())
    # Libraries wrap the error for a full disk, but its text is somewhere in their message.
    full = (reason for reason in map(os.strerror, DISK_FULL) if reason in text)
    reason = next(full, text[:300])
    return SaveError(f"checkpoint {checkpoint} cannot be written: {reason}", own=own)


def one_line(error: Exception) -> str:
    """Returns an error's message as one line of at most 200 characters."""
    return " ".join(str(error).split())[:200] or type(error).__name__


class Pending:
    """A save in progress, which settles when it ends or as soon as it is certain to fail."""

    def __init__(self, step: int):
        self.step = step
        self.error: Exception | None = None
        self.own = False
        self._settled = threading.Event()

    def fail(self, error: Exception) -> None:
        """Records that this process cannot write its part."""
        if not self._settled.is_set():
            self.error = error
            # Timeouts and network errors come from waiting for another process.
            self.own = not isinstance(error, TimeoutError | jax.errors.JaxRuntimeError)
            self._settled.set()

    def write(self, write: Callable[[], None]) -> None:
        """Writes this process's part, waits for the others and settles; runs in a thread."""
        try:
            write()
        except Exception as error:  # storage drivers raise many types
            self.fail(error)
        self._settled.set()

    def follow(self, manager: ocp.CheckpointManager, check: Callable[[int], None]) -> None:
        """Waits for the save and settles; runs in a thread, since it waits for all processes."""
        try:
            manager.wait_until_finished()
            check(self.step)
        except Exception as error:  # Orbax and its drivers raise many types
            self.error = self.error or error
        self._settled.set()

    def wait(self) -> None:
        """Waits until the save settles; raises its error if it failed."""
        while not self._settled.wait(_TURN_SECONDS):  # signals are handled between two waits
            pass
        if self.error is not None:
            raise self.error


def _with_daemons(function: Callable[[], T]) -> T:
    """Calls a function so that the threads it starts do not keep the process from exiting.

    If a folder cannot be created, Orbax's writer threads for it wait for minutes. Called from a
    daemon thread, the function starts daemon threads.
    """
    outcome: futures.Future[T] = futures.Future()

    def call() -> None:
        try:
            outcome.set_result(function())
        except BaseException as error:
            outcome.set_exception(error)

    threading.Thread(target=call, daemon=True).start()
    return outcome.result()


class BackgroundCheckpoints(Checkpoints):
    """Checkpoints that are written while the run continues; use as a context manager.

    `save` returns as soon as the arrays may be modified. A process that is killed before a
    checkpoint is complete leaves a temporary folder that is ignored and later replaced.
    """

    def __init__(self, folder: Path, *, keep: int = 2, keep_every: int | None = None):
        """Opens a folder; see `Checkpoints` for the arguments."""
        super().__init__(folder, keep=keep, keep_every=keep_every, asynchronous=True)
        self._open: ocp.CheckpointManager | None = None
        self._pending: Pending | None = None

    def save(self, step: int, tree: Any, metadata: dict[str, Any]) -> None:
        """Starts a save after waiting for the previous one to end.

        Raises:
          SaveError: this save could not start, or the previous one failed.
        """
        self.wait()
        pending = self._pending = Pending(step)
        try:
            manager = _with_daemons(lambda: self._begin(step, tree, metadata))
        except Exception as error:  # Orbax and its drivers raise many types
            raise self._failed(pending, error) from error
        follow = functools.partial(pending.follow, manager, self._check_saved)
        threading.Thread(target=follow, daemon=True).start()

    def _begin(self, step: int, tree: Any, metadata: dict[str, Any]) -> ocp.CheckpointManager:
        if self._open is None:
            self._open = self._manager(tree)
        self._save(self._open, step, tree, metadata)
        return self._open

    def wait(self) -> None:
        """Waits until the last save is on disk.

        Raises:
          SaveError: the checkpoint could not be written.
        """
        if self._pending is None:
            return
        try:
            self._pending.wait()
        except Exception as error:  # Orbax and its drivers raise many types
            raise self._failed(self._pending, error) from error
        self._pending = None

    def _manager(self, tree: Any) -> ocp.CheckpointManager:
        handlers = ocp.handlers.DefaultCheckpointHandlerRegistry()
        handlers.add(TREE, ocp.args.StandardSave, WatchedHandler(self._part_failed))
        for item in (METADATA, CHECKSUMS):
            handlers.add(item, ocp.args.JsonSave, ocp.JsonCheckpointHandler())
        options = _with_time(self._options, tree)
        return ocp.CheckpointManager(self._folder, options=options, handler_registry=handlers)

    def _part_failed(self, error: Exception) -> None:
        if self._pending is not None:
            self._pending.fail(error)

    def _failed(self, pending: Pending, error: Exception) -> SaveError:
        """Closes the manager and returns the error to raise.

        Partial files are removed when the folder is next opened.
        """
        self._pending = None
        try:
            self._close(failed=True)
        except Exception:  # the same error again
            _LOG.debug("after a failed save", exc_info=True)
        return save_error(self._folder / str(pending.step), error, own=pending.own)

    def _close(self, *, failed: bool = False) -> None:
        manager, self._open = self._open, None
        # Closing waits for the other processes, which do not know that this one failed.
        if manager is not None and not (failed and jax.process_count() > 1):
            manager.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        failed = error is not None
        try:
            if not failed or jax.process_count() == 1:
                self.wait()
        except SaveError:
            if not failed:
                raise
        finally:
            self._close(failed=failed)
