"""Turns errors of the tokenizers library into a ValueError with a readable message."""

import contextlib
from collections.abc import Iterator

# Raised for a panic in Rust code. It is not an Exception and cannot be imported.
_PANIC = "PanicException"


@contextlib.contextmanager
def explained(before: str = "", after: str = "") -> Iterator[None]:
    """Converts any error of the library into a ValueError with a one-line message.

    The library raises bare Exceptions, and for Rust panics something that `except Exception` does
    not catch.

    Args:
      before: text to put before the library's message.
      after: text to put after it.
    """
    try:
        yield
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != _PANIC:
            raise
        said = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{before}{said[:300]}{after}") from error
