"""Flags and overrides of every command, up to where its work would begin."""

import contextlib
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict

from rrope_jax.cli.command_line import parse
from rrope_jax.cli.settings import from_config, unset_group
from rrope_jax.io.description import Description
from rrope_jax.jobs import analyze
from rrope_jax.jobs.convert import ConvertSetting
from rrope_jax.jobs.evaluate_setting import EvaluateSetting
from rrope_jax.jobs.posgen_setting import PosgenSetting
from rrope_jax.jobs.rope_fields import extend
from rrope_jax.jobs.train_setting import TrainSetting
from rrope_jax.planning import topology
from rrope_jax.rope import RopeSpec
from tests.fuzz import model_folders
from tests.fuzz.judging import Target, UnfitError

_WORDS = "words.json"
_CONFIGS = Path(__file__).parents[2] / "configs"


def _define(values: flags.FlagValues) -> None:
    flags.DEFINE_string("workdir", None, "folder", required=True, flag_values=values)
    flags.DEFINE_integer("max_tokens", 64, "how many", lower_bound=1, flag_values=values)
    flags.DEFINE_float("temperature", 0.0, "of the draws", flag_values=values)
    flags.DEFINE_bool("overwrite", False, "replace", flag_values=values)
    flags.DEFINE_enum("format", None, ["orbax", "hf", "gguf"], "of the result", flag_values=values)
    flags.DEFINE_string("topology", "cpu:2", "where", flag_values=values)
    flags.DEFINE_multi_string("compare", [], "folders", flag_values=values)


def _train(values: flags.FlagValues) -> None:
    setting = from_config(TrainSetting, values.config, "config")
    setting.program(setting.describe(elsewhere=True))


def _posgen(values: flags.FlagValues) -> None:
    setting = from_config(PosgenSetting, values.config, "config")
    setting.trainings(setting.program())


def _analyze(values: flags.FlagValues) -> None:
    analyze.plan(values.config)


def _evaluate(values: flags.FlagValues) -> None:
    extend(_DESCRIPTION, from_config(EvaluateSetting, values.config, "config").rope)


def _convert(values: flags.FlagValues) -> None:
    extend(_DESCRIPTION, from_config(ConvertSetting, values.config, "config").rope)


def _plan(values: flags.FlagValues) -> None:
    place = topology.parse(values.topology, num_slices=1)
    from_config(TrainSetting, values.config, "config").mesh.sizes(place.size)


_MODEL = model_folders.MODEL
_YARN = RopeSpec(head_dim=_MODEL.head_size, scaling="yarn", factor=2.0, original_context=32)
_DESCRIPTION = Description(_MODEL, RopeSpec(head_dim=_MODEL.head_size), 64)
_COMMANDS: dict[str, tuple[Callable[[flags.FlagValues], None], str | None]] = {
    "train": (_train, "tiny_from_scratch.py"),
    "extend": (_train, "llama.py"),
    "posgen": (_posgen, "posgen_quick.py"),
    "analyze": (_analyze, "analyze_llama2.py"),
    "evaluate": (_evaluate, "evaluate_smollm2.py"),
    "plan": (_plan, "tiny_from_scratch.py"),
    "convert": (_convert, None),
}
_OWN = ("--workdir=w", "--max_tokens=3", "--temperature=0.5", "--nooverwrite", "--topology=cpu:4")
_OVERRIDES = {
    "train": ("rope.scaling=none", "rope.theta=5e5", "model.num_kv_heads=1", "train.steps=10"),
    "extend": ("rope.scaling=yarn", "rope.factor=4", "train.length=64", "mesh.fsdp=2"),
    "posgen": ("methods=rope,yarn", "num_seeds=2", "rope.factor=8.0", "model.num_layers=1"),
    "analyze": ("rope.scaling=llama3", "train_length=128", "test_length=256", "near=2"),
    "evaluate": ("rope.scaling=linear", "rope.factor=2", "eval.perplexity.contexts=(64,128)"),
    "plan": ("model.d_model=64", "train.batch_size=8"),
    "convert": (
        "rope.scaling=longrope",
        "rope.short_factor=(1.0,2.0)",
        "rope.long_factor=(2.0,4.0)",
        "rope.original_context=32",
        "rope.factor=2",
        "rope.full_attention.theta=1e5",
    ),
}


def _seeds() -> Sequence[dict[str, Any]]:
    """A word is a list [name, value], so that either is changed alone."""
    trees = []
    for command, (_, file) in _COMMANDS.items():
        fixed = [] if file is None else [["--config", f"CONFIGS/{file}"]]
        own = [word.split("=", 1) for word in _OWN]
        given = [["--config." + key, value] for key, value in _pairs(_OVERRIDES[command])]
        every = [["--config." + key, value] for key, value in _fields(file)]
        trees += [
            {_WORDS: {"command": command, "words": [*fixed, *own, *words]}}
            for words in (given, every)
        ]
    return trees


def _pairs(words: Sequence[str]) -> list[list[str]]:
    return [word.split("=", 1) for word in words]


def _fields(file: str | None) -> list[list[Any]]:
    """All fields of a config that has a file, with their values."""
    if file is None:
        return [[f"rope.{name}", value] for name, value in _YARN.fields().items()]
    module: dict[str, Any] = {}
    exec(compile((_CONFIGS / file).read_text(), file, "exec"), module)
    return list(_flat(module["get_config"]()))


def _flat(config: ConfigDict, path: str = "") -> list[list[Any]]:
    found: list[list[Any]] = []
    for key in config:
        value = config[key]
        if isinstance(value, ConfigDict):
            found += _flat(value, f"{path}{key}.")
        else:
            found.append([path + key, list(value) if isinstance(value, tuple) else value])
    return found


def _word(entry: Any) -> str:
    parts = entry if isinstance(entry, list) else [entry]
    return "=".join(map(_spelled, parts)).replace("CONFIGS/", f"{_CONFIGS}/")


def _spelled(value: Any) -> str:
    if isinstance(value, list):
        return repr(tuple(value))
    return value if isinstance(value, str) else repr(value)


def _run(folder: Path) -> None:
    try:
        asked = json.loads((folder / _WORDS).read_bytes())
        check, file = _COMMANDS[asked["command"]]
        words = [_word(entry) for entry in asked["words"]]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        raise UnfitError from None
    if any("--flagfile" in word or "\0" in word for word in words):
        raise UnfitError  # no word of a command line has a NUL
    config = unset_group(ConvertSetting) if file is None else True
    with contextlib.redirect_stdout(io.StringIO()):
        try:
            values = parse(str(asked["command"]), "Tries words.", words, _define, config=config)
        except SystemExit as end:
            if end.code == 0:  # help
                return
            raise
        check(values)


TARGET = Target("flags", _seeds, _run)
