"""Every field of every config in configs/ is a flag: with its own value, and with None."""

import dataclasses
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from absl import flags
from ml_collections import ConfigDict

from rrope_jax.cli.command_line import parse
from rrope_jax.cli.errors import UsageError
from rrope_jax.cli.settings import from_config
from rrope_jax.data.pipeline import DataConfig
from rrope_jax.evaluation.perplexity import PerplexitySetting
from rrope_jax.jobs.train_setting import CheckpointConfig
from rrope_jax.sharding import MeshConfig
from rrope_jax.train.config import TrainConfig
from rrope_jax.train.heldout import HeldoutConfig

ROOT = Path(__file__).parents[2]
CONFIGS = sorted(path.name for path in (ROOT / "configs").glob("*.py"))
TRAINING = "llama.py"
GROUPS: dict[str, type[Any]] = {
    "checkpoint": CheckpointConfig,
    "data": DataConfig,
    "train": TrainConfig,
    "mesh": MeshConfig,
    "eval": HeldoutConfig,
}


def _no_flags(values: flags.FlagValues) -> None:
    pass


def _parse(name: str, *words: str) -> ConfigDict:
    config = ROOT / "configs" / name
    parsed: ConfigDict = parse("any", "", [f"--config={config}", *words], _no_flags).config
    return parsed


def _fields(group: ConfigDict, path: str = "") -> Iterator[tuple[str, Any]]:
    for key in group:
        if isinstance(group[key], ConfigDict):
            yield from _fields(group[key], f"{path}{key}.")
        else:
            yield f"{path}{key}", group[key]


def _flags(key: str, value: Any) -> Iterator[list[str]]:
    """The ways in which a value is given."""
    flag = f"--config.{key}"
    if isinstance(value, bool):
        yield [flag if value else f"--noconfig.{key}"]
    if isinstance(value, tuple):
        yield [f"{flag}={','.join(map(str, value))}"]
        yield [f"{flag}=other", f"{flag}={value}"]  # the last one wins
        yield [flag, str(list(value))]
    if not isinstance(value, bool) and value is not None:  # a switch takes no word after it
        yield [flag, str(value)]
    yield [f"{flag}={value}"]


def test_there_are_configs() -> None:
    assert TRAINING in CONFIGS
    assert len(CONFIGS) >= 9


@pytest.mark.parametrize("name", CONFIGS)
def test_own_value_of_every_field_changes_nothing(name: str) -> None:
    config = _parse(name)
    fields = dict(_fields(config))
    assert fields
    wrong = [
        words
        for key, value in fields.items()
        for words in _flags(key, value)
        if _parse(name, *words).to_dict() != config.to_dict()
    ]
    assert wrong == []


@pytest.mark.parametrize("name", CONFIGS)
def test_every_field_can_be_none(name: str) -> None:
    fields = dict(_fields(_parse(name)))
    for key in fields:
        changed = dict(_fields(_parse(name, f"--config.{key}=None")))
        assert changed == fields | {key: None}


@pytest.mark.parametrize("group", GROUPS)
def test_none_is_none_in_the_dataclass_or_its_default(group: str) -> None:
    """Where None is allowed it arrives; elsewhere it is the default, or refused by name."""
    cls = GROUPS[group]
    hints = typing.get_type_hints(cls)
    allowed = 0
    for field in dataclasses.fields(cls):
        if field.name not in _parse(TRAINING)[group] or field.name == "positions":
            continue
        key = f"config.{group}.{field.name}"
        config = _parse(TRAINING, f"--{key}=None")[group]
        if field.default is dataclasses.MISSING:
            with pytest.raises(UsageError, match=f"{key} has no value"):
                from_config(cls, config, f"config.{group}")
            continue
        made = getattr(from_config(cls, config, f"config.{group}"), field.name)
        if type(None) in typing.get_args(hints[field.name]):
            assert made is None
            allowed += 1
        else:
            assert made == field.default
    assert allowed or group in ("mesh", "data")


@pytest.mark.parametrize(
    ("word", "heldout"),
    [
        ("a.txt,b.txt", ("a.txt", "b.txt")),
        ("deep/a.txt,deep/b.txt", ("deep/a.txt", "deep/b.txt")),
        ("r.jsonl:5,r.jsonl:6", ("r.jsonl:5", "r.jsonl:6")),
        ("('*',)", ("*",)),
        ("*", ("*",)),
        ("", ()),
        ("()", ()),
        ("None", ()),
    ],
)
@pytest.mark.parametrize("name", ["tiny_from_scratch.py", TRAINING])
def test_names_to_hold_out(name: str, word: str, heldout: tuple[str, ...]) -> None:
    config = _parse(name, f"--config.data.heldout={word}", "--config.data.source=x")
    assert from_config(DataConfig, config.data, "config.data").heldout == heldout


def test_numbers_of_a_section() -> None:
    config = _parse("evaluate_smollm2.py", "--config.eval.perplexity.contexts=2048")
    group = config.eval.perplexity
    setting = from_config(PerplexitySetting, group, "config.eval.perplexity")
    assert setting.contexts == (2048,)
