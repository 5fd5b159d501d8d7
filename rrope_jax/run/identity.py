"""Compares the identities of workdirs: the configurations that they belong to."""

import json
from collections.abc import Collection, Iterator, Mapping
from typing import Any

_ABSENT = object()


def difference(one: Any, other: Any, free: Collection[str] = ()) -> tuple[str, str, str] | None:
    """Finds the first key at which two nested JSON values differ.

    Args:
      one, other: The values.
      free: Keys, such as `mesh.data`, that may differ.

    Returns:
      The key and its value on each side as text, or None if there is no difference.
    """
    there, here = dict(_flatten(one)), dict(_flatten(other))
    for key in [*here, *there]:
        old, new = there.get(key, _ABSENT), here.get(key, _ABSENT)
        if old != new and key not in free and not _left_empty(key, {**there, **here}, free):
            return key, _show(old), _show(new)
    return None


def _left_empty(key: str, values: Mapping[str, Any], free: Collection[str]) -> bool:
    """Whether a key is an empty group, some of whose fields may differ."""
    return values[key] == {} and any(name.startswith(f"{key}.") for name in free)


def _flatten(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        for key, item in value.items():
            yield from _flatten(item, f"{path}.{key}" if path else key)
    else:
        yield path, value


def _show(value: Any) -> str:
    return "absent" if value is _ABSENT else json.dumps(value)
