"""Named texts, wherever they come from."""

import abc
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple


class Document(NamedTuple):
    """A text and the name by which it can be held out."""

    name: str
    text: str


class Documents(abc.ABC):
    """The documents of a source: a sequence of which any part can be read.

    Attributes:
      names: all different, in the source's order; known without reading the texts.
      fingerprint: another one whenever the texts may be others.
    """

    names: Sequence[str]
    fingerprint: str

    @abc.abstractmethod
    def read(self, indices: Iterable[int]) -> Iterator[Document]:
        """Reads documents; ascending indices are fastest.

        Raises:
          ValueError: a text is damaged; the message names the file and what is wrong.
        """

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Document:
        """Reads one document; raises as `read`."""
        return next(self.read([range(len(self))[index]]))

    def __iter__(self) -> Iterator[Document]:
        """Reads all documents; raises as `read`."""
        return self.read(range(len(self)))
