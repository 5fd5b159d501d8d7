"""From ConfigDicts to dataclasses: what is accepted, and what a user reads otherwise."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import pytest
from ml_collections import ConfigDict, config_dict

from rrope_jax.cli.errors import UsageError
from rrope_jax.cli.settings import INLINE, Fields, SomeOf, from_config


@dataclass(frozen=True)
class Rope:
    head_dim: int
    theta: float = 10000.0
    scaling: Literal["none", "yarn"] = "none"
    resonance: bool = False
    factors: tuple[float, ...] | None = None
    original_context: int | None = None
    pair: tuple[int, str] = (1, "a")
    cached: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        if self.theta <= 1:
            raise ValueError(f"theta={self.theta}: must be above 1")


@dataclass(frozen=True)
class Model:
    layers: int
    rope: Rope = Rope(head_dim=8)


class TestFromConfig:
    def test_values_and_defaults(self) -> None:
        config = ConfigDict({"head_dim": 64, "theta": 5e5, "resonance": True})
        assert from_config(Rope, config, "config.rope") == Rope(64, 5e5, resonance=True)

    def test_none_is_the_default(self) -> None:
        config = ConfigDict({"head_dim": 64, "theta": None, "scaling": None})
        assert from_config(Rope, config, "config.rope") == Rope(64)

    def test_int_for_float_becomes_a_float(self) -> None:
        rope = from_config(Rope, ConfigDict({"head_dim": 64, "theta": 500}), "config.rope")
        assert type(rope.theta) is float

    def test_list_for_tuple_becomes_a_hashable_tuple(self) -> None:
        config = ConfigDict({"head_dim": 64, "factors": [1, 2.5], "pair": [3, "b"]})
        rope = from_config(Rope, config, "config.rope")
        assert rope.factors == (1.0, 2.5)
        assert rope.pair == (3, "b")
        assert isinstance(hash(rope), int)

    def test_group_for_a_nested_dataclass(self) -> None:
        config = ConfigDict({"layers": 2, "rope": {"head_dim": 16, "scaling": "yarn"}})
        assert from_config(Model, config, "config.model") == Model(2, Rope(16, scaling="yarn"))

    def test_fixed_fields(self) -> None:
        config = ConfigDict({"theta": 5.0, "head_dim": config_dict.placeholder(int)})
        assert from_config(Rope, config, "config.rope", head_dim=32) == Rope(32, 5.0)
        config.head_dim = 32
        assert from_config(Rope, config, "config.rope", head_dim=32) == Rope(32, 5.0)

    @pytest.mark.parametrize(
        ("values", "parts"),
        [
            ({"head_dim": 64, "thet": 1.0}, ["config.rope.thet = 1.0", "did you mean 'theta'?"]),
            ({"head_dim": 64, "cached": 1}, ["config.rope.cached = 1", "no such key"]),
            ({"head_dim": 64, "x": {"y": 1}}, ["config.rope.x = {...}", "no such key"]),
            ({}, ["config.rope.head_dim has no value", "--config.rope.head_dim=VALUE"]),
            ({"head_dim": None}, ["config.rope.head_dim has no value"]),
            ({"head_dim": 64.0}, ["config.rope.head_dim = 64.0", "int"]),
            ({"head_dim": True}, ["config.rope.head_dim = True", "int"]),
            ({"head_dim": 64, "theta": "x"}, ["config.rope.theta = 'x'", "float"]),
            ({"head_dim": 64, "theta": True}, ["config.rope.theta = True", "float"]),
            ({"head_dim": 64, "resonance": 1}, ["config.rope.resonance = 1", "bool"]),
            ({"head_dim": 64, "scaling": "yran"}, ["'yran'", "'none' or 'yarn'"]),
            ({"head_dim": 64, "factors": 2.0}, ["config.rope.factors", "sequence of float"]),
            ({"head_dim": 64, "factors": ("a",)}, ["config.rope.factors", "sequence of float"]),
            ({"head_dim": 64, "pair": (1, "a", "b")}, ["config.rope.pair", "2: int, str"]),
            ({"head_dim": 64, "original_context": "x"}, ["original_context = 'x'", "int or None"]),
            ({"head_dim": 64, "theta": 0.5}, ["config.rope: theta=0.5: must be above 1"]),
        ],
    )
    def test_bad_values(self, values: dict[str, object], parts: Sequence[str]) -> None:
        with pytest.raises(UsageError) as caught:
            from_config(Rope, ConfigDict(values), "config.rope")
        message = str(caught.value)
        assert [part for part in parts if part not in message] == []

    def test_path_of_a_nested_error(self) -> None:
        config = ConfigDict({"layers": 2, "rope": {"head_dim": 16, "theta": 0.0}})
        with pytest.raises(UsageError, match=r"^config\.model\.rope: theta=0\.0"):
            from_config(Model, config, "config.model")

    def test_value_for_a_group(self) -> None:
        with pytest.raises(UsageError, match=r"config\.model\.rope = 3: it has to be a group"):
            from_config(Model, ConfigDict({"layers": 2, "rope": 3}), "config.model")

    def test_contradiction_of_a_fixed_field(self) -> None:
        with pytest.raises(UsageError, match=r"config\.rope\.head_dim = 64: .* only be 32"):
            from_config(Rope, ConfigDict({"head_dim": 64}), "config.rope", head_dim=32)


@dataclass(frozen=True)
class Sizes:
    layers: int
    heads: int = 1


@dataclass(frozen=True)
class Preset:
    preset: str | None = None


@dataclass(frozen=True, kw_only=True)
class Setting:
    name: str
    data: Annotated[Sizes, INLINE]
    rope: Annotated[Fields, SomeOf(Rope, Preset)] = field(default_factory=dict)
    other: Rope


WHOLE: dict[str, Any] = {"name": "a", "layers": 2, "other": {"head_dim": 4}}


class TestGroups:
    """A command's setting: some fields of a group, and dataclasses beside the groups."""

    def test_whole(self) -> None:
        values = WHOLE | {"rope": {"theta": 5, "factors": [1], "preset": "x", "pair": None}}
        setting = from_config(Setting, ConfigDict(values), "config")
        assert setting.data == Sizes(2)
        assert setting.other == Rope(4)
        assert setting.rope == {"theta": 5.0, "factors": (1.0,), "preset": "x"}
        assert type(setting.rope["theta"]) is float

    @pytest.mark.parametrize(
        ("changes", "parts"),
        [
            ({"rope": {"thet": 1.0}}, ["config.rope.thet = 1.0", "did you mean 'theta'?"]),
            ({"rope": {"theta": "x"}}, ["config.rope.theta = 'x'", "float"]),
            ({"rope": 3}, ["config.rope = 3: it has to be a group of fields"]),
            ({"rope": None}, ["config.rope = None: it has to be a group of fields"]),
            (
                {"layer": 3},
                ["config.layer = 3", "did you mean 'layers'?", "heads, layers, name, other"],
            ),
            ({"data": {"layers": 3}}, ["config.data = {...}: there is no such key"]),
            ({"layers": "x"}, ["config.layers = 'x': it has to be int"]),
            ({"layers": None}, ["config.layers has no value", "--config.layers=VALUE"]),
            ({"other": None}, ["config.other is missing: it has to be a group of fields"]),
            ({"other": {"head_dim": 4, "theta": 0.5}}, ["config.other: theta=0.5: must be above"]),
        ],
    )
    def test_bad_values(self, changes: dict[str, Any], parts: Sequence[str]) -> None:
        with pytest.raises(UsageError) as caught:
            from_config(Setting, ConfigDict(WHOLE | changes), "config")
        message = str(caught.value)
        assert [part for part in parts if part not in message] == []
