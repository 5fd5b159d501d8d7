"""Errors that users can fix, which end the command with one line on stderr and exit code 2."""

import difflib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from rrope_jax.sharding import LayoutError


class UsageError(ValueError):
    """The command line or the config is wrong; the one-line message says how to fix it."""

    def __init__(self, message: str) -> None:
        """Takes the message and joins its lines, since text that it quotes may have several."""
        super().__init__(" ".join(message.splitlines()))


@contextmanager
def refusing(
    name: str, errors: tuple[type[Exception], ...] = (ValueError, OSError)
) -> Iterator[None]:
    """Turns the library's exceptions into a UsageError.

    Args:
      name: The flag or config key to blame, with which the message begins.
      errors: Exception types to convert.
    """
    try:
        yield
    except UsageError:
        raise
    except errors as error:
        raise UsageError(f"{name}: {error}") from error


@contextmanager
def refusing_layouts() -> Iterator[None]:
    """Turns a LayoutError into a UsageError that names the config key."""
    try:
        yield
    except LayoutError as error:
        raise UsageError(error.under("config")) from error


def choose_from(wrong: str, allowed: Iterable[str]) -> str:
    """Lists the allowed names, after the one that was probably meant."""
    names = sorted(allowed)
    close = difflib.get_close_matches(wrong, names, n=1)
    meant = f"did you mean {close[0]!r}? " if close else ""
    return f"{meant}allowed: {', '.join(names)}"
