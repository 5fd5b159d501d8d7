"""Text in TFDS datasets in array_record format, read without TensorFlow."""

import contextlib
import difflib
import hashlib
import re
from collections.abc import Hashable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds  # type: ignore[import-untyped]

from rrope_jax.data.document import Document, Documents, Names

# The only TFDS format with random access that can be read without TensorFlow.
_FORMAT = "array_record"
_OF_LOCAL_FILES = "rrope_text"
_INFO = "dataset_info.json"
_NAME = re.compile(r"(?P<name>\w+)(/(?P<config>[^:]+))?(:(?P<version>\d+\.\d+\.\d+))?")
_VERSION = re.compile(r"\d+\.\d+\.\d+")


class TfdsText(Documents):
    """The documents of a prepared TFDS dataset.

    Documents are named `NAME/SPLIT/INDEX`. Those of `rrope_text`, which earlier releases made from
    local files, keep the names of their files.
    """

    def __init__(self, name: str, *, data_dir: str | None, split: str, text_key: str | None):
        """Opens a dataset.

        Args:
          name: NAME, NAME/CONFIG, NAME:VERSION or NAME/CONFIG:VERSION; the newest version by
            default.
          data_dir: the folder of TFDS datasets; None for TFDS's default.
          split: a split in TFDS's notation, such as "train" or "test[:10%]".
          text_key: the feature that has the text; None to infer it if it is unambiguous.

        Raises:
          ValueError: the dataset is not in `data_dir` as array_record, is damaged, or lacks the
            split or the feature.
        """
        folder = _folder(name, Path(data_dir or tfds.core.constants.DATA_DIR))
        with _naming_damage(folder):
            builder = tfds.builder_from_directory(folder)
        stored = builder.info.file_format
        if stored is None or stored.value != _FORMAT:
            raise ValueError(
                f"source='tfds:{name}': {folder} is in another format ({stored and stored.value}), "
                f"which needs TensorFlow to read; {_how_to_prepare(name)}"
            )
        self._text_key = _text_key(name, builder.info.features, text_key)
        try:
            self._examples = builder.as_data_source(split=split)
        except ValueError as error:
            raise ValueError(f"split={split!r} of source='tfds:{name}': {_line(error)}") from error
        except Exception as error:
            raise DamagedError(folder, _line(error)) from error
        self._folder, self._prefix = folder, f"{builder.info.name}/{split}"
        self._real_folder = folder.resolve()
        content = f"{builder.info.as_json}\0{split}\0{self._text_key}"
        self.fingerprint = hashlib.blake2b(content.encode(), digest_size=16).hexdigest()
        count = len(self._examples)
        if builder.info.name == _OF_LOCAL_FILES:
            self.names = [self._read(index, "name") for index in range(count)]
        else:
            self.names = Names(count, lambda index: f"{self._prefix}/{index}")

    def read(self, indices: Iterable[int]) -> Iterator[Document]:
        """Yields documents; see `Documents.read`."""
        for index in indices:
            yield Document(self.names[index], self._read(index, self._text_key))

    def place(self, index: int) -> Hashable:
        """The example of a split, and the feature; see `Documents.place`."""
        return self._real_folder, self._prefix, index, self._text_key

    def _read(self, index: int, key: str) -> str:
        with _naming_damage(self._folder):
            data = self._examples[index][key]
            if not isinstance(data, bytes):  # some truncated files give None
                raise TypeError(f"there is no {key} in example {index}")
        try:
            return data.decode()
        except UnicodeDecodeError as error:
            raise ValueError(f"{key} of {self._prefix}/{index} is not UTF-8: {error}") from error


class DamagedError(ValueError):
    """Raised when a dataset cannot be read."""

    def __init__(self, folder: Path, reason: str) -> None:
        """Creates the error from the dataset's folder and the reason."""
        mend = "prepare or copy it again after removing the folder"
        super().__init__(f"{folder} is damaged: {reason}; {mend}")


@contextlib.contextmanager
def _naming_damage(folder: Path) -> Iterator[None]:
    """Converts any error to a `DamagedError`, since damaged files raise errors of many types."""
    try:
        yield
    except Exception as error:
        raise DamagedError(folder, _line(error)) from error


def _line(error: Exception) -> str:
    return " ".join(str(error).split())


def _text_key(name: str, features: Any, text_key: str | None) -> str:
    """Returns `text_key`, or else "text", the only string named like it, or the only string."""
    string = np.dtype(object)  # TFDS's dtype for strings
    strings = sorted(k for k, f in features.items() if f.np_dtype == string and f.shape == ())
    alike = [key for key in strings if key.endswith("text")]
    for candidates in ([text_key],) if text_key else (["text"], alike, strings):
        if len(candidates) == 1 and candidates[0] in strings:
            return candidates[0]
    raise ValueError(
        f"text_key={text_key!r}: it cannot be told which field of source='tfds:{name}' is the "
        f"text; its strings are {', '.join(strings) or 'none'}"
    )


def _folder(name: str, data_dir: Path) -> Path:
    """Returns the folder of the newest prepared version of a dataset."""
    parsed = _NAME.fullmatch(name)
    if parsed is None:
        raise ValueError(f"source='tfds:{name}' has to be tfds:NAME[/CONFIG][:VERSION]")
    root = data_dir / parsed["name"]
    infos = [*root.glob(f"*/{_INFO}"), *root.glob(f"*/*/{_INFO}")]
    prepared = sorted(info.parent for info in infos if _VERSION.fullmatch(info.parent.name))
    matching = [
        folder
        for folder in prepared
        if parsed["config"] in (None, folder.parent.relative_to(root).as_posix())
        and parsed["version"] in (None, folder.name)
    ]
    if len({folder.parent for folder in matching}) == 1:
        return max(matching, key=lambda folder: tuple(map(int, folder.name.split("."))))
    missing = f"source='tfds:{name}' is not in data_dir={str(data_dir)!r}"
    if prepared:
        shown = ", ".join(folder.relative_to(data_dir).as_posix() for folder in prepared)
        raise ValueError(
            f"{missing} or could be several; there are {shown} (the last part is the version)"
        )
    names = tfds.list_builders(with_community_datasets=False)
    close = difflib.get_close_matches(parsed["name"], names, n=1)
    meant = f" (did you mean {close[0]!r}?)" if close and parsed["name"] not in names else ""
    raise ValueError(f"{missing}{meant}; {_how_to_prepare(name)}")


def _how_to_prepare(name: str) -> str:
    folder = name.partition("/")[0].partition(":")[0]
    return (
        "prepare it once on a machine with a network: `pip install tensorflow "
        f"tensorflow-datasets`, `tfds build {name} --file_format=array_record --data_dir=DIR`; "
        f"then copy DIR/{folder} into data_dir"
    )
