"""Where text comes from, and which of it is held out."""

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

TFDS = "tfds:"
"""What a source begins with that names a TFDS data set."""

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_NAMES_SHOWN = 10_000  # among which the nearest to a wrong name is looked for


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextConfig:
    """Which text to read and what to hold out of it.

    Attributes:
      source: path of a text file, of a JSONL file (either may be gzipped) or of a folder of such
        files; a glob of files; or "tfds:NAME" with "/CONFIG" and ":VERSION" where there are
        several. What exists under the very name is no glob, whatever is in it.
      data_dir: where TFDS keeps its data sets, for a source that is one; None for TFDS's default.
      split: split of a TFDS data set.
      text_key: field of a JSONL object or TFDS example that holds the text. None is "text" for
        JSONL, and the only text field for TFDS.
      heldout: names of documents, or patterns of names (`*`, `?`, `[...]`), not to train on. The
        very name of a document is no pattern.
      heldout_share: share of the other documents that is held out as well, by a hash of their
        names.

    Raises:
      ValueError: a field is out of range, empty, or the URL of what is not on this machine.
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
            if isinstance(value, str) and _URL.match(value):
                raise ValueError(
                    f"{field.name}={value!r} is a URL, and only local paths are read and written; "
                    "copy what it names to this machine, or mount it"
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
      ValueError: there is nothing to read at the source, or it cannot be read.
    """
    if config.source.startswith(TFDS):
        from rrope_jax.data.text_tfds import TfdsText  # here: TFDS takes a second to import

        return TfdsText(
            config.source.removeprefix(TFDS),
            data_dir=config.data_dir,
            split=config.split,
            text_key=config.text_key,
        )
    return LocalText(config.source, text_key=config.text_key or "text")


class Parts(NamedTuple):
    """Indices of documents, int64[N], ascending."""

    train: np.ndarray
    heldout: np.ndarray


def split(config: TextConfig, names: Sequence[str]) -> Parts:
    """Which documents are trained on and which are held out.

    A document's name alone decides: the choice stays when documents are added, and is the same on
    every machine.

    Raises:
      ValueError: an entry of `heldout` fits no name.
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
    """A number in [0, 1), as good as random but always the same for a name."""
    digest = hashlib.blake2b(name.encode(errors="surrogatepass"), digest_size=6).digest()
    return int.from_bytes(digest) / 2**48
