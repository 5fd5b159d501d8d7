"""The names of methods."""

import pytest

from rrope_jax.rope import SCALINGS, RopeSpec, methods
from rrope_jax.rope.methods import method_name, parse_method

_PAPER = ("rope", "resonance_rope", "yarn", "resonance_yarn")


def test_the_contract_s_names() -> None:
    assert {method: parse_method(method) for method in _PAPER} == {
        "rope": ("none", False),
        "resonance_rope": ("none", True),
        "yarn": ("yarn", False),
        "resonance_yarn": ("yarn", True),
    }


@pytest.mark.parametrize("resonance", [False, True])
@pytest.mark.parametrize("scaling", SCALINGS)
def test_every_scaling_has_a_name_that_reads_back(scaling: str, resonance: bool) -> None:
    name = method_name(scaling, resonance=resonance)
    assert parse_method(name) == (scaling, resonance)
    assert methods.is_resonance(name) is resonance
    assert methods.plain_variant(name) == method_name(scaling, resonance=False)
    assert methods.resonance_variant(name) == method_name(scaling, resonance=True)


def test_a_spec_says_its_method() -> None:
    assert methods.method_of(RopeSpec(head_dim=8, resonance=True)) == "resonance_rope"
    assert methods.method_of(RopeSpec(head_dim=8, scaling="linear", factor=2.0)) == "linear"


@pytest.mark.parametrize("name", ["none", "resonance_none", "resonance", "resonance_", "Yarn"])
def test_unknown_method_is_named_with_the_known_ones(name: str) -> None:
    with pytest.raises(ValueError, match="is unknown; choose from rope, linear") as caught:
        parse_method(name)
    assert repr(name) in str(caught.value)
    assert "resonance_" in str(caught.value)


def test_a_number_after_a_rule_is_its_period() -> None:
    assert parse_method("rational16_yarn") == ("yarn", "rational")
    assert methods.split_period("rational16_yarn") == ("rational_yarn", 16)
    assert methods.split_period("rational_yarn") == ("rational_yarn", None)
    assert methods.plain_variant("designed64_ntk_by_parts") == "ntk_by_parts"
    assert methods.with_scaling("rational16_yarn", "none") == "rational16_rope"
    assert methods.with_scaling("resonance_yarn", "none") == "resonance_rope"
    assert methods.is_resonance("rational16_rope")


@pytest.mark.parametrize("name", ["resonance16_yarn", "coprime7_rope", "rational0_rope"])
def test_rules_without_a_period_take_no_number(name: str) -> None:
    with pytest.raises(ValueError, match="is unknown"):
        parse_method(name)
