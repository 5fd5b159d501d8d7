"""Inputs that once went wrong: what was changed in which valid input."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from tests.fuzz.encoding import Files, encode
from tests.fuzz.targets import TARGETS


class Kept(NamedTuple):
    """One input.

    Attributes:
      target: key of `TARGETS`.
      seed: number of the valid input that was changed.
      path: keys down to what was changed.
      value: what is there instead.
    """

    target: str
    seed: int
    path: tuple[str | int, ...]
    value: Any

    def files(self) -> Files:
        """The input."""
        return encode(_replaced(TARGETS[self.target].seeds()[self.seed], self.path, self.value))


def _replaced(tree: Any, path: Sequence[str | int], value: Any) -> Any:
    if not path:
        return value
    copy = tree.copy() if isinstance(tree, dict | list) else {}
    below = tree.get(path[0]) if isinstance(tree, dict) else tree[path[0]]
    copy[path[0]] = _replaced(below, path[1:], value)
    return copy


KEPT: dict[str, Kept] = {}
