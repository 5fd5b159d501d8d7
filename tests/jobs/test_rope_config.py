"""Rope fields of a command over those of a checkpoint."""

from typing import Any

import pytest
from ml_collections import ConfigDict

from rrope_jax.io.description import Description
from rrope_jax.jobs.configuration import UsageError
from rrope_jax.jobs.rope_config import extend, unset_group
from rrope_jax.model import ModelConfig
from rrope_jax.rope import RopeSpec

MODEL = ModelConfig(vocab_size=8, d_model=64, num_layers=1, num_heads=4, d_ff=8)
PLAIN = Description(MODEL, RopeSpec(head_dim=16, theta=1e5), context=8192)
YARN = Description(
    MODEL,
    RopeSpec(head_dim=16, scaling="yarn", factor=4.0, original_context=2048, attention_factor=1.5),
    context=8192,
)


def _group(**fields: Any) -> ConfigDict:
    group = unset_group()
    group.update(fields)
    return group


@pytest.mark.parametrize("group", [None, ConfigDict(), unset_group()])
@pytest.mark.parametrize("description", [PLAIN, YARN])
def test_nothing_given_changes_nothing(description: Description, group: ConfigDict | None) -> None:
    assert extend(description, group) == description


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
        extend(PLAIN, ConfigDict({"base": 2.0}))
