"""Named texts, wherever they come from."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol


class Document(NamedTuple):
    """A text and the name by which it can be held out."""

    name: str
    text: str


class Documents(Protocol):
    """The documents of a source, any of which can be read at any time (by one thread)."""

    @property
    def names(self) -> Sequence[str]:
        """All different, in the source's order; known without reading the texts."""

    @property
    def fingerprint(self) -> str:
        """Another one whenever the texts may be others."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Document: ...

    def __iter__(self) -> Iterator[Document]: ...
