"""What a user can mend: one line on stderr and exit code 2."""

import difflib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from rrope_jax.sharding import LayoutError


class UsageError(ValueError):
    """The command line or the config is wrong; the message is one line and says how to mend it."""

    def __init__(self, message: str) -> None:
        """Takes the message; what it quotes may have line ends."""
        super().__init__(" ".join(message.splitlines()))


@contextmanager
def refusing(
    name: str, errors: tuple[type[Exception], ...] = (ValueError, OSError)
) -> Iterator[None]:
    """Turns a refusal by the library into a UsageError.

    Args:
      name: The flag or the key of the config that is to blame; it begins the message.
      errors: What the library raises.
    """
    try:
        yield
    except UsageError:
        raise
    except errors as error:
        raise UsageError(f"{name}: {error}") from error


@contextmanager
def refusing_layouts() -> Iterator[None]:
    """Names the key of the config that asks for what the devices do not allow."""
    try:
        yield
    except LayoutError as error:
        raise UsageError(error.under("config")) from error


def choose_from(wrong: str, allowed: Iterable[str]) -> str:
    """The names that are allowed, and the one that was probably meant."""
    names = sorted(allowed)
    close = difflib.get_close_matches(wrong, names, n=1)
    meant = f"did you mean {close[0]!r}? " if close else ""
    return f"{meant}allowed: {', '.join(names)}"
