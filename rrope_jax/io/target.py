"""Files and folders that appear whole or not at all."""

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path


@contextlib.contextmanager
def whole_or_nothing(target: Path, *, overwrite: bool) -> Iterator[Path]:
    """Yields a path to write to, and renames it to the target at the end.

    The path is in a hidden folder beside the target, which is removed if anything fails; the folder
    of a killed process is used again. An old target moves to the same folder between two renames;
    if a process is killed in that moment, `restore_target` or the next writer brings it back.

    Args:
      target: absolute path. With `overwrite`, the old target stays until it can be replaced.
      overwrite: the target may exist.

    Raises:
      ValueError: the target exists, or another process is writing it, or its folder cannot be
        written.
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
            _bring_back(old, target)  # again: it may have been left since the first look
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

    Any number of processes may make a target at once, as long as all make the same. A process that
    is killed leaves a hidden folder beside it.

    Args:
      target: absolute path of a folder.
      is_whole: whether a folder at the target is what it should be.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    new = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        yield new
        new.chmod(0o755)  # other hosts may read as other users
        try:
            new.rename(target)
        except OSError:
            if not is_whole(target):
                raise
    finally:
        shutil.rmtree(new, ignore_errors=True)


def restore_target(target: Path) -> None:
    """Brings back the target of a process that was killed between its two renames.

    Raises:
      ValueError: it cannot be brought back.
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
    """Locks a folder; whether that worked."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _bring_back(old: Path, target: Path) -> None:
    if os.path.lexists(old) and not os.path.lexists(target):
        old.rename(target)


def replace_file(target: Path, data: bytes) -> None:
    """Writes a file so that readers see the old content or all of the new, never a part.

    Raises:
      OSError: it cannot be written; the old content stays.
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


def temporary_of(target: Path) -> Path:
    """What `replace_file` writes first; its name is fixed, so a rerun cleans up after a kill."""
    return target.with_name(f".{target.name}.tmp")


def left_behind(target: Path) -> Path | None:
    """Where a process that was killed between its two renames left the old target."""
    old = _partial(target) / _OLD
    return old if os.path.lexists(old) and not os.path.lexists(target) else None


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    """Makes sure that files are on disk before they get their final name."""
    files = [path] if path.is_file() else [each for each in path.rglob("*") if each.is_file()]
    for file in files:
        descriptor = os.open(file, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
