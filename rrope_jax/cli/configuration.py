"""Flags and config files of the commands, up to the frozen dataclasses that the library takes.

A config is a Python file with ``get_config()`` returning an ``ml_collections.ConfigDict``; any of
its fields is overridden as ``--config.rope.scaling=yarn`` (see ``overrides``). Everything that can
be wrong with either becomes a ``UsageError`` of one line, which ``rrope`` prints before it ends
with exit code 2.
"""

import dataclasses
import difflib
import inspect
import re
import runpy
import traceback
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from absl import flags
from ml_collections import ConfigDict, config_dict

from rrope_jax.cli import overrides
from rrope_jax.io.paths import check_local
from rrope_jax.sharding import LayoutError

T = TypeVar("T")

_CONFIG = "config"
_CONFIG_FILE = re.compile(rf"--?{_CONFIG}(=(?P<path>.*))?", re.DOTALL)
# Flags and fields of configs, of all commands, that name files or folders.
_PLACES = ("workdir", "checkpoint", "tokenizer", "from", "to", "compare")
_PLACES_IN_CONFIG = (
    "data.source",
    "data.data_dir",
    "data.cache_dir",
    "data.tokenizer",
    "checkpoint.init_from",
    "eval.closed_ended.files",
)


class UsageError(ValueError):
    """The command line or the config is wrong; the message is one line and says how to mend it."""

    def __init__(self, message: str) -> None:
        """Takes the message; what it quotes may have line ends."""
        super().__init__(" ".join(message.splitlines()))


@contextmanager
def refusing_layouts() -> Iterator[None]:
    """Names the key of the config that asks for what the devices do not allow."""
    try:
        yield
    except LayoutError as error:
        raise UsageError(error.under("config")) from error


def parse(
    command: str,
    summary: str,
    argv: Sequence[str],
    define: Callable[[flags.FlagValues], None],
    *,
    config: bool | ConfigDict = True,
) -> flags.FlagValues:
    """Parses the flags of one command on a FlagValues of its own; nothing global is touched.

    Args:
        command: Name of the command, for its help.
        summary: One sentence on what it does, for its help.
        argv: The words after the command's name.
        define: Defines the command's flags on the FlagValues that it is given.
        config: Whether the command takes a required ``--config`` and its overrides. A ConfigDict
            stands for the content of a file: only its overrides are taken.

    Returns:
        The parsed flags; ``.config`` is a locked ConfigDict with the overrides applied.

    Raises:
        UsageError: A flag is unknown, missing or has a bad value, or the config file cannot be
            loaded.
        SystemExit: With code 0, after printing the help that ``--help`` asked for.
    """
    values = flags.FlagValues()
    values.set_gnu_getopt(True)
    loaded: ConfigDict | None = None
    required: list[str] = []
    given: list[overrides.Override] = []
    try:
        _, *words = values.read_flags_from_files([f"rrope {command}", *argv])
        if config is not False:
            _define_config(values, config)
        define(values)
        if any(word in ("--help", "-help", "-h") for word in words):
            print(_help(command, summary, values))
            raise SystemExit(0)
        if isinstance(config, ConfigDict):
            loaded = _without_file(config, words)
        elif config and (path := _config_file(words)) is not None:
            loaded = _load(path)
            required = list(_loosen(loaded))
        if loaded is not None:
            there = loaded
            given, words = overrides.take(words, lambda key: _type_of(there, key) is bool)
        positional = values([f"rrope {command}", *words])[1:]
    except flags.UnrecognizedFlagError as error:
        raise UsageError(_unknown_flag(command, error.flagname, values)) from None
    except flags.Error as error:
        raise UsageError(_bad_value(command, str(error), values)) from None
    except UsageError:
        raise
    except ValueError as error:  # as absl says of --noFLAG=VALUE
        raise UsageError(_bad_value(command, str(error), values)) from None
    except RecursionError:  # absl compares an unknown name with all that it knows, letter by letter
        longest = max(argv, key=len)
        raise UsageError(f"unknown flag {longest[:60]}...; see rrope {command} --help") from None
    if positional:
        raise UsageError(f"unexpected argument {positional[0]!r}; see rrope {command} --help")
    if loaded is not None:
        _override(loaded, given)
        _check_required(loaded, required)
        values[_CONFIG].value = loaded.lock()
    _check_places(values)
    return values


def from_config(cls: type[T], config: ConfigDict, path: str, **fixed: Any) -> T:
    """Turns one group of a config into a frozen dataclass, checking every key and type.

    A None in the config stands for the field's default. Ints are taken for floats (not bools for
    either), lists for tuples, and groups for fields that are dataclasses themselves.

    Args:
        cls: The dataclass.
        config: The group, such as ``config.rope``.
        path: Its name in messages, such as ``"config.rope"``.
        **fixed: Fields that the caller has settled. The config may repeat such a value, not
            contradict it.

    Returns:
        An instance of ``cls``.

    Raises:
        UsageError: A key is unknown, missing, of a wrong type or contradicts ``fixed``, or ``cls``
            refuses the values with a ValueError.
    """
    if not isinstance(config, ConfigDict):
        raise UsageError(f"{path} = {config!r}: it has to be a group of fields (a ConfigDict)")
    annotations = typing.get_type_hints(cls)
    fields = {f.name: f for f in dataclasses.fields(cls) if f.init}  # type: ignore[arg-type]
    arguments: dict[str, Any] = {}
    for key in config:
        name, value = f"{path}.{key}", config[key]
        if key not in fields:
            shown = "{...}" if isinstance(value, ConfigDict) else repr(value)
            raise UsageError(f"{name} = {shown}: there is no such key; {_choose_from(key, fields)}")
        if value is None:
            continue
        arguments[key] = _convert(annotations[key], value, name)
        if key in fixed and arguments[key] != fixed[key]:
            raise UsageError(
                f"{name} = {value!r}: here it can only be {fixed[key]!r}, or left unset"
            )
    arguments |= fixed
    for key, field in fields.items():
        required = (
            field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        )
        if required and key not in arguments:
            raise UsageError(f"{path}.{key} has no value: give one with --{path}.{key}=VALUE")
    try:
        return cls(**arguments)
    except UsageError:
        raise
    except ValueError as error:
        raise UsageError(f"{path}: {error}") from error


def _define_config(values: flags.FlagValues, config: bool | ConfigDict) -> None:
    """Defines ``--config``; ``parse`` replaces its path by what the file holds."""
    text = "config file; --config.KEY=VALUE overrides a field of it"
    if isinstance(config, ConfigDict):
        text = f"sets a field of the group(s) {_list(config)}"
    flags.DEFINE(_FileParser(), _CONFIG, None, text, flag_values=values)
    if config is True:
        flags.mark_flag_as_required(_CONFIG, flag_values=values)


class _FileParser(flags.ArgumentParser[str]):
    """Tells the help what ``--config`` takes."""

    def flag_type(self) -> str:
        return "file"


def _without_file(config: ConfigDict, words: Sequence[str]) -> ConfigDict:
    for word in words:
        if _CONFIG_FILE.fullmatch(word):
            raise UsageError(f"{word}: this command takes no config file, only overrides of fields")
    return config


def _config_file(words: Sequence[str]) -> str | None:
    """The path in the last ``--config=PATH`` or ``--config PATH``."""
    path = None
    for place, word in enumerate(words):
        if word == "--":
            break
        if found := _CONFIG_FILE.fullmatch(word):
            path = found["path"] if "=" in word else next(iter(words[place + 1 :]), path)
    return path


def _override(config: ConfigDict, given: Sequence[overrides.Override]) -> None:
    for override in given:
        _check_override(config, override.key, override.word)
    try:
        overrides.apply(config, given)
    except ValueError as error:
        raise UsageError(str(error)) from error


def _check_places(values: flags.FlagValues) -> None:
    """What names files and folders does not name those of an object store."""
    given = [(f"--{name}", values[name].value) for name in _PLACES if name in values]
    config = values[_CONFIG].value if _CONFIG in values else None
    for key in _PLACES_IN_CONFIG:
        found = config
        for name in key.split("."):
            found = found.get(name) if isinstance(found, ConfigDict) else None
        given.append((f"{_CONFIG}.{key}", found))
    for name, value in given:
        for place in value if isinstance(value, list | tuple) else [value]:
            if isinstance(place, str):
                try:
                    check_local(place)
                except ValueError as error:
                    raise UsageError(f"{name}: {error}") from error


def _check_required(config: ConfigDict, required: Iterable[str]) -> None:
    """Every required placeholder of the config file has got a value."""
    for path in required:
        value = config
        for key in path.split("."):
            value = value[key]
        if value is None:
            name = f"{_CONFIG}.{path}"
            raise UsageError(f"{name} has no value: give one with --{name}=VALUE")


def _load(path: str) -> ConfigDict:
    """Runs ``get_config()`` of a file; what follows a colon in the path is its argument."""
    file, *arguments = path.split(":", 1)
    if not Path(file).is_file():
        what = "is not a file" if Path(file).exists() else "does not exist"
        raise UsageError(
            f"--config={path}: {file!r} {what}; give a config file such as configs/*.py"
        )
    try:
        get_config = runpy.run_path(file, run_name=_CONFIG).get("get_config")
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


def _loosen(config: ConfigDict, path: str = "") -> Iterator[str]:
    """Turns required placeholders into optional ones, which can be read; yields their paths."""
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
                yield from _loosen(value, f"{path}{key}.")


def _check_arguments(path: str, get_config: Callable[..., Any], arguments: Sequence[str]) -> None:
    try:
        inspect.signature(get_config).bind(*arguments)
    except TypeError as error:
        raise UsageError(
            f"--config={path}: get_config() {error} (what follows a colon in --config)"
        ) from None


def _blame(path: str, file: str, error: Exception) -> str:
    """One line on an error raised while a config file ran, with the line of the file."""
    if isinstance(error, SyntaxError):
        line, reason = error.lineno, error.msg
    else:
        frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename == file]
        line = frames[-1].lineno if frames else None
        reason = " ".join(str(error).split())
    where = f"line {line}: " if line else ""
    return f"--config={path}: {where}{type(error).__name__}: {reason}"


def _check_override(config: ConfigDict, key: str, word: str) -> None:
    group, path = config, _CONFIG
    *groups, last = key.split(".")
    for name in [*groups, last]:
        if not isinstance(group, ConfigDict):
            raise UsageError(f"{word}: {path} is a value, not a group of fields")
        if name not in group:
            elsewhere = [place for place in _fields(config) if place.split(".")[-1] == last]
            meant = f"; {_CONFIG}.{elsewhere[0]} is there" if elsewhere else ""
            raise UsageError(
                f"{word}: {path} has no key {name!r}{meant}; {_choose_from(name, group)}"
            )
        holder, group, path = group, group[name], f"{path}.{name}"
    if isinstance(group, ConfigDict):
        raise UsageError(f"{word}: {path} is a group; override one of its fields: {_list(group)}")
    kind = holder.get_type(last)
    if not overrides.can_set(kind):
        raise UsageError(
            f"{word}: {path} is of type {kind.__name__}, which a flag cannot set; change it in the "
            "config file"
        )


def _fields(config: ConfigDict, path: str = "") -> Iterator[str]:
    """The paths of all fields of a config."""
    for key in config:
        if isinstance(config[key], ConfigDict):
            yield from _fields(config[key], f"{path}{key}.")
        else:
            yield f"{path}{key}"


def _type_of(config: ConfigDict, key: str) -> type | None:
    """The type of a field; None where there is no such field."""
    group: Any = config
    *groups, last = key.split(".")
    for name in groups:
        group = group.get(name) if isinstance(group, ConfigDict) else None
    if not isinstance(group, ConfigDict) or last not in group:
        return None
    kind: type = group.get_type(last)
    return kind


def _unknown_flag(command: str, name: str, values: flags.FlagValues) -> str:
    if name.startswith(f"{_CONFIG}."):
        return f"--{name} is given without --config=FILE"
    known = [f"--{flag}" for flag in _own_flags(values)]
    return f"unknown flag --{name}; {_choose_from(f'--{name}', known)} (rrope {command} --help)"


def _bad_value(command: str, message: str, values: flags.FlagValues) -> str:
    """Says in one line what absl says about a flag's value, with the flag's type."""
    message = " ".join(message.split())
    found = re.match(r"flag --(?P<name>[\w.]+)=(?P<value>.*?): (?P<reason>.*)", message)
    if found is None or found["name"] not in values:
        return f"{message}; see rrope {command} --help"
    flag = values[found["name"]]
    if found["reason"].endswith("other than None."):  # as absl says of a required flag
        return f"--{flag.name} is missing: {flag.help}"
    reason = "neither True nor False" if flag.boolean else found["reason"]
    return f"--{flag.name}={found['value']}: {reason} (expected {flag.parser.flag_type()})"


def _own_flags(values: flags.FlagValues) -> list[str]:
    return sorted(name for name in values if not name.startswith(f"{_CONFIG}."))


def _help(command: str, summary: str, values: flags.FlagValues) -> str:
    lines = [f"usage: rrope {command} [FLAGS]", "", summary, "", "flags:"]
    for name in _own_flags(values):
        flag = values[name]
        kind = flag.parser.flag_type().upper()
        required = flag.default is None and bool(flag.validators)
        note = " (required)" if required else f" (default {flag.default_as_str})"
        note = "" if flag.default is None and not required else note
        shown = f"--[no]{name}" if flag.boolean else f"--{name}={kind}"
        if name == _CONFIG and not required:  # it stands for the content of a file
            shown, note = f"--{_CONFIG}.KEY=VALUE", ""
        lines.append(f"  {shown}\n      {flag.help}{note}")
    return "\n".join(lines)


def _list(names: Iterable[str]) -> str:
    return ", ".join(sorted(names))


def _choose_from(wrong: str, allowed: Iterable[str]) -> str:
    allowed = list(allowed)
    close = difflib.get_close_matches(wrong, allowed, n=1)
    meant = f"did you mean {close[0]!r}? " if close else ""
    return f"{meant}allowed: {_list(allowed)}"


def _convert(annotation: Any, value: Any, path: str) -> Any:
    """Checks a config value against a field's annotation; returns it in the annotated type."""
    converted = _try_convert(annotation, value, path)
    if converted is _MISMATCH:
        raise UsageError(f"{path} = {value!r}: it has to be {_describe(annotation)}")
    return converted


_MISMATCH = object()
# Whole numbers have fewer bits: sizes, counts and seeds 32, what becomes a float 1023.
_BITS: dict[Any, int] = {int: 32, float: 1023}


def _try_convert(annotation: Any, value: Any, path: str) -> Any:
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation is Any:
        return value
    if origin in (typing.Union, types.UnionType):
        attempts = (_try_convert(option, value, path) for option in arguments)
        return next((a for a in attempts if a is not _MISMATCH), _MISMATCH)
    if origin is typing.Literal:
        return value if value in arguments else _MISMATCH
    if origin is tuple:
        return _try_convert_tuple(arguments, value, path)
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
    """An annotation in words: ``float``, ``'a' or 'b'``, ``a sequence of str``."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
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
