"""The folder of a job: claimed by one process, bound to one configuration, written atomically."""

import contextlib
import fcntl
import json
import logging
import math
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np

from rrope_jax.cli.errors import UsageError, refusing
from rrope_jax.io import json_text
from rrope_jax.io.paths import check_local
from rrope_jax.io.target import replace_file, temporary_of
from rrope_jax.run.identity import difference

_LOG = logging.getLogger(__name__)
_IDENTITY = "config.json"
_LOCK = ".lock"
# What a claim that was killed half-way may have left in a new folder.
_LEFTOVERS = (_LOCK, temporary_of(Path(_IDENTITY)).name)


class Workdir:
    """A folder that belongs to one job configuration and, while claimed, to one process.

    Use `with Workdir.claim(path, identity) as workdir`. The lock also ends with the process,
    however that ends, so a killed job can be started again at once. The folder has to be on a
    file system with `flock` (local disks and NFS, not object stores).

    Attributes:
      path: The folder, absolute.
    """

    def __init__(self, path: Path, lock: int | None) -> None:
        """Use `claim` or `joined`.

        Args:
          path: The claimed folder.
          lock: Descriptor of its locked lock file, closed by `release`; None where another
            process has it.
        """
        self.path = path
        self._lock = lock

    @classmethod
    def joined(cls, path: str | os.PathLike[str]) -> Self:
        """A folder that another process of the same job has claimed; that one has the lock."""
        return cls(Path(os.path.abspath(path)), None)

    @classmethod
    def claim(
        cls,
        path: str | os.PathLike[str],
        identity: Mapping[str, Any],
        *,
        free: Collection[str] = (),
    ) -> Self:
        """Makes or reopens a job's folder.

        A new or empty folder gets `config.json` with the identity. A folder that was claimed
        before is accepted only under the same identity. When the claim fails, nothing that is new
        is left behind.

        Args:
          path: The folder; it and its parents are made when missing.
          identity: What the results depend on, JSON-like and possibly nested. Tuples and lists,
            and equal ints and floats, count as the same.
          free: Keys of it, such as `mesh.data`, that may differ.

        Returns:
          The claimed folder.

        Raises:
          UsageError: The folder cannot be written, is in use by another process, belongs to
            another configuration, or holds files that are not a job's.
        """
        if not os.fspath(path):
            raise UsageError("--workdir is empty; give the folder for the results")
        with refusing("--workdir"):
            check_local(path)
        folder = Path(os.path.abspath(path))
        here = _jsonable(identity)
        try:
            with contextlib.ExitStack() as undo:
                if folder.exists():
                    _check_owner(folder, here, free)
                _make_folders(folder, undo)
                lock = _take_lock(folder, undo)
                _check_owner(folder, here, free)  # again: it may have been claimed meanwhile
                if not (folder / _IDENTITY).exists():
                    replace_file(folder / _IDENTITY, _dumps(here))
                undo.pop_all()
                return cls(folder, lock)
        except OSError as error:
            raise UsageError(
                f"--workdir={folder} cannot be used: {error.strerror or error}; give a folder "
                "that can be made and written"
            ) from error

    def release(self) -> None:
        """Gives the folder up for other processes. The object is of no use afterwards."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.release()

    def write_bytes(self, name: str, data: bytes) -> Path:
        """Writes a file so that a reader sees the old content or the new one, never a part.

        Args:
          name: File name relative to the folder; missing folders in it are made.
          data: The whole content.

        Returns:
          The path of the file.
        """
        target = self.path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        replace_file(target, data)
        return target

    def write_text(self, name: str, text: str) -> Path:
        """Writes text as UTF-8; otherwise as `write_bytes`."""
        return self.write_bytes(name, text.encode())

    def write_json(self, name: str, value: Any) -> Path:
        """Writes a value as indented JSON; otherwise as `write_bytes`.

        Args:
          name: File name relative to the folder.
          value: Mappings, sequences, numbers (also of numpy), strings, booleans, None. NaN and
            infinities become null, since JSON has none.

        Returns:
          The path of the file.

        Raises:
          TypeError: For any other value.
        """
        return self.write_bytes(name, _dumps(_jsonable(value)))

    def read_json(self, name: str) -> Any:
        """Reads a file of `write_json`.

        Raises:
          FileNotFoundError: There is no such file.
        """
        return json_text.parse((self.path / name).read_bytes())

    def find_json(self, name: str) -> Any:
        """As `read_json`; None where there is no such file or it is damaged.

        A job can make again what it keeps in its folder, so one damaged file must not cost the
        others: it is named in a warning.
        """
        try:
            value = self.read_json(name)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, RecursionError) as error:
            warn_damaged(self.path / name, " ".join(str(error).split())[:200])
            return None
        if value is None:
            warn_damaged(self.path / name, "it says null")
        return value


def warn_damaged(path: Path, reason: str) -> None:
    """Says that a result which a job kept cannot be used and is made again."""
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
    # names that are not UTF-8 have surrogates; JSON's escapes of those look like Python's
    return text.encode(errors="backslashreplace")


def _make_folders(folder: Path, undo: contextlib.ExitStack) -> None:
    """Makes a folder and its parents; `undo` removes those that are new."""
    if folder.is_dir():
        return
    _make_folders(folder.parent, undo)
    try:
        folder.mkdir()
    except FileExistsError:
        if not folder.is_dir():  # else another process made it just now
            raise
    else:
        undo.callback(_remove, folder)


def _take_lock(folder: Path, undo: contextlib.ExitStack) -> int:
    """The descriptor of the lock file, locked; `undo` closes it and removes a new file."""
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
    return lock


def _remove(path: Path) -> None:
    """Removes an empty folder or a file, unless another process uses it by now."""
    with contextlib.suppress(OSError):
        if path.is_dir():
            path.rmdir()
        else:
            path.unlink(missing_ok=True)


def _check_owner(folder: Path, here: Any, free: Collection[str]) -> None:
    """Raises UsageError unless the folder is empty or was claimed under the same identity."""
    names = sorted(os.listdir(folder))
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
