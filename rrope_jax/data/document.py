"""Named texts, wherever they come from."""

import abc
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple


class Document(NamedTuple):
    """A text and the name by which it can be held out."""

    name: str
    text: str


class Names(Sequence[str]):
    """Names that are spelled whenever they are asked for: there may be millions."""

    def __init__(self, count: int, name_of: Callable[[int], str]):
        """Takes how many there are, and what spells the one of an index from 0."""
        self._indices, self._name_of = range(count), name_of

    def __len__(self) -> int:
        return len(self._indices)

    def __iter__(self) -> Iterator[str]:
        return map(self._name_of, self._indices)

    def __getitem__(self, index: Any) -> Any:
        """The name of an index, or those of a slice."""
        if isinstance(index, slice):
            return [self._name_of(each) for each in self._indices[index]]
        return self._name_of(self._indices[index])


class Documents(abc.ABC):
    """The documents of a source: a sequence whose parts can be read in any order.

    Attributes:
      names: all different, in the source's order; known without reading the texts.
      fingerprint: changes whenever the texts may have changed.
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
