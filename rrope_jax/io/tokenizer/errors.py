"""What the tokenizers library raises, in a form that callers can catch and users can read."""

import contextlib
from collections.abc import Iterator

_PANIC = "PanicException"  # of Rust code that gave up; no Exception, and no module has it


@contextlib.contextmanager
def explained(before: str = "", after: str = "") -> Iterator[None]:
    """Turns whatever the library raises into a ValueError of one line, with words around it.

    It raises bare Exceptions, and where its Rust code gives up, something that no `except
    Exception` catches.
    """
    try:
        yield
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != _PANIC:
            raise
        said = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{before}{said[:300]}{after}") from error
