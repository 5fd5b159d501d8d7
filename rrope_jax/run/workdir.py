"""The folder of a job: claimed by one process, bound to one configuration, written atomically."""

import contextlib
import fcntl
import json
import logging
import math
import os
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np

from rrope_jax.cli.errors import UsageError, refusing
from rrope_jax.io import json_text
from rrope_jax.io.paths import absolute
from rrope_jax.io.stores import AnyPath, StoreError, StorePath
from rrope_jax.io.target import temporary_of, write_file
from rrope_jax.run.cluster import seconds
from rrope_jax.run.identity import difference
from rrope_jax.run.store_lock import StoreLock

_LOG = logging.getLogger(__name__)
_IDENTITY = "config.json"
_LOCK = ".lock"
# Files that a claim killed halfway may leave in a new folder.
_LEFTOVERS = (_LOCK, temporary_of(Path(_IDENTITY)).name)


class Workdir:
    """A folder that belongs to one job configuration and, while claimed, to one process.

    Use `with Workdir.claim(path, identity) as workdir`. A folder on a disk is locked with `flock`
    (local disks and NFS), which ends with the process, so a killed job can be restarted at once. A
    folder in an object store is locked with `StoreLock`: after a kill on another machine, the next
    job first watches the lock for `RROPE_LOCK_SECONDS`.

    Attributes:
      path: The folder, absolute.
    """

    def __init__(self, path: AnyPath, unlock: Callable[[], None] | None) -> None:
        """Do not call this directly: use `claim` or `joined`.

        Args:
          path: The claimed folder.
          unlock: Releases the folder's lock; None if another process holds it.
        """
        self.path = path
        self._unlock = unlock

    @classmethod
    def joined(cls, path: str | os.PathLike[str]) -> Self:
        """Opens a folder that another process of the same job has claimed, without the lock."""
        return cls(absolute(path), None)

    @classmethod
    def claim(
        cls,
        path: str | os.PathLike[str],
        identity: Mapping[str, Any],
        *,
        free: Collection[str] = (),
    ) -> Self:
        """Creates or reopens a job's folder.

        The identity is written to `config.json` in a new or empty folder. A folder that was claimed
        before must have the same identity. If the claim fails, new files and folders are removed.

        Args:
          path: The folder, on a disk or in an object store; it and its parents are created if
            missing, but no bucket.
          identity: Everything that the results depend on, JSON-like and possibly nested. Tuples
            equal lists, and ints equal floats of the same value.
          free: Keys of `identity`, such as `mesh.data`, that may differ.

        Returns:
          The claimed folder.

        Raises:
          UsageError: The folder cannot be written, is in use by another process, belongs to
            another configuration, or contains files that are not from a job.
        """
        if not os.fspath(path):
            raise UsageError("--workdir is empty; give the folder for the results")
        with refusing("--workdir"):
            folder = absolute(path)
        here = _jsonable(identity)
        try:
            with contextlib.ExitStack() as undo:
                if isinstance(folder, StorePath):
                    folder.check()
                if folder.exists():
                    _check_owner(folder, here, free)
                unlock = _lock(folder, undo)
                _check_owner(folder, here, free)  # again, as it may have been claimed meanwhile
                if not (folder / _IDENTITY).exists():
                    write_file(folder / _IDENTITY, _dumps(here))
                undo.pop_all()
                return cls(folder, unlock)
        except StoreError as error:
            raise UsageError(f"--workdir: {error}") from error
        except OSError as error:
            raise UsageError(
                f"--workdir={folder} cannot be used: {error.strerror or error}; give a folder "
                "that can be made and written"
            ) from error

    def release(self) -> None:
        """Releases the folder to other processes; do not use the object afterward."""
        if self._unlock is not None:
            self._unlock()
            self._unlock = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.release()

    def write_bytes(self, name: str, data: bytes) -> AnyPath:
        """Writes a file atomically: readers see either the old content or the new.

        Args:
          name: File name relative to the folder; missing subfolders are created.
          data: The whole content.

        Returns:
          The path of the file.
        """
        target = self.path / name
        write_file(target, data)
        return target

    def write_text(self, name: str, text: str) -> AnyPath:
        """Writes text as UTF-8; otherwise like `write_bytes`."""
        return self.write_bytes(name, text.encode())

    def write_json(self, name: str, value: Any) -> AnyPath:
        """Writes a value as indented JSON; otherwise like `write_bytes`.

        Args:
          name: File name relative to the folder.
          value: Mappings, lists, tuples, numbers, strings, bools, None, and numpy arrays and
            scalars. NaN and infinities, which JSON lacks, become null.

        Returns:
          The path of the file.

        Raises:
          TypeError: The value has any other type.
        """
        return self.write_bytes(name, _dumps(_jsonable(value)))

    def read_json(self, name: str) -> Any:
        """Reads a file that `write_json` wrote.

        Raises:
          FileNotFoundError: The file does not exist.
        """
        return json_text.parse((self.path / name).read_bytes())

    def find_json(self, name: str) -> Any:
        """Like `read_json`, but returns None if the file is missing or damaged.

        A damaged file is logged as a warning and not raised, since a job can recompute it without
        losing its other files.
        """
        try:
            value = self.read_json(name)
        except FileNotFoundError:
            return None
        except StoreError:  # the file may be intact
            raise
        except (OSError, ValueError, RecursionError) as error:
            warn_damaged(self.path / name, " ".join(str(error).split())[:200])
            return None
        if value is None:
            warn_damaged(self.path / name, "it says null")
        return value


def warn_damaged(path: AnyPath, reason: str) -> None:
    """Warns that a saved result is unusable and will be recomputed."""
    _LOG.warning("%s is damaged and made again (%s)", path, reason)


def _jsonable(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_jsonable(item) for item in value]
    if isinstance(value, np.ndarray | np.generic):
        return _jsonable(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"a {type(value).__name__} cannot be written as JSON: {value!r}")


def _dumps(value: Any) -> bytes:
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    # File names that are not UTF-8 contain surrogates, which backslashreplace escapes as in JSON.
    return text.encode(errors="backslashreplace")


def _make_folders(folder: Path, undo: contextlib.ExitStack) -> None:
    """Creates a folder and its parents; `undo` removes the new ones."""
    if folder.is_dir():
        return
    _make_folders(folder.parent, undo)
    try:
        folder.mkdir()
    except FileExistsError:
        if not folder.is_dir():  # otherwise another process has just created it
            raise
    else:
        undo.callback(_remove, folder)


def _lock(folder: AnyPath, undo: contextlib.ExitStack) -> Callable[[], None]:
    """Locks a folder; returns what unlocks it. `undo` also removes what is new."""
    if isinstance(folder, StorePath):
        return _lock_prefix(folder, undo)
    return _lock_folder(folder, undo)


def _lock_folder(folder: Path, undo: contextlib.ExitStack) -> Callable[[], None]:
    """Makes and locks a folder on a disk; see `_lock`."""
    _make_folders(folder, undo)
    path = folder / _LOCK
    is_new = not path.exists()
    lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    undo.callback(os.close, lock)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UsageError(
            f"--workdir={folder} is in use by another process; wait for it to end or give "
            "another --workdir"
        ) from None
    if is_new:
        undo.callback(_remove, path)
    return lambda: os.close(lock)


def _lock_prefix(folder: StorePath, undo: contextlib.ExitStack) -> Callable[[], None]:
    """Locks a folder in a store; see `_lock`."""
    lock = StoreLock.take(folder, seconds("RROPE_LOCK_SECONDS"))
    undo.callback(lock.release)
    return lock.release


def _remove(path: Path) -> None:
    """Removes a file or an empty folder; does nothing if that fails."""
    with contextlib.suppress(OSError):
        if path.is_dir():
            path.rmdir()
        else:
            path.unlink(missing_ok=True)


def _check_owner(folder: AnyPath, here: Any, free: Collection[str]) -> None:
    """Raises UsageError unless the folder is empty or has the same identity."""
    names = sorted(path.name for path in folder.iterdir())
    if _IDENTITY not in names:
        foreign = [name for name in names if name not in _LEFTOVERS]
        if foreign:
            raise UsageError(
                f"--workdir={folder} holds {foreign[0]!r} but no {_IDENTITY}, so it is not a "
                "job's folder; give an empty or new one"
            )
        return
    try:
        there = json_text.parse((folder / _IDENTITY).read_bytes())
    except ValueError:
        raise UsageError(
            f"{folder / _IDENTITY} is not JSON, so it cannot be told whose folder it is; give "
            "another --workdir"
        ) from None
    if (differing := difference(there, here, free)) is not None:
        key, old, new = differing
        raise UsageError(
            f"--workdir={folder} belongs to another config: {key} is {old} there and {new} "
            "here; give another --workdir"
        )
