"""The interface of text sources: sequences of named documents."""

import abc
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple


class Document(NamedTuple):
    """A text, and the name by which it can be held out."""

    name: str
    text: str


class Names(Sequence[str]):
    """A sequence of names that are computed on access, since there may be millions."""

    def __init__(self, count: int, name_of: Callable[[int], str]):
        """Creates a sequence of `count` names; `name_of` computes a name from its index."""
        self._indices, self._name_of = range(count), name_of

    def __len__(self) -> int:
        return len(self._indices)

    def __iter__(self) -> Iterator[str]:
        return map(self._name_of, self._indices)

    def __getitem__(self, index: Any) -> Any:
        """Returns the name at an index, or a list of names for a slice."""
        if isinstance(index, slice):
            return [self._name_of(each) for each in self._indices[index]]
        return self._name_of(self._indices[index])


class Documents(abc.ABC):
    """The documents of a source, which can be read in any order.

    Attributes:
      names: unique names in the source's order, available without reading the texts.
      fingerprint: a string that changes whenever the texts may have changed.
    """

    names: Sequence[str]
    fingerprint: str

    @abc.abstractmethod
    def read(self, indices: Iterable[int]) -> Iterator[Document]:
        """Yields documents in the order of the indices; ascending order is fastest.

        Raises:
          ValueError: a text is damaged; the message names the file and the problem.
        """

    @abc.abstractmethod
    def place(self, index: int) -> Hashable:
        """Where a document is, under whatever name: the same for one text in two sources."""

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Document:
        """Reads one document; see `read` for errors."""
        return next(self.read([range(len(self))[index]]))

    def __iter__(self) -> Iterator[Document]:
        """Reads all documents; see `read` for errors."""
        return self.read(range(len(self)))
