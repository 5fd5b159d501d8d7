"""Rope fields of one layer type, over those of a checkpoint, a new model and a method."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from flax import nnx
from ml_collections import ConfigDict

from rrope_jax.__main__ import main
from rrope_jax.cli.errors import UsageError
from rrope_jax.cli.settings import Fields, from_config, unset_group
from rrope_jax.io import pretrained
from rrope_jax.io.description import Description
from rrope_jax.jobs.convert import ConvertSetting
from rrope_jax.jobs.rope_fields import extend, new_spec, spec_of_method
from rrope_jax.jobs.rope_groups import merge
from rrope_jax.model import Decoder, ModelConfig
from rrope_jax.rope import RopeSpec
from tests.io import tiny

_FULL, _SLIDING = "full_attention", "sliding_attention"
_SIZES: dict[str, Any] = {
    "vocab_size": 8,
    "d_model": 64,
    "num_layers": 4,
    "num_heads": 4,
    "d_ff": 8,
}
LLAMA = ModelConfig(**_SIZES)
MIXED = ModelConfig(**_SIZES, layer_types=(_SLIDING, _FULL), sliding_window=4)
WINDOWED = ModelConfig(**_SIZES, layer_types=(_SLIDING,), sliding_window=4)
PLAIN = RopeSpec(head_dim=16, theta=1e6)
LOCAL = RopeSpec(head_dim=16, theta=1e4)
ONE = Description(MIXED, PLAIN, context=1024)
TWO = Description(MIXED, RopeSpec(head_dim=16, theta=1e6, sliding_attention=LOCAL), context=1024)
YARN = {"scaling": "yarn", "factor": 4.0}
YARN_SPEC = RopeSpec(head_dim=16, theta=1e6, original_context=1024, **YARN)


def _group(fields: dict[str, Any]) -> Fields:
    """What a command reads of a group in which flags have set these fields."""
    config = unset_group(ConvertSetting)
    config.rope.update(ConfigDict(fields))
    return from_config(ConvertSetting, config, "config").rope


@pytest.mark.parametrize(
    ("description", "fields", "full", "sliding"),
    [
        # one embedding: flat fields are those of all layers
        (ONE, YARN, YARN_SPEC, YARN_SPEC),
        (ONE, {_FULL: YARN}, YARN_SPEC, PLAIN),
        (ONE, {_SLIDING: YARN}, PLAIN, YARN_SPEC),
        (ONE, {_SLIDING: {"theta": 1e4}}, PLAIN, LOCAL),
        (ONE, {**YARN, _SLIDING: {"scaling": "none"}}, YARN_SPEC, PLAIN),
        (
            ONE,
            {"theta": 1e4, _FULL: {"resonance": True}},
            RopeSpec(head_dim=16, resonance=True),
            LOCAL,
        ),
        # two: flat fields are those of full-attention layers
        (TWO, YARN, YARN_SPEC, LOCAL),
        (TWO, {_FULL: YARN}, YARN_SPEC, LOCAL),
        (
            TWO,
            {**YARN, _SLIDING: {"scaling": "linear", "factor": 2.0}},
            YARN_SPEC,
            RopeSpec(head_dim=16, theta=1e4, scaling="linear", factor=2.0),
        ),
        (TWO, {_SLIDING: {"theta": 1e6}}, PLAIN, PLAIN),
        (TWO, {"factor": None, **YARN, _FULL: {"factor": 4.0}}, YARN_SPEC, LOCAL),
    ],
)
def test_layers_of_a_checkpoint(
    description: Description, fields: dict[str, Any], full: RopeSpec, sliding: RopeSpec
) -> None:
    found = extend(description, _group(fields))
    assert (found.rope.of(_FULL), found.rope.of(_SLIDING)) == (full, sliding)
    assert found.context == (4096 if full.scaling == "yarn" else 1024)


@pytest.mark.parametrize("description", [ONE, TWO])
def test_nothing_given_changes_nothing(description: Description) -> None:
    assert extend(description, _group({})) == description


def test_layers_are_extended_from_their_own_context() -> None:
    local = dataclasses.replace(LOCAL, scaling="yarn", factor=2.0, original_context=64)
    described = Description(MIXED, dataclasses.replace(PLAIN, sliding_attention=local), 1024)
    found = extend(described, _group({_SLIDING: {"factor": 8.0}}))
    assert found.rope.of(_SLIDING) == dataclasses.replace(local, factor=8.0)
    assert (found.rope.of(_FULL), found.context) == (PLAIN, 1024)


def test_windows_everywhere_are_one_embedding() -> None:
    windowed = Description(WINDOWED, PLAIN, context=1024)
    for fields in (YARN, {_SLIDING: YARN}):
        found = extend(windowed, _group(fields))
        assert (found.rope, found.context) == (YARN_SPEC, 4096)


def test_full_attention_everywhere_is_one_embedding() -> None:
    found = extend(Description(LLAMA, PLAIN, context=1024), _group({_FULL: YARN}))
    assert (found.rope, found.context) == (YARN_SPEC, 4096)


@pytest.mark.parametrize(
    ("model", "fields", "message"),
    [
        (
            LLAMA,
            {_SLIDING: {"theta": 1e4}},
            r"sliding_attention\.theta = 10000\.0: the model has no",
        ),
        (WINDOWED, {_FULL: YARN}, r"full_attention\.factor = 4\.0: the model has no full_att"),
        (
            MIXED,
            {"theta": 1e5, _FULL: {"theta": 1e4}},
            r"full_attention\.theta = 10000\.0 and config\.rope\.theta = 100000\.0 are values of",
        ),
        (
            MIXED,
            {_SLIDING: {"factor": 2.0}},
            r"config\.rope\.sliding_attention\.factor = 2\.0 has no effect.*attention\.scaling",
        ),
        (MIXED, {_SLIDING: {"theta": 0.5}}, r"config\.rope\.sliding_attention.*theta=0\.5 must be"),
        (MIXED, {_FULL: {"head_dim": 8}}, r"full_attention\.head_dim = 8: here it can only be 16"),
    ],
)
def test_wrong_fields(model: ModelConfig, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        extend(Description(model, PLAIN, context=1024), _group(fields))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({_SLIDING: {"thet": 1.0}}, r"sliding_attention\.thet = 1\.0.*did you mean 'theta'\?"),
        ({"sliding_atention": {}}, r"config\.rope\.sliding_atention.*mean 'sliding_attention'\?"),
        (
            {_SLIDING: {_SLIDING: {"theta": 1.0}}},
            r"sliding_attention\.sliding_attention = \{\.\.\.\}",
        ),
        (
            {_SLIDING: {_FULL: {}}},
            r"sliding_attention\.full_attention = \{\.\.\.\}: there is no such",
        ),
        ({_SLIDING: {"theta": "x"}}, r"sliding_attention\.theta = 'x': it has to be float"),
    ],
)
def test_unknown_fields(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        from_config(ConvertSetting, ConfigDict({"rope": fields}), "config")


@pytest.mark.parametrize(
    ("fields", "full", "sliding"),
    [
        ({"theta": 1e6}, PLAIN, PLAIN),
        ({"theta": 1e6, _SLIDING: {"theta": 1e4}}, PLAIN, LOCAL),
        (
            {"theta": 1e6, "original_context": 1024, **YARN, _SLIDING: {"scaling": "none"}},
            YARN_SPEC,
            PLAIN,
        ),
        ({"theta": 1e6, _FULL: {**YARN, "original_context": 1024}}, YARN_SPEC, PLAIN),
    ],
)
def test_layers_of_a_new_model(fields: dict[str, Any], full: RopeSpec, sliding: RopeSpec) -> None:
    found = new_spec(_group(fields), MIXED)
    assert (found.of(_FULL), found.of(_SLIDING)) == (full, sliding)


def test_a_new_model_ignores_no_field() -> None:
    with pytest.raises(
        UsageError, match=r"config\.rope\.sliding_attention.*factor=2\.0 has no eff"
    ):
        new_spec(_group({_SLIDING: {"scaling": "none", "factor": 2.0}}), MIXED)
    with pytest.raises(UsageError, match="the model has no sliding_attention layers"):
        new_spec(_group({_SLIDING: {"theta": 2.0}}), LLAMA)


def test_a_method_is_that_of_the_layers_that_name_no_other() -> None:
    shared = {"theta": 1e6, "factor": 4.0, "original_context": 1024}
    local = {**shared, _SLIDING: {"theta": 1e4, "scaling": "none", "resonance": False}}
    found = spec_of_method(_group(local), "config.rope", "resonance_yarn", head_dim=16)
    assert found.of(_FULL) == RopeSpec(**YARN_SPEC.fields() | {"resonance": True})
    assert found.of(_SLIDING) == LOCAL
    other_base = spec_of_method(
        _group({**shared, _SLIDING: {"theta": 1e4}}), "config.rope", "yarn", head_dim=16
    )
    assert other_base.of(_SLIDING) == RopeSpec(**YARN_SPEC.fields() | {"theta": 1e4})


def test_groups_are_merged_field_by_field() -> None:
    found = merge({"theta": 1.0, _FULL: {"factor": 2.0, "theta": 3.0}}, {_FULL: {"factor": 4.0}})
    assert found == {"theta": 1.0, _FULL: {"factor": 4.0, "theta": 3.0}}
    assert merge({"theta": 1.0}, {"factor": 2.0}) == {"theta": 1.0, "factor": 2.0}


_FLAG = "--config.rope.sliding_attention"


def test_flags_reach_the_layers_that_they_name(tmp_path: Path) -> None:
    decoder = Decoder(MIXED, PLAIN, rngs=nnx.Rngs(0))
    saved = tiny.save(decoder, tmp_path / "model", "orbax")
    words = ["convert", f"--from={saved}", "--format=orbax"]
    flags = ["--config.rope.full_attention.scaling=yarn", "--config.rope.full_attention.factor=4"]
    assert main([*words, f"--to={tmp_path / 'one'}", *flags]) == 0
    found = pretrained.describe(tmp_path / "one").rope
    expected = dataclasses.replace(YARN_SPEC, original_context=tiny.CONTEXT)
    assert (found.of(_FULL), found.of(_SLIDING)) == (expected, PLAIN)
    assert main([*words, f"--to={tmp_path / 'two'}", f"{_FLAG}.theta=1e4"]) == 0
    found = pretrained.describe(tmp_path / "two").rope
    assert (found.of(_FULL), found.of(_SLIDING)) == (PLAIN, LOCAL)


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        (f"{_FLAG}.thet=1", "config.rope.sliding_attention has no key 'thet'"),
        (f"{_FLAG}=1", "config.rope.sliding_attention is a group"),
        (f"{_FLAG}.full_attention.theta=1", "no key 'full_attention'"),
        ("--config.rope.sliding.theta=1", "config.rope has no key 'sliding'"),
    ],
)
def test_unknown_flags(
    flag: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["convert", f"--from={tmp_path}", f"--to={tmp_path / 'x'}", flag]) == 2
    assert message in capsys.readouterr().err
