"""Checks for paths that libraries would not treat as local files or folders."""

import os
import re
from pathlib import Path

# One slash is enough: joining or normalizing a path drops the other.
_URL = re.compile(r"\s*[a-z][a-z0-9+.-]+:/", re.IGNORECASE)


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
