"""Validation shared by frozen dataclasses in which one field names a method.

Such a dataclass holds the fields of all methods side by side. A method's table row lists the fields
that it reads, so a missing field and a field without effect are both errors.
"""

import dataclasses
import math
from collections.abc import Collection, Mapping
from typing import Any, Protocol

INT32_MAX = 2**31 - 1
"""The largest position; positions are int32."""


class Row(Protocol):
    """A row in the table of methods: the fields that one method uses."""

    @property
    def reads(self) -> Collection[str]:
        """The fields that this method reads beyond those common to all methods."""

    @property
    def requires(self) -> Collection[str]:
        """The subset of `reads` without a usable default."""


def check_method(instance: Any, choice: str, rows: Mapping[str, Row]) -> None:
    """Checks that a method is known.

    Args:
      instance: a dataclass instance.
      choice: the name of its field that holds the method.
      rows: the methods by name.

    Raises:
      ValueError: the method is unknown; the message lists the known ones.
    """
    method = getattr(instance, choice)
    if not isinstance(method, str) or method not in rows:
        raise ValueError(f"{choice}={method!r} is unknown; choose one of {', '.join(rows)}")


def check_fields(instance: Any, choice: str, rows: Mapping[str, Row]) -> None:
    """Checks that a method's required fields are set and that it reads every field that is set.

    Args:
      instance, choice, rows: as for `check_method`.

    Raises:
      ValueError: a check fails; the message names the field, its value and the fix.
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
    except OverflowError:  # an integer too large for a float
        return False
