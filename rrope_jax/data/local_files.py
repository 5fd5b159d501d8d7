"""Finds the files of a local text source, which is a file, a folder or a glob."""

import fnmatch
import functools
import logging
import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

_LOG = logging.getLogger(__name__)

ENDINGS = (".txt", ".jsonl", ".txt.gz", ".jsonl.gz")
"""File endings that are read from a folder. Files named directly or by a glob may have any."""

# Files that mark a folder as a workdir of `rrope_jax.run.workdir`, which has results, not text.
_WORKDIR = (".lock", "config.json")
_WILD = frozenset("*?[")


class Files(NamedTuple):
    """The files of a source.

    Attributes:
      folder: the folder that document names are relative to.
      paths: the files, sorted; a file reached through several links is listed once.
    """

    folder: Path
    paths: list[Path]


def find(source: str) -> Files:
    """Finds the files of a source.

    A path that exists is taken literally, even if it contains `*`, `?` or `[`. Hidden files and
    `rrope` workdirs below the source are skipped.

    Raises:
      ValueError: there is nothing to read; the message suggests a fix.
      OSError: the source cannot be accessed.
    """
    path = Path(source)
    try:
        mode = os.stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        if path.is_symlink():
            raise ValueError(f"source={source!r} is a link to what is not there") from None
        return _of_glob(source, path)
    except ValueError as error:  # a NUL, or an incomplete character
        raise ValueError(f"source={source!r} is no path: {error}") from None
    if stat.S_ISREG(mode):
        return Files(path.parent, [path])
    if stat.S_ISDIR(mode):
        return _in_folder(source, path)
    raise ValueError(f"source={source!r} is neither a file nor a folder; copy its text into a file")


def _in_folder(source: str, folder: Path) -> Files:
    every, workdirs, linked = 0, 0, 0
    unreadable: list[OSError] = []
    files: list[Path] = []
    for place, folders, names in os.walk(folder, onerror=unreadable.append):
        here = Path(place)
        if here != folder and _is_workdir(here):
            workdirs += 1
            folders.clear()
            continue
        hidden = _hidden(here.relative_to(folder))
        every += len(names)
        linked += sum(os.path.islink(here / name) for name in folders)  # not followed
        files += [
            here / name
            for name in names
            if name.endswith(ENDINGS)
            and not (hidden or name.startswith("."))
            and os.path.isfile(here / name)
        ]
    if others := every - len(files):
        _LOG.info("%s: %d files not read, hidden or of other kinds", folder, others)
    if linked:
        _LOG.info("%s: %d links to folders not followed", folder, linked)
    _say_unreadable(folder, unreadable)
    _say_workdirs(folder, workdirs)
    if not files:
        left_out = f" ({workdirs} working folders of rrope left out)" if workdirs else ""
        raise ValueError(
            f"source={source!r}: no file in this folder ends in {', '.join(ENDINGS)}{left_out}; "
            "give a glob for files of other endings"
        )
    return Files(folder, _once(sorted(files), folder))


def _of_glob(source: str, path: Path) -> Files:
    folder = _literal_part(path)
    walk = _Walk()
    files = walk.files(folder, path.relative_to(folder).parts)
    _say_unreadable(folder, list(walk.unreadable.values()))
    _say_workdirs(folder, walk.workdirs)
    if not files:
        left_out = " outside of working folders of rrope" if walk.workdirs else ""
        raise ValueError(
            f"source={source!r} is neither a file nor a folder nor a glob of files{left_out}"
        )
    return Files(folder, _once(sorted(files), folder))


class _Walk:
    """Expands a glob, following links to folders but visiting each folder only once.

    The standard library's `glob` goes in circles if a link points to a parent folder.

    Attributes:
      workdirs: number of `rrope` workdirs that were skipped.
      unreadable: folders that could not be read, with the errors.
    """

    def __init__(self) -> None:
        self.workdirs = 0
        self.unreadable: dict[Path, OSError] = {}

    def files(self, folder: Path, parts: tuple[str, ...]) -> set[Path]:
        """Returns the files below a folder that match the parts of a pattern."""
        matches: set[Path] = set()
        seen: set[tuple[str, tuple[str, ...]]] = set()
        waiting, links = [(folder, parts)], list[tuple[Path, tuple[str, ...]]]()
        while waiting or links:
            # Links last, so that files get their real names.
            here, left = waiting.pop() if waiting else links.pop()
            if (state := (os.path.realpath(here), left)) in seen:
                continue
            seen.add(state)
            if here != folder and _is_workdir(here):
                self.workdirs += 1
                continue
            for path, rest in self._steps(here, left):
                if not os.path.isdir(path):
                    if os.path.isfile(path) and not rest:
                        matches.add(path)
                elif rest:
                    (links if path.is_symlink() else waiting).append((path, rest))
        return matches

    def _steps(
        self, folder: Path, parts: tuple[str, ...]
    ) -> Iterator[tuple[Path, tuple[str, ...]]]:
        """Yields the entries of a folder that match the first part, with the remaining parts."""
        part, *others = parts
        rest = tuple(others)
        if os.path.lexists(folder / part):  # exists literally, so it is not a pattern
            yield folder / part, rest
        elif part == "**":
            if rest:  # `**` also matches zero folders
                yield from self._steps(folder, rest)
            for name in self._names(folder):
                if not name.startswith("."):
                    yield folder / name, parts
                    if not rest:
                        yield folder / name, ()
        elif _WILD & set(part):
            for name in self._names(folder):
                hidden = name.startswith(".") and not part.startswith(".")
                if fnmatch.fnmatchcase(name, part) and not hidden:
                    yield folder / name, rest

    def _names(self, folder: Path) -> list[str]:
        try:
            return os.listdir(folder)
        except OSError as error:
            self.unreadable[folder] = error
            return []


def _say_unreadable(folder: Path, errors: Sequence[OSError]) -> None:
    if errors:
        where, why = errors[0].filename, errors[0].strerror
        _LOG.warning("%s: %d folders not read, such as %s: %s", folder, len(errors), where, why)


def _say_workdirs(folder: Path, count: int) -> None:
    if count:
        _LOG.info("%s: %d working folders of rrope left out", folder, count)


def _literal_part(path: Path) -> Path:
    """The folder that a glob starts in: all parts before the first pattern.

    The files' common folder is not used, since adding a file elsewhere would rename all the others.
    """
    folder = Path(path.anchor)
    for part in path.relative_to(path.anchor).parts:
        if _WILD & set(part) and not os.path.lexists(folder / part):
            break
        folder /= part
    return folder if folder != path else path.parent


def _once(paths: Sequence[Path], folder: Path) -> list[Path]:
    """Drops duplicates of files that are reached through links; the direct path is kept."""
    root = os.path.realpath(folder)
    real_parent = functools.cache(os.path.realpath)  # files may be millions, but folders are few
    path_of: dict[str, Path] = {}
    itself: set[str] = set()
    for path in paths:
        place = os.path.join(real_parent(path.parent), path.name)
        real = os.path.realpath(path) if path.is_symlink() else place
        direct = os.path.join(root, path.relative_to(folder)) == real
        if real not in path_of or (direct and real not in itself):
            path_of[real] = path
        if direct:
            itself.add(real)
    if again := len(paths) - len(path_of):
        _LOG.info("%s: %d files are there under another name too, and read once", folder, again)
    return sorted(path_of.values())


def _is_workdir(folder: Path) -> bool:
    return all(os.path.exists(folder / name) for name in _WORKDIR)


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)
