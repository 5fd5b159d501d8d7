"""Paths that libraries take for something else than a file or folder of this machine."""

import os
import re
from pathlib import Path

# Also with one slash, which is what is left where a path was joined or normalized.
_URL = re.compile(r"\s*[a-z][a-z0-9+.-]+:/", re.IGNORECASE)


def check_local(path: str | os.PathLike[str]) -> None:
    """Refuses what names a place in an object store, or any other URL.

    As a path, `gs://bucket/run` would be a folder `gs:` beside what the user was looking at.

    Raises:
      ValueError: the path is one.
    """
    if _URL.match(os.fspath(path)):
        raise ValueError(
            f"{os.fspath(path)} is in an object store or is a URL, and only files of this machine "
            "are read and written; give a path, maybe on a disk that is mounted here"
        )


def check_orbax(folder: Path, *, writing: bool) -> None:
    """Refuses folders in which Orbax or TensorStore would look elsewhere than they are told.

    Orbax finds the parts of what it saves by a pattern of their paths, so that it misses them, or
    takes those of another folder. TensorStore takes a backslash for a slash, and `gs:/` for `gs://`.

    Args:
      folder: absolute path.
      writing: whether a checkpoint is to be saved there.

    Raises:
      ValueError: the path has such a part; the message names it.
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
