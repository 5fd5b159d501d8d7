"""Copies on the disk of what is read from object stores: texts, tokenizers, models.

Readers seek, map files into memory and compare what is beside a file, so they read a copy. A copy
stays for the next run, which asks the store for each object whether it has changed.
"""

import concurrent.futures
import contextlib
import fcntl
import fnmatch
import hashlib
import logging
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

from rrope_jax.io.huggingface.read import CONFIG
from rrope_jax.io.orbax.checkpoint import TREE, steps_in
from rrope_jax.io.orbax.layout import CHECKPOINTS, TOKENIZER, layout_of
from rrope_jax.io.stores import StoreError, StorePath, is_store
from rrope_jax.io.target import replace_file

_LOG = logging.getLogger(__name__)

_VARIABLE = "RROPE_CACHE_DIR"
_READERS = 8
# Objects are read whole into memory, so large ones are read one after another.
_LARGE = (".safetensors", ".gguf")
_PICKLED = (".bin", ".pth", ".pt")
_SPLIT = re.compile(r"-\d{5}-of-\d{5}\.gguf")
_WILD = frozenset("*?[")
# Endings of the files of a tokenizer.
_TEXTS = (".json", ".txt", ".model", ".jinja")


def text_here(source: str) -> str:
    """Returns where the text of a source is on this disk; copies it from a store.

    Args:
      source: a path or a glob of this machine or of a store.

    Raises:
      ValueError: nothing in the store matches.
      StoreError: the store cannot be read.
    """
    if not is_store(source):
        return source
    path = StorePath.of(source)
    literal = list(_before_wild(path.parts))
    if len(literal) == len(path.parts) or path.exists():
        return file_here(source)
    folder = StorePath(path.scheme, path.bucket, "/".join(literal))
    # Of what a path may be between two slashes, `*` takes more here than it does on a disk, where
    # the copy is matched again.
    pattern = path.key.replace("**/", "*")
    matching = [each for each in folder.walk() if fnmatch.fnmatchcase(each.key, pattern)]
    if not matching:
        raise ValueError(f"no object matches {source}; give another glob, a folder or an object")
    return str(_copied(folder, matching, pattern)) + path.key[len(folder.key) :]


def file_here(source: str) -> str:
    """Returns where a file or a folder of files is on this disk; copies it from a store.

    Raises:
      ValueError: there is nothing at the path.
      StoreError: the store cannot be read.
    """
    if not is_store(source):
        return source
    path = StorePath.of(source)
    return str(_copied(path, path.walk() or [path]))


def config_here(path: str | os.PathLike[str]) -> str | os.PathLike[str]:
    """Like `checkpoint_here`, but without weights where config.json says what the model is."""
    if not is_store(path):
        return path
    there = StorePath.of(os.fspath(path))
    if there.suffix == ".json":
        return file_here(str(there))
    config = there / CONFIG
    if config.is_file() and layout_of(there) is None:
        return _copied(there, [config], CONFIG)
    return checkpoint_here(path)


def checkpoint_here(path: str | os.PathLike[str]) -> str | os.PathLike[str]:
    """Returns where a checkpoint is on this disk; copies it from a store.

    Of a training run, the newest checkpoint is copied, without the state of its optimizer.

    Args:
      path: as for `pretrained.open_source`, of this machine or of a store.

    Raises:
      ValueError: there is nothing at the path.
      StoreError: the store cannot be read.
    """
    if not is_store(path):
        return path
    there = StorePath.of(os.fspath(path))
    if steps := steps_in(there / CHECKPOINTS):
        return _copied(there, [*(there / TOKENIZER).walk(), *_model(there, steps[0])])
    if there.parent.name == CHECKPOINTS and there.name.isdigit():
        run = there.parent.parent
        objects = [*(run / TOKENIZER).walk(), *_model(run, int(there.name))]
        return _copied(run, objects, there.name) / CHECKPOINTS / there.name
    if _SPLIT.search(there.name):
        siblings = _SPLIT.sub("-*.gguf", there.name)
        return _copied(there.parent, there.parent.glob(siblings), siblings) / there.name
    objects = [each for each in there.walk() if each.suffix not in _PICKLED] or [there]
    return _copied(there, objects)


def _model(run: StorePath, step: int) -> list[StorePath]:
    """The objects of a training checkpoint that its model needs."""
    folder = run / CHECKPOINTS / str(step)
    optimizer = f"{(folder / TREE).key}/opt_state."
    return [
        each
        for each in folder.walk()
        if not each.key.startswith(optimizer) or each.name == ".zarray"
    ]


def _before_wild(parts: Sequence[str]) -> Iterator[str]:
    for part in parts:
        if _WILD & set(part):
            return
        yield part


def _copied(root: StorePath, objects: Sequence[StorePath], selection: str = "") -> Path:
    """Copies objects of a store to the disk, where they are not there already.

    Args:
      root: the folder of all objects, or the only object.
      objects: the objects.
      selection: what tells this selection of objects below the root from others.

    Returns:
      The path of the root on the disk.
    """
    digest = hashlib.blake2b(f"{root}\0{selection}".encode(), digest_size=8).hexdigest()
    cache = Path(os.environ.get(_VARIABLE) or Path.home() / ".cache" / "rrope_jax") / "stores"
    target = cache / digest / (root.name or root.bucket)
    names = {each: each.key[len(root.key) :].lstrip("/") for each in objects}
    try:
        with _alone(target.parent):
            files = {each: target / name if name else target for each, name in names.items()}
            _remove_others(target, set(files.values()))
            copied = _copy(files, target.parent / "versions")
    except OSError as error:
        if isinstance(error, StoreError):
            raise
        if error.errno is None:  # of the store, not of the disk
            raise ValueError(f"{error}; give a path that does") from error
        raise ValueError(
            f"{root} cannot be copied to {target}: {error.strerror}; name a folder with room for "
            f"it as {_VARIABLE}"
        ) from error
    if copied:
        _LOG.info("copied %d of %d objects of %s to %s", copied, len(files), root, target)
    return target


def _copy(files: dict[StorePath, Path], versions: Path) -> int:
    """Copies what has changed; returns how many objects."""
    large = [path for path in files if path.suffix in _LARGE]
    small = [path for path in files if path.suffix not in _LARGE]

    def copy(path: StorePath) -> bool:
        return _copy_one(path, files[path], versions)

    with concurrent.futures.ThreadPoolExecutor(_READERS) as pool:
        return sum(pool.map(copy, small)) + sum(map(copy, large))


def _copy_one(path: StorePath, file: Path, versions: Path) -> bool:
    """Copies an object unless the file is its current version; returns whether it did."""
    note = versions / hashlib.blake2b(path.key.encode(), digest_size=16).hexdigest()
    known = note.read_bytes() if note.exists() and file.exists() else None
    changed = path.read_if_changed(known)
    if changed is None:
        return False
    data, version = changed
    note.unlink(missing_ok=True)
    file.parent.mkdir(parents=True, exist_ok=True)
    replace_file(file, data)
    # The same on every machine: the time of a text file is part of what tells texts apart.
    seconds = int.from_bytes(hashlib.blake2b(version, digest_size=4).digest())
    os.utime(file, (seconds, seconds))
    versions.mkdir(exist_ok=True)
    replace_file(note, version)
    return True


def _remove_others(target: Path, files: set[Path]) -> None:
    """Removes what an earlier copy has and the store no longer has."""
    for path in list(target.rglob("*")) if target.is_dir() else []:
        if path.is_file() and path not in files:
            path.unlink()


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Lets the processes of this machine copy to a folder one after another."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def tokenizer_here(source: str) -> str:
    """Returns where a tokenizer is on this disk; copies it from a store.

    Args:
      source: as for `load_tokenizer`, of this machine or of a store.

    Raises:
      ValueError: there is nothing at the path.
      StoreError: the store cannot be read.
    """
    if not is_store(source):
        return source
    path = StorePath.of(source)
    if path.suffix != ".json":
        return os.fspath(checkpoint_here(source))
    beside = [each for each in path.parent.iterdir() if PurePosixPath(each.name).suffix in _TEXTS]
    files = [each for each in beside if each.is_file()]
    return str(_copied(path.parent, files, "tokenizer") / path.name)
