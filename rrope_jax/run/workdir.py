"""The folder of a job: claimed by one process, bound to one configuration, written atomically."""

import fcntl
import json
import logging
import math
import os
import weakref
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from rrope_jax.cli.configuration import UsageError
from rrope_jax.io import json_text
from rrope_jax.io.paths import check_local
from rrope_jax.io.target import replace_file, temporary_of

_LOG = logging.getLogger(__name__)
_IDENTITY = "config.json"
_LOCK = ".lock"
_ABSENT = object()


class Workdir:
    """A folder that belongs to one job configuration and, while claimed, to one process.

    Use ``with Workdir.claim(path, identity) as workdir``. The lock also ends with the process,
    however that ends, so a killed job can be started again at once. The folder has to be on a
    file system with ``flock`` (local disks and NFS, not object stores).
    """

    def __init__(self, path: Path, lock: int | None) -> None:
        """Use ``claim`` or ``joined``: this only holds what they made.

        Args:
            path: The claimed folder.
            lock: Descriptor of its locked lock file, closed by ``release``; None where another
                process has it.
        """
        self._path = path
        self._release = (lambda: None) if lock is None else weakref.finalize(self, os.close, lock)

    @classmethod
    def joined(cls, path: str | os.PathLike[str]) -> Self:
        """A folder that another process of the same job has claimed; only that one writes files."""
        return cls(Path(os.path.abspath(path)), None)

    @property
    def path(self) -> Path:
        """The folder, absolute."""
        return self._path

    @classmethod
    def claim(
        cls,
        path: str | os.PathLike[str],
        identity: Mapping[str, Any],
        *,
        free: Collection[str] = (),
    ) -> Self:
        """Makes or reopens a job's folder.

        A new or empty folder gets ``config.json`` with the identity. A folder that was claimed
        before is accepted only under the same identity. When the claim fails, nothing is left
        behind that was not there before.

        Args:
            path: The folder; it and its parents are made when missing.
            identity: What the results depend on, JSON-like and possibly nested. Tuples and lists,
                and equal ints and floats, count as the same.
            free: Keys of it, such as ``"mesh.data"``, that may differ.

        Returns:
            The claimed folder.

        Raises:
            UsageError: The folder cannot be written, is in use by another process, belongs to
                another configuration, or holds files that are not a job's.
        """
        if not os.fspath(path):
            raise UsageError("--workdir is empty; give the folder for the results")
        try:
            check_local(path)
        except ValueError as error:
            raise UsageError(f"--workdir: {error}") from error
        folder = Path(os.path.abspath(path))
        wanted = _jsonable(identity)
        made: list[Path] = []
        lock: int | None = None
        try:
            if folder.exists():
                _check_owner(folder, wanted, free)
            made += _make_folders(folder)
            new_lock = not (folder / _LOCK).exists()
            lock = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT, 0o666)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                new_lock = False  # it is the other process's
                raise UsageError(
                    f"--workdir={folder} is in use by another process; wait for it to end or give "
                    "another --workdir"
                ) from None
            if new_lock:
                made.append(folder / _LOCK)
            _check_owner(folder, wanted, free)  # again: it may have been claimed meanwhile
            if not (folder / _IDENTITY).exists():
                replace_file(folder / _IDENTITY, _dumps(wanted))
        except BaseException as error:
            if lock is not None:
                os.close(lock)
            _remove(made)
            if isinstance(error, OSError):
                raise UsageError(
                    f"--workdir={folder} cannot be used: {error.strerror or error}; give a folder "
                    "that can be made and written"
                ) from error
            raise
        return cls(folder, lock)

    def release(self) -> None:
        """Gives the folder up for other processes. The object is of no use afterwards."""
        self._release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.release()

    def write_bytes(self, name: str, data: bytes) -> Path:
        """Writes a file so that a reader sees the old content or the new one, never a part.

        Args:
            name: File name relative to the folder; missing folders in it are made.
            data: The whole content.

        Returns:
            The path of the file.
        """
        target = self._path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        replace_file(target, data)
        return target

    def write_text(self, name: str, text: str) -> Path:
        """Writes text as UTF-8; otherwise as ``write_bytes``."""
        return self.write_bytes(name, text.encode())

    def write_json(self, name: str, value: Any) -> Path:
        """Writes a value as indented JSON; otherwise as ``write_bytes``.

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
        """Reads a file of ``write_json``.

        Raises:
            FileNotFoundError: There is no such file.
        """
        return json_text.parse((self._path / name).read_bytes())

    def find_json(self, name: str) -> Any:
        """As ``read_json``; None where there is no such file or it is damaged.

        What a job keeps in its folder it can make again, so one damaged file must not cost the
        others: it is named in a warning.
        """
        try:
            found = self.read_json(name)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, RecursionError) as error:
            warn_damaged(self._path / name, " ".join(str(error).split())[:200])
            return None
        if found is None:
            warn_damaged(self._path / name, "it says null")
        return found


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


def _is_leftover(name: str) -> bool:
    """Whether a claim that was killed half-way may have left this file in a new folder."""
    return name in (_LOCK, temporary_of(Path(_IDENTITY)).name)


def _make_folders(folder: Path) -> list[Path]:
    """Makes a folder and its parents; returns those that were new, outermost first."""
    if folder.is_dir():
        return []
    made = _make_folders(folder.parent)
    try:
        folder.mkdir()
    except FileExistsError:
        if not folder.is_dir():
            _remove(made)
            raise
        return made  # another process made it just now
    except OSError:
        _remove(made)
        raise
    return [*made, folder]


def _remove(made: list[Path]) -> None:
    for path in reversed(made):
        try:
            if path.is_dir():
                path.rmdir()
            else:
                path.unlink(missing_ok=True)
        except OSError:
            return  # no longer ours alone


def _check_owner(folder: Path, wanted: Any, free: Collection[str]) -> None:
    """Raises UsageError unless the folder is empty or was claimed under the same identity."""
    names = sorted(os.listdir(folder))
    if _IDENTITY not in names:
        foreign = [name for name in names if not _is_leftover(name)]
        if foreign:
            raise UsageError(
                f"--workdir={folder} holds {foreign[0]!r} but no {_IDENTITY}, so it is not a "
                "job's folder; give an empty or new one"
            )
        return
    try:
        found = json_text.parse((folder / _IDENTITY).read_bytes())
    except ValueError:
        raise UsageError(
            f"{folder / _IDENTITY} is not JSON, so it cannot be told whose folder it is; give "
            "another --workdir"
        ) from None
    if (differing := difference(found, wanted, free)) is not None:
        key, there, here = differing
        raise UsageError(
            f"--workdir={folder} belongs to another config: {key} is {there} there and {here} "
            "here; give another --workdir"
        )


def difference(one: Any, other: Any, free: Collection[str] = ()) -> tuple[str, str, str] | None:
    """The first key at which two nested JSON values differ, and what each shows for it.

    Args:
      one, other: the values.
      free: keys, such as "mesh.data", that may differ.
    """
    there, here = dict(_flatten(one)), dict(_flatten(other))
    for key in [*here, *there]:
        old, new = there.get(key, _ABSENT), here.get(key, _ABSENT)
        if old != new and key not in free and not _left_empty(key, {**there, **here}, free):
            return key, _show(old), _show(new)
    return None


def _left_empty(key: str, values: Mapping[str, Any], free: Collection[str]) -> bool:
    """Whether a key is a group without fields, of which some are free."""
    return values[key] == {} and any(name.startswith(f"{key}.") for name in free)


def _flatten(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        for key, item in value.items():
            yield from _flatten(item, f"{path}.{key}" if path else key)
    else:
        yield path, value


def _show(value: Any) -> str:
    return "absent" if value is _ABSENT else json.dumps(value)
