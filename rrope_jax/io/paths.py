"""Paths that users give: of this machine, in an object store, or what libraries would misread."""

import os
import re
from pathlib import Path

from rrope_jax.io.stores import AnyPath, StorePath, is_store

# One slash is enough: joining or normalizing a path drops the other.
_URL = re.compile(r"\s*[a-z][a-z0-9+.-]+:/", re.IGNORECASE)


def any_path(path: str | os.PathLike[str]) -> AnyPath:
    """Returns a path of this machine, as it is given, or in an object store.

    Raises:
      ValueError: the path is another URL, or one that no store has.
    """
    if is_store(path):
        return StorePath.of(os.fspath(path))
    check_known(path)
    return Path(path)


def absolute(path: str | os.PathLike[str] | StorePath) -> AnyPath:
    """Like `any_path`, but a path of this machine is made absolute."""
    if isinstance(path, StorePath):
        return path
    somewhere = any_path(path)
    return Path(os.path.abspath(somewhere)) if isinstance(somewhere, Path) else somewhere


def check_known(path: str | os.PathLike[str]) -> None:
    """Rejects URLs other than those of object stores that are read and written.

    Raises:
      ValueError: the path is such a URL.
    """
    if _URL.match(os.fspath(path)) and not is_store(path):
        raise ValueError(
            f"{os.fspath(path)} is a URL, and only files of this machine and of object stores are "
            "read and written; give a path, gs://BUCKET/PATH or s3://BUCKET/PATH"
        )


def check_local(path: str | os.PathLike[str]) -> None:
    """Rejects URLs, such as those of object stores.

    Used as a path, `gs://bucket/run` would create a folder `gs:` in the current directory.

    Raises:
      ValueError: the path is a URL.
    """
    if _URL.match(os.fspath(path)):
        raise ValueError(
            f"{os.fspath(path)} is in an object store or is a URL, and only files of this machine "
            "are read and written; give a path, maybe on a disk that is mounted here"
        )


def check_orbax(folder: Path, *, writing: bool) -> None:
    """Rejects folders whose names Orbax or TensorStore would misread.

    Orbax finds its own files with a glob, so wildcards in a name make it miss them or pick up those
    of another folder. TensorStore reads a backslash as a slash, and `gs:/` as `gs://`.

    Args:
      folder: absolute path.
      writing: whether a checkpoint will be written to the folder, rather than read.

    Raises:
      ValueError: the path would be misread; the message says why.
    """
    text = os.fspath(folder)
    patterns = "*?[" if writing else ""
    said = next((repr(mark) for mark in (*patterns, "\\", ":/") if mark in f"{text}/"), None)
    try:
        text.encode()
    except UnicodeEncodeError:
        said = "a byte that is no UTF-8"
    if said is not None:
        raise ValueError(
            f"{text!r} has {said} in it, which the library that saves checkpoints takes for "
            "something else than a part of a path; give another one"
        )
