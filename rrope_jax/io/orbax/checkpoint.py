"""Orbax checkpoints of a pytree with JSON metadata beside it."""

import dataclasses
import errno
import functools
import logging
import os
import threading
from collections.abc import Callable, Mapping
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

_LOG = logging.getLogger(__name__)

T = TypeVar("T")

# Orbax synchronizes the savers of a process through shared state; threads take turns.
_ONE_AT_A_TIME = threading.Lock()

# The items of a checkpoint, each a folder of it; JSON is in a file METADATA there.
TREE, METADATA, CHECKSUMS = "tree", "metadata", "checksums"

# A save is given up after this time: enough for all processes to begin and to agree, and then at a
# rate that any disk worth training on reaches.
_LEAST_SECONDS, _LEAST_BYTES_PER_SECOND = 600, 20e6

# A signal waits no longer than this for its turn.
_TURN_SECONDS = 0.2

# Errors of the operating system for a full disk.
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class SaveError(RuntimeError):
    """A checkpoint could not be written; those before it are untouched.

    Attributes:
      own: whether this process, rather than another one, could not write its part.
    """

    def __init__(self, message: str, *, own: bool):
        super().__init__(message)
        self.own = own


Gather = Callable[[Any], list[Any]]
"""Returns the values of all processes, in their order; waits for all of them."""


class Checkpoints:
    """The checkpoints of one run in one folder, newest last.

    Saving is synchronous and atomic: a process killed while saving leaves a temporary folder that
    is ignored and replaced. Among several processes, all save at the same steps, each its part of
    the arrays. Checksums are saved along, and what is restored is what was saved.
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
          keep: how many of the newest checkpoints stay.
          keep_every: those at multiples of so many steps stay, too.
          asynchronous: for `BackgroundCheckpoints`.

        Raises:
          ValueError: Orbax cannot save in a folder of such a name.
        """
        check_orbax(folder, writing=True)
        self._folder = folder
        self._unreadable: set[int] = set()
        self._options = ocp.CheckpointManagerOptions(
            max_to_keep=keep,
            keep_period=keep_every,
            enable_async_checkpointing=asynchronous,
            create=True,
            lightweight_initialize=True,  # one damaged step must not keep the others from opening
            cleanup_tmp_directories=True,  # of a process that was killed while it saved
        )

    def save(self, step: int, tree: Any, metadata: dict[str, Any]) -> None:
        """Saves arrays and JSON-able metadata under a step number, replacing what is there.

        A process that is killed meanwhile leaves the checkpoints of other steps as they are.

        Raises:
          SaveError: it could not be written.
        """
        try:
            with _ONE_AT_A_TIME, self._manager(tree) as manager:
                self._save(manager, step, tree, metadata)
                manager.wait_until_finished()
            self._check_saved(step)
        except Exception as error:  # Orbax and its drivers raise many kinds
            raise save_error(self._folder / str(step), error, own=True) from error

    def restore(
        self, like: Any, *, gather: Gather = lambda value: [value]
    ) -> tuple[Any, dict[str, Any]] | None:
        """The newest checkpoint that can be read, or None when there is none.

        A checkpoint that cannot be read (a damaged file, say) is passed over with a warning for
        the one before it.

        Args:
          like: a tree of arrays with the wanted structure, shapes, dtypes and placement.
          gather: lets the processes of a run agree on a checkpoint that all of them can read.
        """
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        tree = ocp.args.StandardRestore(abstract)
        steps = gather(steps_in(self._folder))[0]
        if not steps:
            return None
        with _ONE_AT_A_TIME, self._reader() as manager:
            for step in steps:
                read = self._read(manager, step, tree)
                if not (troubles := list(filter(None, gather(read.trouble)))):
                    # the check gives the same result in all processes
                    read = read.checked()
                    troubles = [read.trouble]
                if not any(troubles):
                    return read.tree, read.metadata
                _LOG.warning(
                    "checkpoint %s cannot be read (%s); trying an older one",
                    self._folder / str(step),
                    troubles[0],
                )
        return None

    def _read(
        self, manager: ocp.CheckpointManager, step: int, tree: ocp.args.CheckpointArgs
    ) -> "_Read":
        """What this process can read of a checkpoint."""
        arguments = ocp.args.Composite(tree=tree, metadata=ocp.args.JsonRestore())
        try:
            items = manager.restore(step, args=arguments)
            sums = self._folder / str(step) / CHECKSUMS
            arrays = None
            if sums.is_dir():  # those of earlier releases have none
                saved = json_text.parse((sums / METADATA).read_bytes())
                arrays = checksums.check_metadata(saved, items[METADATA])
            return _Read(items[TREE], items[METADATA], arrays)
        except Exception as error:  # Orbax and its drivers raise many kinds
            return _Read(trouble=one_line(error))

    def _save(
        self, manager: ocp.CheckpointManager, step: int, tree: Any, metadata: dict[str, Any]
    ) -> None:
        """Begins to save."""
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
        """Raises ValueError unless a checkpoint that was saved can be opened.

        The process that gave it its name looks; on a network disk the others may not see it yet.
        """
        if jax.process_index() > 0:
            return
        try:
            ocp.StandardCheckpointHandler().metadata(self._folder / str(step) / TREE)
        except Exception as error:  # Orbax and its drivers raise many kinds
            self._unreadable.add(step)
            raise ValueError(f"it was saved, but does not open: {one_line(error)}") from error

    @property
    def newest(self) -> int | None:
        """The step of the newest checkpoint, readable or not; None where there is none.

        One that was saved here and does not open is left out.
        """
        return next((step for step in steps_in(self._folder) if step not in self._unreadable), None)

    def _manager(self, tree: Any) -> ocp.CheckpointManager:
        """Saves trees of this size; clears away what was half saved."""
        return ocp.CheckpointManager(self._folder, options=_with_time(self._options, tree))

    def _reader(self) -> ocp.CheckpointManager:
        """Restores. Each process does so for itself, so that none waits for one that cannot."""
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
class _Read:
    """What a process has read of a checkpoint.

    Attributes:
      tree, metadata: as they were saved, perhaps.
      sums: checksums of the tree's arrays; None if none were saved.
      trouble: what is wrong; empty if nothing is.
    """

    tree: Any = None
    metadata: dict[str, Any] = dataclasses.field(default_factory=dict)
    sums: Mapping[str, str] | None = None
    trouble: str = ""

    def checked(self) -> "_Read":
        """With the arrays compared; of several processes, all have to ask."""
        if self.sums is not None:
            try:
                checksums.check_arrays(self.sums, self.tree)
            except ValueError as error:
                return _Read(trouble=str(error))
        return self


def _with_time(options: ocp.CheckpointManagerOptions, tree: Any) -> ocp.CheckpointManagerOptions:
    """Allows a save as much time as its arrays may need in the slowest process."""
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(tree))
    seconds = _LEAST_SECONDS + int(size / _LEAST_BYTES_PER_SECOND)
    return dataclasses.replace(options, async_options=ocp.AsyncOptions(timeout_secs=seconds))


def steps_in(folder: Path) -> list[int]:
    """The steps of the checkpoints in a folder, newest first."""
    if not folder.is_dir():
        return []
    names = (path.name for path in folder.iterdir())
    return sorted((int(name) for name in names if name.isdigit()), reverse=True)


def save_error(checkpoint: Path, error: Exception, *, own: bool) -> SaveError:
    """What to raise where a checkpoint cannot be written."""
    text = " ".join(str(error).split())
    # a full disk is somewhere in the message of whatever library the error went through
    full = (reason for reason in map(os.strerror, DISK_FULL) if reason in text)
    reason = next(full, text[:300])
    return SaveError(f"checkpoint {checkpoint} cannot be written: {reason}", own=own)


def one_line(error: Exception) -> str:
    """An error's message on one line."""
    return " ".join(str(error).split())[:200] or type(error).__name__


class _Pending:
    """A save in progress. It settles when it ends, or as soon as it is bound to fail."""

    def __init__(self, step: int):
        self.step = step
        self.error: Exception | None = None
        self.own = False
        self._settled = threading.Event()

    def fail(self, error: Exception) -> None:
        """This process cannot write its part."""
        if not self._settled.is_set():
            self.error = error
            # time-outs and network errors come from waiting for another process
            self.own = not isinstance(error, TimeoutError | jax.errors.JaxRuntimeError)
            self._settled.set()

    def follow(self, manager: ocp.CheckpointManager, check: Callable[[int], None]) -> None:
        """Settles with the save; for a thread, since it waits for all processes."""
        try:
            manager.wait_until_finished()
            check(self.step)
        except Exception as error:  # Orbax and its drivers raise many kinds
            self.error = self.error or error
        self._settled.set()

    def wait(self) -> None:
        """Waits until it settles, and raises what went wrong."""
        while not self._settled.wait(_TURN_SECONDS):  # a signal is answered between two turns
            pass
        if self.error is not None:
            raise self.error


def _with_daemons(function: Callable[[], T]) -> T:
    """Calls a function whose threads must not keep the process from ending.

    If a folder cannot be created, the threads of Orbax that would write into it wait for minutes.
    Threads inherit being daemons from the thread that starts them.
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
    """Checkpoints that are written while the run goes on; use as a context.

    `save` returns as soon as the arrays may change. A process that is killed before a checkpoint is
    whole leaves a temporary folder that is ignored and replaced.
    """

    def __init__(self, folder: Path, *, keep: int = 2, keep_every: int | None = None):
        """Opens a folder; arguments as for `Checkpoints`."""
        super().__init__(folder, keep=keep, keep_every=keep_every, asynchronous=True)
        self._open: ocp.CheckpointManager | None = None
        self._pending: _Pending | None = None

    def save(self, step: int, tree: Any, metadata: dict[str, Any]) -> None:
        """Begins to save, once the previous save has ended.

        Raises:
          SaveError: this save could not begin, or the previous one failed.
        """
        self.wait()
        pending = self._pending = _Pending(step)
        try:
            manager = _with_daemons(lambda: self._begin(step, tree, metadata))
        except Exception as error:  # Orbax and its drivers raise many kinds
            raise self._failed(pending, error) from error
        follow = functools.partial(pending.follow, manager, self._check_saved)
        threading.Thread(target=follow, daemon=True).start()

    def _begin(self, step: int, tree: Any, metadata: dict[str, Any]) -> ocp.CheckpointManager:
        if self._open is None:
            self._open = self._manager(tree)
        self._save(self._open, step, tree, metadata)
        return self._open

    def wait(self) -> None:
        """Waits until what was saved is on disk.

        Raises:
          SaveError: it could not be written.
        """
        if self._pending is None:
            return
        try:
            self._pending.wait()
        except Exception as error:  # Orbax and its drivers raise many kinds
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

    def _failed(self, pending: _Pending, error: Exception) -> SaveError:
        """The error to raise; partial files are removed when the folder is next opened."""
        self._pending = None
        try:
            self._close(failed=True)
        except Exception:  # repeats the first error
            _LOG.debug("after a failed save", exc_info=True)
        return save_error(self._folder / str(pending.step), error, own=pending.own)

    def _close(self, *, failed: bool = False) -> None:
        manager, self._open = self._open, None
        # closing waits for the other processes, which do not know that this one failed
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
