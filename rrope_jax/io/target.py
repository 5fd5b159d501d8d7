"""A new file or folder that appears whole or not at all."""

import contextlib
import fcntl
import os
import shutil
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def whole_or_nothing(target: Path, *, overwrite: bool) -> Iterator[Path]:
    """Gives a path to write to, and moves what is there to the target at the end.

    The path is in a hidden folder beside the target, which is removed if anything goes wrong; one
    that a killed process left behind is used again.

    Args:
      target: absolute path. With `overwrite`, what is there stays until it can be replaced.
      overwrite: the target may exist.

    Raises:
      ValueError: the target exists, or another process is writing it, or its folder cannot be
        written.
    """
    if os.path.lexists(target) and not overwrite:
        raise ValueError(f"{target} exists; give another path, or --overwrite to replace it")
    folder = target.with_name(f".{target.name}.partial")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir(exist_ok=True)
        lock = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise ValueError(
            f"{target} cannot be written: {error.strerror}; give a path in a folder of yours"
        ) from error
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"another process is writing {target}; wait for it to end") from None
        try:
            new, old = folder / "new", folder / "old"
            for leftover in (new, old):
                _remove(leftover)
            yield new
            _sync(new)
            if os.path.lexists(target):
                target.rename(old)
            new.rename(target)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    finally:
        os.close(lock)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    """Makes sure that files are on the disk before they get the name that says so."""
    files = [path] if path.is_file() else [each for each in path.rglob("*") if each.is_file()]
    for file in files:
        descriptor = os.open(file, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
