"""Fields that a command reads and a config file leaves out are flags, too."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from absl import flags
from ml_collections import ConfigDict

from rrope_jax.cli.command_line import parse
from rrope_jax.cli.errors import UsageError
from rrope_jax.cli.settings import INLINE, Fields, SomeOf, from_config, unset_group

FILE = """
from ml_collections import ConfigDict
def get_config():
    return ConfigDict({"steps": 3, "model": {"width": 4}, "nothing": None})
"""


@dataclass(frozen=True)
class Model:
    width: int
    kinds: tuple[str, ...] = ("a",)
    window: int | None = None
    biases: bool = False
    scale: float = 1.0
    rule: bool | str = False
    inner: "Model | None" = None


@dataclass(frozen=True)
class Mesh:
    size: int = 1
    rule: Literal["one", "two"] = "one"


@dataclass(frozen=True)
class Run:
    steps: int
    seed: int = 0


@dataclass(frozen=True)
class Setting:
    run: Annotated[Run, INLINE]
    model: Annotated[Fields, SomeOf(Model)]
    mesh: Mesh = Mesh()
    nothing: Any = None


def _no_flags(values: flags.FlagValues) -> None:
    pass


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "config.py"
    path.write_text(FILE)
    return path


def _parse(file: Path, *words: str) -> ConfigDict:
    known = unset_group(Setting)
    parsed: ConfigDict = parse(
        "job", "", [f"--config={file}", *words], _no_flags, known=lambda config: known
    ).config
    return parsed


@pytest.mark.parametrize(
    ("words", "key", "expected"),
    [
        (["--config.model.kinds=a,b"], "model.kinds", ("a", "b")),
        (["--config.model.kinds=('a', 'b')"], "model.kinds", ("a", "b")),
        (["--config.model.kinds=['a', 'b']"], "model.kinds", ("a", "b")),
        (["--config.model.kinds=a", "--config.model.kinds=b"], "model.kinds", ("b",)),
        (["--config.model.kinds=a"], "model.kinds", ("a",)),
        (["--config.model.window=512"], "model.window", 512),
        (["--config.model.window=None"], "model.window", None),
        (["--config.model.biases"], "model.biases", True),
        (["--noconfig.model.biases"], "model.biases", False),
        (["--config.model.biases", "--config.steps=1"], "model.biases", True),
        (["--config.model.scale=2"], "model.scale", 2.0),
        (["--config.model.rule"], "model.rule", True),
        (["--noconfig.model.rule"], "model.rule", False),
        (["--config.model.rule=true"], "model.rule", True),
        (["--config.model.rule=odd"], "model.rule", "odd"),
        (["--config.model.rule", "--config.model.rule=odd"], "model.rule", "odd"),
        (["--config.mesh.size=2"], "mesh.size", 2),
        (["--config.mesh.rule=two"], "mesh.rule", "two"),
        (["--config.seed=7"], "seed", 7),
        (["--config.seed", "7"], "seed", 7),
    ],
)
def test_a_flag_sets_what_the_file_leaves_out(
    file: Path, words: Sequence[str], key: str, expected: object
) -> None:
    config: Any = _parse(file, *words)
    for name in key.split("."):
        config = config[name]
    assert config == expected
    assert type(config) is type(expected)


def test_a_switch_in_the_file_may_become_a_name(file: Path) -> None:
    file.write_text(FILE.replace('{"width": 4}', '{"width": 4, "rule": True}'))
    assert _parse(file).model.rule is True
    assert _parse(file, "--config.model.rule=odd").model.rule == "odd"


def test_only_given_fields_are_added(file: Path) -> None:
    config = _parse(file, "--config.mesh.size=2").to_dict()
    assert config == {"steps": 3, "model": {"width": 4}, "nothing": None, "mesh": {"size": 2}}
    assert _parse(file).to_dict() == {"steps": 3, "model": {"width": 4}, "nothing": None}


def test_the_setting_is_read_from_it(file: Path) -> None:
    config = _parse(file, "--config.model.kinds=b", "--config.seed=5", "--config.mesh.size=2")
    setting = from_config(Setting, config, "config")
    assert setting == Setting(Run(3, 5), {"width": 4, "kinds": ("b",)}, Mesh(2))


@pytest.mark.parametrize(
    ("word", "parts"),
    [
        (
            "--config.model.kind=a",
            ["config.model has no key 'kind'", "did you mean 'kinds'?", "biases, kinds"],
        ),
        ("--config.mesh.sizes=2", ["config.mesh has no key 'sizes'", "did you mean 'size'?"]),
        ("--config.models.width=2", ["config has no key 'models'", "did you mean 'model'?"]),
        ("--config.model.window=x", ["--config.model.window=x", "expected int"]),
        ("--config.mesh=2", ["config has no key 'mesh'"]),
        ("--config.nothing.x=2", ["config.nothing is a value"]),
        ("--config.model.window.x=2", ["config.model has no key 'window'"]),
        ("--config.model.inner.width=2", ["config.model has no key 'inner'"]),
    ],
)
def test_other_keys_are_refused(file: Path, word: str, parts: Sequence[str]) -> None:
    with pytest.raises(UsageError) as caught:
        _parse(file, word)
    assert [part for part in parts if part not in str(caught.value)] == []
