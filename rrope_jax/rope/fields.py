"""Checks shared by the frozen dataclasses in which one field names a method.

Such a dataclass holds the fields of all methods side by side. A method's row in its table says
which of them it reads, so that a missing field and a field without effect are both errors.
"""

import dataclasses
import math
from collections.abc import Collection, Mapping
from typing import Any, Protocol

INT32_MAX = 2**31 - 1
"""The last position: positions are int32."""


class Row(Protocol):
    """What the table of methods says about the fields of one method."""

    @property
    def reads(self) -> Collection[str]:
        """The fields that this method reads besides those that all methods read."""

    @property
    def requires(self) -> Collection[str]:
        """Those of `reads` that have no usable default."""


def check_method(instance: Any, choice: str, rows: Mapping[str, Row]) -> None:
    """Checks that a method is known.

    Args:
      instance: a dataclass instance.
      choice: its field that holds the name of the method.
      rows: the methods by name.

    Raises:
      ValueError: naming the field, its value and the methods.
    """
    method = getattr(instance, choice)
    if not isinstance(method, str) or method not in rows:
        raise ValueError(f"{choice}={method!r} is unknown; choose one of {', '.join(rows)}")


def check_fields(instance: Any, choice: str, rows: Mapping[str, Row]) -> None:
    """Checks that a known method has all it requires, and that it reads every field given.

    Args:
      instance, choice, rows: as for `check_method`.

    Raises:
      ValueError: naming the field, its value and what to do.
    """
    method = getattr(instance, choice)
    row = rows[method]
    for name in sorted(row.requires):
        if getattr(instance, name) is None:
            raise ValueError(f"{name} is not set, but {choice}={method!r} needs it; set {name}")
    defaults = {field.name: field.default for field in dataclasses.fields(instance)}
    for name in sorted(set().union(*(other.reads for other in rows.values())) - set(row.reads)):
        if getattr(instance, name) != defaults[name]:
            readers = [key for key, other in rows.items() if name in other.reads]
            raise ValueError(
                f"{name}={getattr(instance, name)!r} has no effect with {choice}={method!r}; "
                f"remove it or choose a {choice} that reads it ({', '.join(readers)})"
            )


def is_int(value: object) -> bool:
    """Whether a value is an int and not a bool."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: object) -> bool:
    """Whether a value is a finite int or float and not a bool."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer that no float can hold
        return False
