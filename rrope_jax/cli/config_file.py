"""Loads config files, which define `get_config()` returning a ConfigDict, and overrides fields."""

import inspect
import runpy
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict, config_dict

from rrope_jax.cli import overrides
from rrope_jax.cli.errors import UsageError, choose_from

ROOT = "config"
"""First part of every field's full name, such as `config.rope.theta`."""


def load(path: str) -> ConfigDict:
    """Runs `get_config()` from a file; text after a colon in the path is passed as its argument.

    Raises:
      UsageError: The file does not exist, has no `get_config()`, raises an error, or does not
        return a ConfigDict.
    """
    file, *arguments = path.split(":", 1)
    if not Path(file).is_file():
        what = "is not a file" if Path(file).exists() else "does not exist"
        raise UsageError(
            f"--config={path}: {file!r} {what}; give a config file such as configs/*.py"
        )
    try:
        get_config = runpy.run_path(file, run_name=ROOT).get("get_config")
        if get_config is None:
            raise UsageError(
                f"--config={path}: the file has no get_config(); define it to return a ConfigDict"
            )
        _check_arguments(path, get_config, arguments)
        config = get_config(*arguments)
    except UsageError:
        raise
    except Exception as error:
        raise UsageError(_blame(path, file, error)) from error
    if not isinstance(config, ConfigDict):
        raise UsageError(
            f"--config={path}: get_config() returned {type(config).__name__}, not a ConfigDict"
        )
    return config


def _check_arguments(path: str, get_config: Callable[..., Any], arguments: Sequence[str]) -> None:
    try:
        inspect.signature(get_config).bind(*arguments)
    except TypeError as error:
        raise UsageError(
            f"--config={path}: get_config() {error} (what follows a colon in --config)"
        ) from None


def _blame(path: str, file: str, error: Exception) -> str:
    """Describes an error raised by a config file in one line, with its line number."""
    if isinstance(error, SyntaxError):
        line, reason = error.lineno, error.msg
    else:
        frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename == file]
        line = frames[-1].lineno if frames else None
        reason = " ".join(str(error).split())
    where = f"line {line}: " if line else ""
    return f"--config={path}: {where}{type(error).__name__}: {reason}"


def loosen(config: ConfigDict, path: str = "") -> Iterator[str]:
    """Makes required placeholders optional, so they can be read; yields the paths of the fields."""
    for key in list(config):
        try:
            value = config[key]
        except config_dict.RequiredValueError:
            kind = config.get_ref(key).get_type()
            del config[key]
            config[key] = config_dict.placeholder(kind)
            yield f"{path}{key}"
        else:
            if isinstance(value, ConfigDict):
                yield from loosen(value, f"{path}{key}.")


def check_required(config: ConfigDict, required: Iterable[str]) -> None:
    """Raises UsageError if a field that `loosen` yielded still has no value."""
    for path in required:
        if value_of(config, path) is None:
            name = f"{ROOT}.{path}"
            raise UsageError(f"{name} has no value: give one with --{name}=VALUE")


def value_of(config: ConfigDict, path: str) -> Any:
    """Returns the value of a field, such as `rope.theta`, or None if it does not exist."""
    value: Any = config
    for key in path.split("."):
        value = value.get(key) if isinstance(value, ConfigDict) else None
    return value


def complete(config: ConfigDict, known: ConfigDict, keys: Iterable[str]) -> None:
    """Adds fields without values, so that flags can set what a config file leaves out.

    Fields that no flag sets are not added, as a workdir belongs to the fields of its config.

    Args:
      config: The config of the file.
      known: All fields that the command reads, without values.
      keys: The fields that flags set, such as `rope.theta`; those in `known` are added.
    """
    with config.unlocked():
        for key in keys:
            _add(config, known, key.split("."))


def _add(group: ConfigDict, known: ConfigDict, names: Sequence[str]) -> None:
    name, *rest = names
    if name not in known:
        return
    if not isinstance(known[name], ConfigDict):
        if name not in group and not rest:
            group[name] = config_dict.placeholder(known.get_type(name))
    elif rest:
        if name not in group:
            group[name] = ConfigDict()
        if isinstance(group[name], ConfigDict):
            _add(group[name], known[name], rest)


def override(config: ConfigDict, flags: Sequence[overrides.Override], known: ConfigDict) -> None:
    """Sets fields of a config.

    Args:
      config: The config.
      flags: The fields and their values.
      known: All fields that the command reads, for messages.

    Raises:
      UsageError: A field does not exist, or a value has the wrong type.
    """
    for flag in flags:
        _check_override(config, known, flag.key, flag.word)
    try:
        overrides.apply(config, flags, known)
    except ValueError as error:
        raise UsageError(str(error)) from error


def _check_override(config: ConfigDict, known: ConfigDict, key: str, word: str) -> None:
    group, path = config, ROOT
    *groups, last = key.split(".")
    for name in [*groups, last]:
        if not isinstance(group, ConfigDict):
            raise UsageError(f"{word}: {path} is a value, not a group of fields")
        if name not in group:
            elsewhere = [field for field in _paths(config) if field.split(".")[-1] == last]
            meant = f"; {ROOT}.{elsewhere[0]} is there" if elsewhere else ""
            raise UsageError(
                f"{word}: {path} has no key {name!r}{meant}; {choose_from(name, {*group, *known})}"
            )
        holder, group, path = group, group[name], f"{path}.{name}"
        within = known.get(name)
        known = within if isinstance(within, ConfigDict) else ConfigDict()
    if isinstance(group, ConfigDict):
        fields = ", ".join(sorted({*group, *known}))
        raise UsageError(f"{word}: {path} is a group; override one of its fields: {fields}")
    kind = holder.get_type(last)
    if not overrides.can_set(kind):
        raise UsageError(
            f"{word}: {path} is of type {kind.__name__}, which a flag cannot set; change it in the "
            "config file"
        )


def _paths(config: ConfigDict, path: str = "") -> Iterator[str]:
    """Yields the paths of all fields of a config."""
    for key in config:
        if isinstance(config[key], ConfigDict):
            yield from _paths(config[key], f"{path}{key}.")
        else:
            yield f"{path}{key}"
