"""Parses a command line: flags, a config file, and overrides of its fields.

Every mistake in them raises a one-line `UsageError`; `rrope` prints it and exits with code 2.
"""

import re
from collections.abc import Callable, Sequence

from absl import flags
from ml_collections import ConfigDict

from rrope_jax.cli import config_file, overrides
from rrope_jax.cli.errors import UsageError, choose_from, refusing
from rrope_jax.io.paths import any_path, check_local

_CONFIG = config_file.ROOT
_CONFIG_FLAG = re.compile(rf"--?{_CONFIG}(=(?P<path>.*))?", re.DOTALL)
# Flags and config fields of any command that name files or folders, and the check of each.
_PATH_FLAGS: dict[str, Callable[[str], object]] = {
    "workdir": any_path,
    "checkpoint": any_path,
    "adapter": any_path,
    "tokenizer": any_path,
    "from": any_path,
    "to": check_local,
    "compare": any_path,
    "runs": any_path,
    "path": any_path,
    "against": any_path,
    "plot": any_path,
}
_PATH_FIELDS: dict[str, Callable[[str], object]] = {
    "data.source": any_path,
    "data.data_dir": check_local,
    "data.cache_dir": check_local,
    "data.tokenizer": any_path,
    "checkpoint.init_from": any_path,
    "checkpoint.adapter_from": any_path,
    "eval.closed_ended.files": any_path,
    "eval.longppl.evaluator": any_path,
    "eval.ruler.text": any_path,
    "eval.ruler.words": any_path,
    "eval.ruler.squad": any_path,
    "eval.ruler.hotpotqa": any_path,
}
# Each text of a mixture has these fields of `data` itself.
_SOURCES = "data.sources"
_FIELDS_OF_SOURCES = ("source", "data_dir")


def parse(
    command: str,
    summary: str,
    argv: Sequence[str],
    define: Callable[[flags.FlagValues], None],
    *,
    config: bool | ConfigDict = True,
    known: Callable[[ConfigDict], ConfigDict] = lambda config: ConfigDict(),
    positional: str | None = None,
) -> flags.FlagValues:
    """Parses the flags of a command into its own FlagValues, without global state.

    Args:
      command: Name of the command, for the help text.
      summary: One sentence on what the command does, for the help text.
      argv: The words after the command's name.
      define: Defines the command's flags on the given FlagValues.
      config: Whether the command requires `--config` and accepts overrides. If this is a
        ConfigDict, the command takes overrides of its fields but no file.
      known: From the config of the file to all fields that the command reads (`unset_group`), which
        overrides can set although the file leaves them out.
      positional: The flag whose value may also be given as a word without a flag.

    Returns:
      The parsed flags; `.config` is a locked ConfigDict with the overrides applied.

    Raises:
      UsageError: A flag is unknown, missing or has a bad value, or the config file cannot be
        loaded.
      SystemExit: With code 0, after printing the help for `--help`.
    """
    values = flags.FlagValues()
    values.set_gnu_getopt(True)
    loaded: ConfigDict | None = None
    settable = ConfigDict()
    required: list[str] = []
    fields: list[overrides.Override] = []
    try:
        _, *words = values.read_flags_from_files([f"rrope {command}", *argv])
        if config is not False:
            _define_config(values, config)
        define(values)
        if any(word in ("--help", "-help", "-h") for word in words):
            print(_help(command, summary, values, positional))
            raise SystemExit(0)
        loaded, required = _load(config, words)
        if loaded is not None:
            settable = known(loaded)
            config_file.complete(loaded, settable, overrides.keys(words))
            fields, words = overrides.take(words, loaded)
        words = _name_positional(words, positional, values)
        unnamed = values([f"rrope {command}", *words])[1:]
    except flags.UnrecognizedFlagError as error:
        raise UsageError(_unknown_flag(command, error.flagname, values)) from None
    except UsageError:
        raise
    except (flags.Error, ValueError) as error:  # absl raises ValueError for --noFLAG=VALUE
        raise UsageError(_bad_value(command, str(error), values)) from None
    except RecursionError:  # absl's spelling suggestions recurse once per letter of the name
        longest = max(argv, key=len)
        raise UsageError(f"unknown flag {longest[:60]}...; see rrope {command} --help") from None
    if unnamed:
        raise UsageError(f"unexpected argument {unnamed[0]!r}; see rrope {command} --help")
    if loaded is not None:
        config_file.override(loaded, fields, settable)
        config_file.check_required(loaded, required)
        values[_CONFIG].value = loaded.lock()
    _check_paths(values, loaded)
    return values


def one_flag_a_word(words: Sequence[str], flag: str) -> list[str]:
    """Turns `FLAG A B` into `FLAG=A FLAG=B`, as absl flags take one value each."""
    named: list[str] = []
    listing = False
    for word in words:
        if word == flag:
            listing = True
        elif listing and not word.startswith("-"):
            named.append(f"{flag}={word}")
        else:
            listing = listing and word.startswith(f"{flag}=")
            named.append(word)
    return named


def _name_positional(words: list[str], name: str | None, values: flags.FlagValues) -> list[str]:
    """Puts the positional flag's name before the first word that belongs to no flag."""
    takes_value = False
    for index, word in enumerate(words if name is not None else ()):
        if word == "--":
            break
        if word.startswith("-") and word != "-":
            flag = word.lstrip("-").removeprefix("no")
            known = word.lstrip("-") in values or flag in values
            boolean = flag in values and values[flag].boolean
            takes_value = "=" not in word and known and not boolean
        elif takes_value:
            takes_value = False
        else:
            return [*words[:index], f"--{name}={word}", *words[index + 1 :]]
    return words


def _define_config(values: flags.FlagValues, config: bool | ConfigDict) -> None:
    """Defines `--config`; `parse` replaces its path with the loaded config."""
    text = "config file; --config.KEY=VALUE overrides a field of it"
    if isinstance(config, ConfigDict):
        text = f"sets a field of the group(s) {', '.join(sorted(config))}"
    flags.DEFINE(_FileParser(), _CONFIG, None, text, flag_values=values)
    if config is True:
        flags.mark_flag_as_required(_CONFIG, flag_values=values)


class _FileParser(flags.ArgumentParser[str]):
    """Shows `--config` as taking a file in the help text."""

    def flag_type(self) -> str:
        return "file"


def _load(config: bool | ConfigDict, words: Sequence[str]) -> tuple[ConfigDict | None, list[str]]:
    """Returns the config (None if the command has none) and the fields that still need a value."""
    if isinstance(config, ConfigDict):
        for word in words:
            if _CONFIG_FLAG.fullmatch(word):
                raise UsageError(
                    f"{word}: this command takes no config file, only overrides of fields"
                )
        return config, []
    path = _config_path(words) if config else None
    if path is None:
        return None, []
    loaded = config_file.load(path)
    return loaded, list(config_file.loosen(loaded))


def _config_path(words: Sequence[str]) -> str | None:
    """Returns the path in the last `--config=PATH` or `--config PATH`."""
    path = None
    for index, word in enumerate(words):
        if word == "--":
            break
        if match := _CONFIG_FLAG.fullmatch(word):
            path = match["path"] if "=" in word else next(iter(words[index + 1 :]), path)
    return path


def _check_paths(values: flags.FlagValues, config: ConfigDict | None) -> None:
    """Raises UsageError if a flag or field that names a file points to what is not read there."""
    paths = [
        (f"--{name}", values[name].value, check)
        for name, check in _PATH_FLAGS.items()
        if name in values
    ]
    if config is not None:
        paths += [
            (f"{_CONFIG}.{key}", config_file.value_of(config, key), check)
            for key, check in (_PATH_FIELDS | _path_fields_of_sources(config)).items()
        ]
    for name, value, check in paths:
        for path in value if isinstance(value, list | tuple) else [value]:
            if isinstance(path, str):
                with refusing(name):
                    check(path)


def _path_fields_of_sources(config: ConfigDict) -> dict[str, Callable[[str], object]]:
    sources = config_file.value_of(config, _SOURCES)
    return {
        f"{_SOURCES}.{name}.{field}": _PATH_FIELDS[f"data.{field}"]
        for name in (sources if isinstance(sources, ConfigDict) else ())
        for field in _FIELDS_OF_SOURCES
    }


def _unknown_flag(command: str, name: str, values: flags.FlagValues) -> str:
    if name.startswith(f"{_CONFIG}."):
        return f"--{name} is given without --config=FILE"
    allowed = [f"--{flag}" for flag in values]
    return f"unknown flag --{name}; {choose_from(f'--{name}', allowed)} (rrope {command} --help)"


def _bad_value(command: str, message: str, values: flags.FlagValues) -> str:
    """Rewrites absl's message about a bad value as one line that includes the flag's type."""
    message = " ".join(message.split())
    match = re.match(r"flag --(?P<name>[\w.]+)=(?P<value>.*?): (?P<reason>.*)", message)
    if match is None or match["name"] not in values:
        return f"{message}; see rrope {command} --help"
    flag = values[match["name"]]
    if match["reason"].endswith("other than None."):  # absl's message for a required flag
        return f"--{flag.name} is missing: {flag.help}"
    reason = "neither True nor False" if flag.boolean else match["reason"]
    return f"--{flag.name}={match['value']}: {reason} (expected {flag.parser.flag_type()})"


def _help(
    command: str, summary: str, values: flags.FlagValues, positional: str | None = None
) -> str:
    word = "" if positional is None else f" {positional.upper()}"
    lines = [f"usage: rrope {command}{word} [FLAGS]", "", summary, "", "flags:"]
    for name in sorted(values):
        flag = values[name]
        kind = flag.parser.flag_type().upper()
        required = flag.default is None and bool(flag.validators)
        note = " (required)" if required else f" (default {flag.default_as_str})"
        note = "" if flag.default is None and not required else note
        shown = f"--[no]{name}" if flag.boolean else f"--{name}={kind}"
        if name == _CONFIG and not required:  # overrides only, no file
            shown, note = f"--{_CONFIG}.KEY=VALUE", ""
        lines.append(f"  {shown}\n      {flag.help}{note}")
    return "\n".join(lines)
