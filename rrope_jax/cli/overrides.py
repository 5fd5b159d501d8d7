"""Parses flags that override config fields: `--config.KEY=VALUE`.

The type of the field's value in the config determines how its flag is read. `None` means None for
every type:

    bool         --config.KEY, --noconfig.KEY, or a value such as True, false, 1
    int, float   a number; a field of type int takes no fraction
    str          the text as is, which may be empty
    bool or str  as for bool, and any other value is text
    tuple, list  comma-separated elements, or a Python literal such as ('a', 'b'); an empty value
                 makes it empty
    None         a Python literal if it parses as one, otherwise text, as the type is unknown

If the elements in the config are strings, so are the new ones (`--config.tasks=1,2` names two
tasks). Otherwise elements that look like numbers become numbers. An element that contains a comma
must be quoted: "('a, b',)".

If a field is set more than once, the last flag wins, for tuples and lists too. A script can thus
put a user's flags after its own. (Flags of ml_collections concatenate repeated tuples instead.)
"""

import ast
import itertools
import re
import types
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from absl import flags
from ml_collections import ConfigDict

_WORD = re.compile(r"--?(?P<no>no)?config\.(?P<key>[^=]*)(=(?P<text>.*))?", re.DOTALL)
# Commas within brackets do not split elements: [a,b].txt is one pattern.
_ELEMENT = re.compile(r"(?:\[[^\]]*\]|[^,])+", re.DOTALL)


SWITCH_OR_TEXT: type = object
"""The type, in a config of all known fields, of those that are a bool or a str."""


class Override(NamedTuple):
    """A flag that sets a field.

    Attributes:
      word: The flag as given, including its value, for messages.
      key: The field, such as `rope.theta`.
      text: The value; None for a flag without one, such as `--config.rope.resonance`.
      no: Whether the flag is `--noconfig.KEY`.
    """

    word: str
    key: str
    text: str | None
    no: bool


def take(words: Sequence[str], config: ConfigDict) -> tuple[list[Override], list[str]]:
    """Separates overrides from the other words of a command line.

    Args:
      words: The words of the command line. Words after `--` are left alone.
      config: The config with the fields. Bool fields need no value; for other fields, a flag
        without `=` takes the next word as its value.

    Returns:
      The overrides and the other words, each in their original order.
    """
    overrides: list[Override] = []
    others: list[str] = []
    remaining = iter(words)
    for word in remaining:
        if word == "--":
            others += [word, *remaining]
        elif match := _WORD.fullmatch(word):
            text, no = match["text"], match["no"] is not None
            if text is None and not no and not _is_switch(config, match["key"]):
                text = next(remaining, None)
                word = word if text is None else f"{word}={text}"
            overrides.append(Override(word, match["key"], text, no))
        else:
            others.append(word)
    return overrides, others


def keys(words: Sequence[str]) -> list[str]:
    """Returns the fields that the words of a command line set, such as `rope.theta`."""
    before = itertools.takewhile(lambda word: word != "--", words)
    return [match["key"] for word in before if (match := _WORD.fullmatch(word))]


def _is_switch(config: ConfigDict, key: str) -> bool:
    return _type_of(config, key) in (bool, SWITCH_OR_TEXT)


def _type_of(config: ConfigDict, key: str) -> Any:
    """The type of a field; None if there is no such field."""
    holder: Any = config
    *groups, name = key.split(".")
    for group in groups:
        holder = holder.get(group) if isinstance(holder, ConfigDict) else None
    if not isinstance(holder, ConfigDict) or name not in holder:
        return None
    return holder.get_type(name)


def apply(config: ConfigDict, overrides: Sequence[Override], known: ConfigDict) -> None:
    """Sets fields, which must exist in the config.

    If a field is set more than once, the last flag wins.

    Args:
      config: The config.
      overrides: The flags.
      known: All known fields, of which only those of type `SWITCH_OR_TEXT` are looked at.

    Raises:
      ValueError: A value has the wrong type; the message begins with the flag.
    """
    values: dict[str, Any] = {}
    for override in overrides:
        holder, name = _holder(config, override.key)
        kind = SWITCH_OR_TEXT if _is_either(known, override.key) else holder.get_type(name)
        try:
            values[override.key] = _read(override, kind, holder[name])
        except ValueError as error:
            raise ValueError(f"{override.word}: {error}") from None
    for key, value in values.items():
        holder, name = _holder(config, key)
        if _is_either(known, key):
            with holder.ignore_type():
                holder[name] = value
        else:
            holder[name] = value


def can_set(kind: type) -> bool:
    """Whether a flag can set fields of the given type."""
    return kind is SWITCH_OR_TEXT or issubclass(kind, tuple(_READERS))


def _is_either(known: ConfigDict, key: str) -> bool:
    """Whether a field may be a bool or a str."""
    return _type_of(known, key) is SWITCH_OR_TEXT


def _holder(config: ConfigDict, key: str) -> tuple[ConfigDict, str]:
    """Returns the group that contains a field, and the field's name within it."""
    *groups, name = key.split(".")
    for group in groups:
        config = config[group]
    return config, name


def _read(override: Override, kind: type, present: Any) -> Any:
    is_switch = kind in (bool, SWITCH_OR_TEXT)
    expected = f"(expected {'bool or str' if kind is SWITCH_OR_TEXT else kind.__name__})"
    if override.no and (override.text is not None or not is_switch):
        raise ValueError(f"only fields of type bool have a --no..., without a value {expected}")
    if override.text is None:
        if not is_switch:
            raise ValueError(f"Missing value {expected}")
        return not override.no
    if override.text == "None":
        return None
    if kind is SWITCH_OR_TEXT:
        return _boolean_or_text(override.text)
    reader = next(reader for base, reader in _READERS.items() if issubclass(kind, base))
    try:
        return reader(override.text, present)
    except ValueError as error:
        raise ValueError(f"{error} {expected}") from None


def _boolean(text: str, present: Any) -> bool:
    try:
        return bool(flags.BooleanParser().parse(text))
    except ValueError:
        raise ValueError("neither True nor False") from None


def _boolean_or_text(text: str) -> bool | str:
    try:
        return _boolean(text, None)
    except ValueError:
        return text


def _integer(text: str, present: Any) -> int:
    return int(flags.IntegerParser().parse(text))


def _number(text: str, present: Any) -> float:
    return float(text)


def _text(text: str, present: Any) -> str:
    return text


def _elements(text: str, present: Any) -> tuple[Any, ...]:
    as_text = bool(present) and all(isinstance(element, str) for element in present)
    literal = _literal(text)
    if isinstance(literal, str):
        return (literal,)
    if isinstance(literal, tuple | list):
        texts = all(isinstance(element, str) for element in literal)
        if texts or not as_text or text.startswith("("):
            return tuple(literal)
    elif text.startswith(("(", "'", '"')):
        raise ValueError("neither a Python tuple nor words with commas between them")
    words = [word.strip() for word in _ELEMENT.findall(text)]
    return tuple(words if as_text else map(_number_or_text, words))


def _list(text: str, present: Any) -> list[Any]:
    return list(_elements(text, present))


def _number_or_text(word: str) -> Any:
    literal = _literal(word)
    return literal if isinstance(literal, int | float | str) else word


def _literal_or_text(text: str, present: Any) -> Any:
    literal = _literal(text)
    return text if literal is None else literal


def _literal(text: str) -> Any:
    """Evaluates text as a Python literal; returns None if it is not one."""
    try:
        return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError):  # the errors it documents
        return None


_READERS: dict[type, Callable[[str, Any], Any]] = {
    bool: _boolean,  # must come before int, its base class
    int: _integer,
    float: _number,
    str: _text,
    tuple: _elements,
    list: _list,
    types.NoneType: _literal_or_text,
}
"""Field type -> reader: (the flag's text, the field's current value) -> the new value."""
