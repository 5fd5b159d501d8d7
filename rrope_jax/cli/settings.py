"""Converts a command's ConfigDict to the frozen dataclasses that the library takes.

A command's setting is a dataclass with one field for each group of the config. A field's type is
one of:

- a dataclass, built from the group;
- a union of dataclasses: the first of which the group has all required fields, else the last;
- `Mapping[str, Dataclass]`: a group of groups of any names;
- `Annotated[Fields, SomeOf(RopeSpec)]`: some fields of a dataclass that is completed elsewhere, for
  example from a checkpoint. Names and types are checked, but nothing is built;
- `Annotated[TaskConfig, INLINE]`: a dataclass whose fields are at the top level of the config.
"""

import dataclasses
import types
import typing
from collections.abc import Collection, Iterator, Mapping
from typing import Annotated, Any, TypeVar

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from rrope_jax.cli.errors import UsageError, choose_from, refusing
from rrope_jax.cli.overrides import SWITCH_OR_TEXT

T = TypeVar("T")

Fields = Mapping[str, Any]
"""Values of some fields of a dataclass; fields that the config sets to None are left out."""

INLINE = "inline"


class SomeOf:
    """Marks a group that may contain any fields of the given dataclasses."""

    def __init__(self, *classes: type[Any], without: Collection[str] = ()) -> None:
        """Takes the dataclasses, of which later ones replace fields of earlier ones.

        Args:
          *classes: The dataclasses.
          without: Fields that the group does not contain.
        """
        self.classes = classes
        self.annotations: dict[str, Any] = {}
        for cls in classes:
            self.annotations |= _annotations(cls)
        for name in without:
            del self.annotations[name]


def from_config(cls: type[T], config: ConfigDict, path: str, **fixed: Any) -> T:
    """Converts a config group to a frozen dataclass, checking every key and type.

    None means the field's default. Ints are accepted as floats (but bools as neither), lists as
    tuples, and groups as nested dataclasses.

    Args:
      cls: The dataclass.
      config: The group, such as `config.rope`.
      path: The group's name in messages, such as `"config.rope"`.
      **fixed: Fields that the caller sets. The config may repeat these values but not contradict
        them.

    Returns:
      An instance of `cls`.

    Raises:
      UsageError: A key is unknown or missing, has the wrong type or contradicts `fixed`, or `cls`
        rejects the values with a ValueError.
    """
    annotations = _annotations(cls)
    inline = {
        name: typing.get_args(annotation)[0]
        for name, annotation in annotations.items()
        if INLINE in typing.get_args(annotation)
    }
    owner = {key: name for name, part in inline.items() for key in _annotations(part)}
    beside = {name: annotations[name] for name in annotations if name not in inline}
    for name in inline:
        beside |= _annotations(inline[name])
    values = read_fields(beside, config, path)
    parts: dict[str, dict[str, Any]] = {name: {} for name in inline}
    arguments: dict[str, Any] = {}
    for key, value in values.items():
        (parts[owner[key]] if key in owner else arguments)[key] = value
    for name, part in parts.items():
        arguments[name] = build(inline[name], part, path)
    return build(cls, arguments, path, **fixed)


def unset_group(*classes: type[Any]) -> ConfigDict:
    """Returns a group with all fields of some dataclasses set to None, for flags to set.

    Nested groups are there with their fields. Left out are fields that may be anything, and those
    of a dataclass's own kind.
    """
    return _unset(SomeOf(*classes).annotations, classes)


def _unset(annotations: Mapping[str, Any], within: tuple[type[Any], ...]) -> ConfigDict:
    group = ConfigDict()
    for name, annotation in annotations.items():
        is_union = typing.get_origin(annotation) in (typing.Union, types.UnionType)
        kind = annotation
        if is_union:  # of dataclasses, or with None
            kind = typing.get_args(annotation)[-1 if _is_group(annotation) else 0]
        if typing.get_origin(kind) is Mapping:
            continue  # the names are the config's
        if INLINE in typing.get_args(kind):
            group.update(unset_group(typing.get_args(kind)[0]))
        elif typing.get_origin(kind) is Annotated:
            some = typing.get_args(kind)[1]
            group[name] = _unset(some.annotations, (*within, *some.classes))
        elif isinstance(kind, type) and dataclasses.is_dataclass(kind):
            if kind not in within:
                group[name] = _unset(_annotations(kind), (*within, kind))
        elif typing.get_origin(kind) is typing.Literal:
            group[name] = placeholder(type(typing.get_args(kind)[0]))
        elif is_union and set(typing.get_args(annotation)) == {bool, str}:
            group[name] = placeholder(SWITCH_OR_TEXT)
        elif kind is not Any:
            group[name] = placeholder(typing.get_origin(kind) or kind)
    return group


def read_fields(annotations: Mapping[str, Any], config: ConfigDict, path: str) -> dict[str, Any]:
    """Returns the fields of a group that are not None, converted to their annotated types.

    Raises:
      UsageError: `config` is not a group, or it has an unknown key or a value of the wrong type.
    """
    if not isinstance(config, ConfigDict):
        raise UsageError(f"{path} = {config!r}: it has to be a group of fields (a ConfigDict)")
    fields = {}
    for key in config:
        name, value = f"{path}.{key}", config[key]
        if key not in annotations:
            shown = "{...}" if isinstance(value, ConfigDict) else repr(value)
            raise UsageError(
                f"{name} = {shown}: there is no such key; {choose_from(key, annotations)}"
            )
        if value is not None or typing.get_origin(annotations[key]) is Annotated:
            fields[key] = _convert(annotations[key], value, name)
    return fields


def build(cls: type[T], fields: Fields, path: str, **fixed: Any) -> T:
    """Like `from_config`, for fields that already have the right types."""
    for key in fixed.keys() & fields.keys():
        if fields[key] != fixed[key]:
            raise UsageError(
                f"{path}.{key} = {fields[key]!r}: here it can only be {fixed[key]!r}, or left unset"
            )
    arguments = {**fields, **fixed}
    annotations = _annotations(cls)
    for name in _required(cls):
        if name in arguments:
            continue
        if _is_group(annotations[name]):
            raise UsageError(f"{path}.{name} is missing: it has to be a group of fields")
        raise UsageError(f"{path}.{name} has no value: give one with --{path}.{name}=VALUE")
    with refusing(path, (ValueError,)):
        return cls(**arguments)


def _annotations(cls: type[Any]) -> dict[str, Any]:
    hints = typing.get_type_hints(cls, include_extras=True)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls) if field.init}


def _is_group(annotation: Any) -> bool:
    if typing.get_origin(annotation) in (Annotated, Mapping):
        return True
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return all(map(dataclasses.is_dataclass, typing.get_args(annotation)))
    return dataclasses.is_dataclass(annotation)


def _required(cls: type[Any]) -> Iterator[str]:
    for field in dataclasses.fields(cls):
        if field.init and field.default is field.default_factory is dataclasses.MISSING:
            yield field.name


def _convert(annotation: Any, value: Any, path: str) -> Any:
    """Converts a config value to the annotated type; raises UsageError if it does not match."""
    converted = _try_convert(annotation, value, path)
    if converted is _MISMATCH:
        raise UsageError(f"{path} = {value!r}: it has to be {_describe(annotation)}")
    return converted


_MISMATCH = object()
# Limits on the bits of integers: 32 for sizes, counts and seeds, 1023 for those converted to float.
_BITS: dict[Any, int] = {int: 32, float: 1023}


def _try_convert(annotation: Any, value: Any, path: str) -> Any:
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation is Any:
        return value
    if origin in (typing.Union, types.UnionType) and _is_group(annotation):
        return _try_convert(_chosen(arguments, value), value, path)
    if origin in (typing.Union, types.UnionType):
        attempts = (_try_convert(option, value, path) for option in arguments)
        return next((a for a in attempts if a is not _MISMATCH), _MISMATCH)
    if origin is typing.Literal:
        return value if value in arguments else _MISMATCH
    if origin is Annotated:
        is_group = isinstance(value, ConfigDict)
        return read_fields(arguments[1].annotations, value, path) if is_group else _MISMATCH
    if origin is tuple:
        return _try_convert_tuple(arguments, value, path)
    if origin is Mapping:
        if not isinstance(value, ConfigDict):
            return _MISMATCH
        return {name: _convert(arguments[1], value[name], f"{path}.{name}") for name in value}
    if dataclasses.is_dataclass(annotation):
        if not isinstance(value, ConfigDict):
            return value if isinstance(value, typing.cast(type, annotation)) else _MISMATCH
        return from_config(typing.cast(type, annotation), value, path)
    if annotation in (int, float) and isinstance(value, bool):
        return _MISMATCH
    if isinstance(value, int) and annotation in _BITS and abs(value) >> _BITS[annotation]:
        raise UsageError(f"{path} = {value!r:.40}: it has to be less than 2**{_BITS[annotation]}")
    if annotation is float and isinstance(value, int):
        return float(value)
    if annotation is None:
        annotation = types.NoneType
    return value if isinstance(value, origin or annotation) else _MISMATCH


def _chosen(classes: tuple[type[Any], ...], group: Any) -> type[Any]:
    """The first of several dataclasses whose required fields a group has, else the last."""
    if isinstance(group, ConfigDict):
        for cls in classes:
            if all(group.get(name) is not None for name in _required(cls)):
                return cls
    return classes[-1]


def _try_convert_tuple(elements: tuple[Any, ...], value: Any, path: str) -> Any:
    if not isinstance(value, list | tuple):
        return _MISMATCH
    if elements[-1:] == (...,):
        elements = (elements[0],) * len(value)
    if len(elements) != len(value):
        return _MISMATCH
    converted = tuple(map(_try_convert, elements, value, [path] * len(value)))
    return _MISMATCH if _MISMATCH in converted else converted


def _describe(annotation: Any) -> str:
    """Describes an annotation in words: `float`, `'a' or 'b'`, `a sequence of str`."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if _is_group(annotation):
        return "a group of fields"
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_describe(option) for option in arguments)
    if origin is typing.Literal:
        return " or ".join(map(repr, arguments))
    if origin is tuple and arguments[-1:] == (...,):
        return f"a sequence of {_describe(arguments[0])}"
    if origin is tuple:
        return f"a sequence of {len(arguments)}: {', '.join(map(_describe, arguments))}"
    if annotation in (None, types.NoneType):
        return "None"
    return getattr(annotation, "__name__", str(annotation))
