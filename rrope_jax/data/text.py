"""Opens text sources and chooses the documents to hold out."""

import dataclasses
import difflib
import fnmatch
import hashlib
import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from rrope_jax.data.document import Documents
from rrope_jax.data.local_text import LocalText
from rrope_jax.io.local_copies import text_here
from rrope_jax.io.stores import is_store

TFDS = "tfds:"
"""The prefix of a source that names a TFDS dataset."""

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_NAMES_SHOWN = 10_000  # number of names to search for the nearest to a wrong one


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextConfig:
    """The text to read, and the documents to hold out.

    Attributes:
      source: the path of a text file, a JSONL file (both may be gzipped) or a folder of such files;
        a glob of files, of this machine or of a store (`gs://`, `s3://`); or "tfds:NAME", with
        "/CONFIG" and ":VERSION" if there are several. A path that exists is taken literally, even
        if it looks like a glob.
      data_dir: the folder of TFDS datasets, for a "tfds:" source; None for TFDS's default.
      split: the split of a TFDS dataset.
      text_key: the field of a JSONL object or TFDS example that has the text. None means "text" for
        JSONL, and the only text field for TFDS.
      heldout: names of documents to hold out of training, or patterns of names (`*`, `?`, `[...]`).
        The exact name of a document is not treated as a pattern.
      heldout_share: fraction of the remaining documents to hold out as well, chosen by a hash of
        their names.

    Raises:
      ValueError: a field is out of range, empty or another URL.
    """

    source: str
    data_dir: str | None = None
    split: str = "train"
    text_key: str | None = None
    heldout: tuple[str, ...] = ()
    heldout_share: float = 0.0

    def __post_init__(self) -> None:
        if not self.source.removeprefix(TFDS):
            raise ValueError(
                f"source={self.source!r} names nothing; give a file, folder or glob, or {TFDS}NAME"
            )
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value == "":
                unset = " or None" if field.default is None else ""
                raise ValueError(f"{field.name}='' names nothing; give a name{unset}")
            is_source = field.name == "source"
            if not isinstance(value, str) or (is_source and is_store(value)):
                continue
            if _URL.match(value):
                stores = ", gs:// and s3://" if is_source else ""
                raise ValueError(
                    f"{field.name}={value!r} is a URL, and only local paths{stores} are read and "
                    "written; copy what it names to this machine, or mount it"
                )
        if self.data_dir is not None and not self.source.startswith(TFDS):
            raise ValueError(
                f"data_dir={self.data_dir!r} is where TFDS keeps data sets, and source="
                f"{self.source!r} is none; leave it out: local text is read where it is, and "
                "cache_dir keeps its token ids"
            )
        if not 0 <= self.heldout_share < 1:
            raise ValueError(
                f"heldout_share={self.heldout_share} must be at least 0 and below 1: it is a share "
                "of the documents"
            )


def documents(config: TextConfig) -> Documents:
    """Opens a source.

    Raises:
      ValueError: the source has no text or cannot be read.
    """
    if config.source.startswith(TFDS):
        from rrope_jax.data.text_tfds import TfdsText  # TFDS takes a second to import

        return TfdsText(
            config.source.removeprefix(TFDS),
            data_dir=config.data_dir,
            split=config.split,
            text_key=config.text_key,
        )
    return LocalText(text_here(config.source), text_key=config.text_key or "text")


class Parts(NamedTuple):
    """Indices of the training and held-out documents, int64[N] each, ascending."""

    train: np.ndarray
    heldout: np.ndarray


def split(config: TextConfig, names: Sequence[str]) -> Parts:
    """Splits documents into those to train on and those to hold out.

    The split depends only on each document's name, so it is the same on every machine and does not
    change when documents are added.

    Raises:
      ValueError: an entry of `heldout` matches no name.
    """
    entries = frozenset(config.heldout)
    exact = entries.intersection(names) if entries else entries
    patterns = [pattern for pattern in config.heldout if pattern not in exact]
    for pattern in patterns:
        if not any(fnmatch.fnmatchcase(name, pattern) for name in names):
            nearest = difflib.get_close_matches(pattern, names[:_NAMES_SHOWN], n=1, cutoff=0.0)
            raise ValueError(
                f"heldout: {pattern!r} fits none of the {len(names)} documents; the nearest name "
                f"is {nearest[0]!r}"
            )

    def is_heldout(name: str) -> bool:
        named = name in exact or any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)
        return named or _draw(name) < config.heldout_share

    indices = np.arange(len(names))
    if not entries and not config.heldout_share:
        return Parts(indices, indices[:0])
    heldout = np.fromiter(map(is_heldout, names), bool, len(names))
    return Parts(indices[~heldout], indices[heldout])


def _draw(name: str) -> float:
    """A pseudorandom number in [0, 1) that depends only on the name."""
    digest = hashlib.blake2b(name.encode(errors="surrogatepass"), digest_size=6).digest()
    return int.from_bytes(digest) / 2**48
