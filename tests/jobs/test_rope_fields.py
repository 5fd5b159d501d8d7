"""Rope fields of a command over those of a checkpoint."""

import dataclasses
import json
import logging
from pathlib import Path
from typing import Any

import pytest
from ml_collections import ConfigDict

from rrope_jax.cli.errors import UsageError
from rrope_jax.cli.settings import Fields, from_config, unset_group
from rrope_jax.io import pretrained
from rrope_jax.io.description import Description
from rrope_jax.jobs.convert import ConvertSetting
from rrope_jax.jobs.rope_fields import extend, original_context
from rrope_jax.model import ModelConfig
from rrope_jax.rope import RopeSpec, frequencies, query_temperature
from tests.io import tiny

MODEL = ModelConfig(vocab_size=8, d_model=64, num_layers=1, num_heads=4, d_ff=8)
PLAIN = Description(MODEL, RopeSpec(head_dim=16, theta=1e5), context=8192)
YARN = Description(
    MODEL,
    RopeSpec(head_dim=16, scaling="yarn", factor=4.0, original_context=2048, attention_factor=1.5),
    context=8192,
)


def _group(**fields: Any) -> Fields:
    group = unset_group(ConvertSetting).rope
    group.update(fields)
    return _read(group)


def _read(group: ConfigDict) -> Fields:
    return from_config(ConvertSetting, ConfigDict({"rope": group}), "config").rope


@pytest.mark.parametrize("group", [ConfigDict(), unset_group(ConvertSetting).rope])
@pytest.mark.parametrize("description", [PLAIN, YARN])
def test_nothing_given_changes_nothing(description: Description, group: ConfigDict) -> None:
    assert extend(description, _read(group)) == description


def test_extension_takes_the_checkpoints_context() -> None:
    found = extend(PLAIN, _group(scaling="yarn", factor=4.0, resonance=True))
    assert found.rope == RopeSpec(
        head_dim=16,
        theta=1e5,
        scaling="yarn",
        factor=4.0,
        original_context=8192,
        resonance=True,
    )
    assert found.context == 32768


def test_a_position_temperature_outlives_the_scaling_whose_context_it_counts_in() -> None:
    spec = dataclasses.replace(YARN.rope, llama_4_scaling_beta=0.1)
    found = extend(dataclasses.replace(YARN, rope=spec), _group(scaling="nope")).rope
    assert (found.scaling, found.temperature_context) == ("nope", 2048)
    assert query_temperature(found, 5000) == query_temperature(spec, 5000)


def test_original_context_can_be_given() -> None:
    found = extend(PLAIN, _group(scaling="yarn", factor=4.0, original_context=1024))
    assert (found.rope.original_context, found.context) == (1024, 4096)


@pytest.mark.parametrize(("scaling", "context"), [("linear", 16384), ("ntk", 16384)])
def test_scalings_without_an_original_context_extend_it_too(scaling: str, context: int) -> None:
    assert extend(PLAIN, _group(scaling=scaling, factor=2.0)).context == context


def test_extended_checkpoint_is_extended_from_where_it_was_trained() -> None:
    assert extend(YARN, _group(factor=8.0)).context == 16384
    linear = extend(PLAIN, _group(scaling="linear", factor=2.0))
    assert extend(linear, _group(scaling="yarn", factor=4.0)).rope.original_context == 8192


def test_other_fields_are_kept() -> None:
    found = extend(YARN, _group(resonance=True))
    assert found.rope == RopeSpec(
        head_dim=16,
        scaling="yarn",
        factor=4.0,
        original_context=2048,
        attention_factor=1.5,
        resonance=True,
    )
    assert found.context == 8192


def test_temperature_belongs_to_its_scaling() -> None:
    assert extend(YARN, _group(scaling="ntk")).rope.attention_factor is None
    assert extend(YARN, _group(scaling="ntk", attention_factor=1.2)).rope.attention_factor == 1.2


def test_extension_can_be_taken_back() -> None:
    found = extend(YARN, _group(scaling="none"))
    assert (found.rope, found.context) == (RopeSpec(head_dim=16), 2048)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"scaling": "yarn"}, "factor is not set"),
        ({"scaling": "yran", "factor": 2.0}, "scaling='yran' is unknown"),
        ({"factor": 2.0}, "factor = 2.0 has no effect.*'none'; set config.rope.scaling too"),
        ({"head_dim": 8}, "head_dim = 8: here it can only be 16"),
        ({"theta": 0.5}, "theta=0.5 must be"),
    ],
)
def test_wrong_fields(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        extend(PLAIN, _group(**fields))


def test_unknown_field() -> None:
    with pytest.raises(UsageError, match=r"config\.rope\.base = 2\.0: there is no such key"):
        _read(ConfigDict({"base": 2.0}))


# --- what was made for one extension -------------------------------------------------------------


@pytest.mark.parametrize(
    "fields", [{"factor": 16.0}, {"original_context": 1024}, {"mscale": 1.0, "mscale_all_dim": 0.5}]
)
def test_attention_factor_goes_with_what_it_was_made_for(
    fields: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    own = dataclasses.replace(YARN.rope, attention_factor=None)
    explicit = dataclasses.replace(own, attention_factor=frequencies(own).attention_factor)
    with caplog.at_level(logging.WARNING):
        found = extend(dataclasses.replace(YARN, rope=explicit), _group(**fields)).rope
    assert found == dataclasses.replace(own, **fields)
    assert caplog.text == ""


def test_another_attention_factor_is_not_dropped_without_a_word(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING):
        assert extend(YARN, _group(factor=16.0)).rope.attention_factor is None
    assert "config.rope.attention_factor is not set: the checkpoint's 1.5" in caplog.text
    assert extend(YARN, _group(factor=16.0, attention_factor=1.2)).rope.attention_factor == 1.2
    assert extend(YARN, _group(factor=4.0, theta=1e6)).rope.attention_factor == 1.5


def test_fields_of_a_scaling_go_with_it() -> None:
    ramp = RopeSpec(
        head_dim=16,
        scaling="yarn",
        factor=4.0,
        original_context=2048,
        beta_fast=8.0,
        beta_slow=2.0,
        truncate=False,
        mscale=0.7,
        mscale_all_dim=0.6,
    )
    found = extend(dataclasses.replace(YARN, rope=ramp), _group(scaling="ntk_by_parts")).rope
    assert found == RopeSpec(head_dim=16, scaling="ntk_by_parts", factor=4.0, original_context=2048)


LISTS = RopeSpec(
    head_dim=16,
    scaling="longrope",
    factor=4.0,
    original_context=2048,
    short_factor=(1.0,) * 8,
    long_factor=(2.0,) * 8,
)


def test_lists_of_factors_belong_to_their_extension() -> None:
    listed = dataclasses.replace(YARN, rope=LISTS)
    for name, value in (("factor", 8.0), ("original_context", 4096)):
        with pytest.raises(UsageError, match=rf"rope\.{name} = {value}: .* long_factor are made"):
            extend(listed, _group(**{name: value}))
    given = _group(factor=8.0, short_factor=(1.0,) * 8, long_factor=(3.0,) * 8)
    assert extend(listed, given).rope.long_factor == (3.0,) * 8
    with pytest.raises(UsageError, match="factor is not set"):
        extend(listed, _group(scaling="yarn"))
    assert extend(listed, _group(scaling="yarn", factor=2.0)).context == 4096


def test_replacing_a_scaling_is_said(caplog: pytest.LogCaptureFixture) -> None:
    llama3 = RopeSpec(head_dim=16, scaling="llama3", factor=8.0, original_context=8192)
    with caplog.at_level(logging.WARNING):
        extend(Description(MODEL, llama3, context=131072), _group(scaling="yarn", factor=4.0))
    assert "replaces the checkpoint's 'llama3' by 8; 8192 tokens are extended, not 131072" in (
        caplog.text
    )


# --- the original context ------------------------------------------------------------------------

_KEY = "original_max_position_embeddings"

LINEAR = RopeSpec(head_dim=16, scaling="linear", factor=4.0)
EQUAL = dataclasses.replace(LISTS, factor=1.0, long_factor=(1.0,) * 8)


@pytest.mark.parametrize(
    ("spec", "context", "named", "expected"),
    [
        (PLAIN.rope, 8192, None, 8192),
        (PLAIN.rope, 8192, 4096, 4096),
        (YARN.rope, 8192, None, 2048),
        (LINEAR, 8192, None, None),
        (LINEAR, 4096, 4096, 4096),
        (dataclasses.replace(LINEAR, scaling="ntk"), 8192, None, None),
        (LISTS, 8192, None, 2048),
        (LISTS, 2048, None, 2048),
        (EQUAL, 8192, None, 2048),
        (EQUAL, 2048, None, None),
        (EQUAL, 2048, 1024, 1024),
    ],
)
def test_original_context(
    spec: RopeSpec, context: int, named: int | None, expected: int | None
) -> None:
    assert original_context(Description(MODEL, spec, context, original_context=named)) == expected


def test_it_is_asked_for_where_no_key_has_it() -> None:
    linear = Description(MODEL, LINEAR, context=16384)
    for fields in ({"scaling": "yarn"}, {"factor": 8.0}, {"scaling": "none"}):
        with pytest.raises(UsageError, match=r"^config\.rope\.original_context is not set, and"):
            extend(linear, _group(**fields))
    found = extend(linear, _group(scaling="yarn", factor=2.0, original_context=4096))
    assert (found.rope.original_context, found.context) == (4096, 8192)
    assert extend(linear, _group(resonance=True)).context == 16384  # nothing needs it


@pytest.mark.parametrize(
    "keys",
    [
        {"original_max_position_embeddings": 64},
        {"rope_scaling": {"rope_type": "linear", "factor": 4.0, _KEY: 64}},
        {"max_position_embeddings": 64, "max_sequence_length": 256},
    ],
)
def test_a_folder_names_it(keys: dict[str, Any], tmp_path: Path) -> None:
    linear = RopeSpec(head_dim=tiny.MODEL.head_size, scaling="linear", factor=4.0)
    folder = tiny.save(tiny.decoder(linear), tmp_path / "model", "hf")
    config = json.loads((folder / "config.json").read_text())
    config |= {"max_position_embeddings": 256} | keys
    if "rope_scaling" in keys:
        del config["rope_parameters"]
    (folder / "config.json").write_text(json.dumps(config))
    found = extend(pretrained.describe(folder), _group(scaling="yarn", factor=2.0))
    assert (found.rope.original_context, found.context) == (64, 128)


@pytest.mark.parametrize("target_format", ["orbax", "hf", "gguf"])
@pytest.mark.parametrize(
    "spec",
    [
        {"scaling": "linear", "factor": 4.0},
        {"scaling": "llama3", "factor": 8.0, "original_context": 40},
        {"scaling": "yarn", "factor": 4.0, "original_context": 40},
    ],
    ids=lambda spec: spec["scaling"],
)
def test_every_format_keeps_it(spec: dict[str, Any], target_format: str, tmp_path: Path) -> None:
    decoder = tiny.decoder(RopeSpec(head_dim=tiny.MODEL.head_size, **spec))
    saved = tiny.save(decoder, tmp_path / "model", target_format, original_context=40)
    assert original_context(pretrained.describe(saved)) == 40


def test_a_rule_of_resonance_is_a_name() -> None:
    rational = extend(PLAIN, _group(resonance="rational", resonance_period=64)).rope
    assert (rational.resonance, rational.resonance_period) == ("rational", 64)
    listed = dataclasses.replace(PLAIN, rope=rational)
    # another rule has no use for the old one's period
    assert extend(listed, _group(resonance=True)).rope.resonance_period is None
    assert extend(listed, _group(theta=500.0)).rope.resonance_period == 64
    with pytest.raises(UsageError, match=r"config.rope.resonance_period = 9 has no effect with"):
        extend(PLAIN, _group(resonance_period=9))
    with pytest.raises(UsageError, match=r"resonance_period is not set, but resonance='rational'"):
        extend(PLAIN, _group(resonance="rational"))
