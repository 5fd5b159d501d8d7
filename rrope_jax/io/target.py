"""Atomic writes: files and folders that appear complete or not at all."""

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from rrope_jax.io.stores import AnyPath, StorePath


@contextlib.contextmanager
def whole_or_nothing(target: Path, *, overwrite: bool) -> Iterator[Path]:
    """Yields a path to write to, and renames it to the target at the end.

    The path is in a hidden folder next to the target, which is removed if anything fails; a folder
    left by a killed process is reused. Replacing a target takes two renames: the old target into
    the hidden folder, then the new one into place. If the process is killed in between,
    `restore_target` or the next writer moves the old target back.

    Args:
      target: absolute path. With `overwrite`, an old target stays until it can be replaced.
      overwrite: whether the target may exist.

    Raises:
      ValueError: the target exists, another process is writing it, or its folder is not writable.
    """
    restore_target(target)
    if os.path.lexists(target) and not overwrite:
        raise ValueError(f"{target} exists; give another path, or --overwrite to replace it")
    folder = _partial(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir(exist_ok=True)
        lock = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise ValueError(
            f"{target} cannot be written: {error.strerror}; give a path in a folder of yours"
        ) from error
    try:
        if not _locked(lock):
            raise ValueError(f"another process is writing {target}; wait for it to end")
        try:
            new, old = folder / _NEW, folder / _OLD
            _bring_back(old, target)  # another process may have been killed since the first check
            for leftover in (new, old):
                _remove(leftover)
            yield new
            _sync(new)
            if os.path.lexists(target):
                target.rename(old)
            new.rename(target)
        finally:
            with contextlib.suppress(OSError):
                _bring_back(old, target)
            if os.path.lexists(target) or not os.path.lexists(old):
                shutil.rmtree(folder, ignore_errors=True)
    finally:
        os.close(lock)


@contextlib.contextmanager
def made_once(target: Path, is_whole: Callable[[Path], bool]) -> Iterator[Path]:
    """Yields a new folder to fill, which becomes the target unless another process was faster.

    Any number of processes may create a target concurrently if all create the same content. A
    killed process leaves a hidden folder next to the target.

    Args:
      target: absolute path of a folder.
      is_whole: returns whether an existing target is complete.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    new = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        yield new
        new.chmod(0o755)  # other hosts may read it as a different user
        try:
            new.rename(target)
        except OSError:
            if not is_whole(target):
                raise
    finally:
        shutil.rmtree(new, ignore_errors=True)


def restore_target(target: Path) -> None:
    """Moves a target back if a process was killed between its two renames.

    Raises:
      ValueError: the old target cannot be moved back.
    """
    folder = _partial(target)
    if os.path.lexists(target) or not os.path.lexists(folder / _OLD):
        return
    lock = os.open(folder, os.O_RDONLY)
    try:
        if _locked(lock):  # otherwise another process is between its two renames
            _bring_back(folder / _OLD, target)
    except OSError as error:
        raise ValueError(
            f"{folder / _OLD} is what was at {target} and cannot be moved back: {error.strerror}; "
            "move it there yourself"
        ) from error
    finally:
        os.close(lock)


_NEW, _OLD = "new", "old"


def _partial(target: Path) -> Path:
    return target.with_name(f".{target.name}.partial")


def _locked(descriptor: int) -> bool:
    """Tries to lock a folder; returns whether it succeeded."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _bring_back(old: Path, target: Path) -> None:
    if os.path.lexists(old) and not os.path.lexists(target):
        old.rename(target)


def replace_file(target: Path, data: bytes) -> None:
    """Writes a file atomically: readers see either the old content or the new.

    Raises:
      OSError: the file cannot be written; the old content stays.
    """
    temporary = temporary_of(target)
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_file(target: AnyPath, data: bytes) -> None:
    """Like `replace_file`, but also in an object store; missing folders are created."""
    if isinstance(target, StorePath):
        target.write_bytes(data)
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    replace_file(target, data)


def temporary_of(target: Path) -> Path:
    """The temporary file of `replace_file`; its fixed name lets a rerun clean up after a kill."""
    return target.with_name(f".{target.name}.tmp")


def left_behind(target: Path) -> Path | None:
    """The old target that a process killed between its two renames left, or None."""
    old = _partial(target) / _OLD
    return old if os.path.lexists(old) and not os.path.lexists(target) else None


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    """Flushes files to disk before they get their final name."""
    files = [path] if path.is_file() else [each for each in path.rglob("*") if each.is_file()]
    for file in files:
        descriptor = os.open(file, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
