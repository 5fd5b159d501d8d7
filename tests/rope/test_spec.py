"""What a RopeSpec accepts, refuses and carries along."""

import dataclasses
import json
import math
import pickle
from typing import Any

import jax
import numpy as np
import pytest

from rrope_jax import rope
from rrope_jax.rope import RopeSpec, spec_for_method

_LISTS = {"short_factor": [1.0] * 4, "long_factor": [2.0] * 4}
_YARN = {"scaling": "yarn", "factor": 4.0, "original_context": 64}
_LONGROPE = {"scaling": "longrope", "original_context": 64, **_LISTS}

# field values, what the message names, and the mend it offers
_REFUSED: list[tuple[dict[str, Any], tuple[str, ...]]] = [
    ({"head_dim": 7}, ("head_dim=7", "even", "choose an even head size")),
    ({"head_dim": 0}, ("head_dim=0", ">= 2")),
    ({"head_dim": 8.0}, ("head_dim=8.0", "integer")),
    ({"theta": 1.0}, ("theta=1.0", "> 1", "10000")),
    ({"theta": float("nan")}, ("theta=nan", "finite")),
    ({"theta": "10000"}, ("theta='10000'", "number")),
    ({"scaling": "yern"}, ("scaling='yern'", "unknown", "yarn")),
    ({"scaling": "linear"}, ("factor", "scaling='linear'", "set factor")),
    ({"scaling": "linear", "factor": 0.5}, ("factor=0.5", ">= 1", "use 1")),
    ({"scaling": "linear", "factor": True}, ("factor=True", "number")),
    ({"factor": 2.0}, ("factor=2.0", "no effect", "remove it", "yarn")),
    ({"scaling": "yarn", "factor": 4.0}, ("original_context", "set original_context")),
    ({**_YARN, "original_context": 0}, ("original_context=0", "positive integer")),
    ({**_YARN, "original_context": 64.0}, ("original_context=64.0", "integer")),
    ({**_YARN, "beta_fast": 1.0}, ("beta_fast=1.0", "beta_slow (1.0)", "YaRN uses")),
    ({**_YARN, "beta_slow": 0.0}, ("beta_slow=0.0", ">= 1e-30")),
    ({**_YARN, "mscale": 1.0}, ("mscale=1.0", "mscale_all_dim")),
    ({**_YARN, "mscale": -1.0, "mscale_all_dim": 1.0}, ("mscale=-1.0", ">= 0")),
    ({**_YARN, "truncate": 1}, ("truncate=1", "True or False")),
    ({"scaling": ["yarn"]}, ("scaling=['yarn'] is unknown", "choose one of none")),
    ({"head_dim": 2**31}, ("head_dim=2147483648", "<= 16384")),
    ({"head_dim": True}, ("head_dim=True", "even integer")),
    ({"theta": 1e31}, ("theta=1e+31", "<= 1e+30")),
    ({"theta": 10**400}, ("theta=1000", "finite number")),
    ({"theta": -1e4}, ("theta=-10000.0", "> 1")),
    ({**_YARN, "factor": 2**31}, ("factor=2147483648", "<= 2147483647")),
    ({**_YARN, "factor": math.inf}, ("factor=inf", "finite number")),
    ({**_YARN, "original_context": 2**31}, ("original_context=2147483648", "<= 2147483647")),
    ({**_YARN, "attention_factor": 1e300}, ("attention_factor=1e+300", "<= 2147483647")),
    ({**_YARN, "beta_fast": 1e300}, ("beta_fast=1e+300", "<= 2147483647")),
    ({**_YARN, "mscale": 1e300, "mscale_all_dim": 1.0}, ("mscale=1e+300", "<= 2147483647")),
    ({**_YARN, "low_freq_factor": 2.0}, ("low_freq_factor=2.0", "no effect", "llama3")),
    (
        {**_YARN, "scaling": "llama3", "low_freq_factor": 5.0},
        ("high_freq_factor=4.0", "low_freq_factor (5.0)"),
    ),
    ({"partial_rotary_factor": 0.0}, ("partial_rotary_factor=0.0", "(0, 1]", "use 1")),
    ({"partial_rotary_factor": 0.4}, ("partial_rotary_factor=0.4", "even number", "3")),
    ({"attention_factor": 0.0}, ("attention_factor=0.0", "> 0", "None")),
    ({"resonance": "yes"}, ("resonance='yes'", "choose one of none, nearest")),
    ({"head_dim": 2, "scaling": "ntk", "factor": 2.0}, ("head_dim=2", "more than 2")),
    ({**_LONGROPE, "short_factor": [1.0] * 3}, ("short_factor", "3 entries", "exactly 4")),
    ({**_LONGROPE, "long_factor": [1.0, 1.0, 0.0, 1.0]}, ("long_factor[2]=0.0", "> 0", "1.0")),
    ({**_LONGROPE, "long_factor": [1.0, "x", 1.0, 1.0]}, ("long_factor[1]='x'", "number")),
    ({**_LONGROPE, "short_factor": 1.0}, ("short_factor=1.0", "list", "4 factors")),
    ({"scaling": "longrope", "original_context": 64}, ("long_factor", "set long_factor")),
    ({**_LONGROPE, "original_context": 1}, ("original_context=1", "at least 2")),
    (
        {**_LONGROPE, "short_factor": [0.2, 1.0, 1.0, 1.0], "resonance": True},
        ("resonance=True", "feature 0", "1.257 tokens", "set resonance=False"),
    ),
    (
        {**_LONGROPE, "long_factor": [1.0, 0.02, 1.0, 1.0], "resonance": True},
        ("resonance=True", "feature 1", "at least 2"),
    ),
]


@pytest.mark.smoke
@pytest.mark.parametrize(("fields", "said"), _REFUSED)
def test_refuses(fields: dict[str, Any], said: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match=r".") as error:
        RopeSpec(**{"head_dim": 8, **fields})
    message = str(error.value)
    assert [part for part in said if part not in message] == []
    assert "\n" not in message


@pytest.mark.parametrize("scaling", ["linear", "ntk", "dynamic_ntk", "yarn", "llama3", "part_ntk"])
def test_factor_of_one_is_a_choice(scaling: str) -> None:
    """It leaves plain RoPE, up to the original context."""
    fields = {"head_dim": 8, "factor": 1.0, "original_context": 64}
    spec = spec_for_method(fields, scaling, resonance=False)
    plain = rope.frequencies(RopeSpec(head_dim=8))
    np.testing.assert_allclose(rope.frequencies(spec).inv_freq, plain.inv_freq, rtol=1e-14)
    assert rope.frequencies(spec).attention_factor == 1.0


def test_hashes_and_compares_by_value() -> None:
    spec = RopeSpec(head_dim=8, **_LONGROPE)
    same = RopeSpec(head_dim=8, **{**_LONGROPE, "short_factor": (1.0,) * 4})
    assert spec == same
    assert hash(spec) == hash(same)
    assert spec != dataclasses.replace(spec, factor=2.0)
    with pytest.raises(dataclasses.FrozenInstanceError):
        spec.theta = 5.0  # type: ignore[misc]


@pytest.mark.parametrize("fields", [{}, _YARN, _LONGROPE, {**_YARN, "resonance": True}])
def test_survives_json_and_pickle(fields: dict[str, Any]) -> None:
    spec = RopeSpec(head_dim=8, **fields)
    assert RopeSpec(**json.loads(json.dumps(dataclasses.asdict(spec)))) == spec
    assert pickle.loads(pickle.dumps(spec)) == spec


_UNREAD = (
    '"beta_fast": 32.0, "beta_slow": 1.0, "truncate": true, "mscale": null, '
    '"mscale_all_dim": null, "low_freq_factor": 1.0, "high_freq_factor": 4.0'
)
# What was written for a spec without a factor when that was a float: all fields, and those in
# results.
_OLDER_FILES = {
    "none": (
        '{"head_dim": 4, "theta": 10000.0, "scaling": "none", "factor": 1.0, '
        '"original_context": null, "resonance": false, "partial_rotary_factor": 1.0, '
        f'"attention_factor": null, {_UNREAD}, "short_factor": null, "long_factor": null}}',
        '{"head_dim": 4, "theta": 10000.0, "scaling": "none", "resonance": false, '
        '"partial_rotary_factor": 1.0, "attention_factor": null}',
    ),
    "proportional": (
        '{"head_dim": 4, "theta": 10000.0, "scaling": "proportional", "factor": 1.0, '
        '"original_context": null, "resonance": false, "partial_rotary_factor": 0.5, '
        f'"attention_factor": null, {_UNREAD}, "short_factor": null, "long_factor": null}}',
        '{"head_dim": 4, "theta": 10000.0, "scaling": "proportional", "factor": 1.0, '
        '"resonance": false, "partial_rotary_factor": 0.5, "attention_factor": null}',
    ),
    "longrope": (
        '{"head_dim": 4, "theta": 10000.0, "scaling": "longrope", "factor": 1.0, '
        '"original_context": 64, "resonance": false, "partial_rotary_factor": 1.0, '
        f'"attention_factor": 1.25, {_UNREAD}, "short_factor": [1.0, 1.0], '
        '"long_factor": [2.0, 2.0]}',
        '{"head_dim": 4, "theta": 10000.0, "scaling": "longrope", "factor": 1.0, '
        '"original_context": 64, "resonance": false, "partial_rotary_factor": 1.0, '
        '"attention_factor": 1.25, "short_factor": [1.0, 1.0], "long_factor": [2.0, 2.0]}',
    ),
}
_WITHOUT_FACTOR = {
    "none": RopeSpec(head_dim=4),
    "proportional": RopeSpec(head_dim=4, scaling="proportional", partial_rotary_factor=0.5),
    "longrope": RopeSpec(
        head_dim=4,
        scaling="longrope",
        original_context=64,
        attention_factor=1.25,
        short_factor=(1.0, 1.0),
        long_factor=(2.0, 2.0),
    ),
}


@pytest.mark.parametrize("scaling", _OLDER_FILES)
def test_json_of_older_files_is_read_and_written(scaling: str) -> None:
    spec = _WITHOUT_FACTOR[scaling]
    assert spec.factor is None
    assert spec.extension == 1.0
    for stored in map(json.loads, _OLDER_FILES[scaling]):
        assert RopeSpec(**stored) == spec
        assert hash(RopeSpec(**stored)) == hash(spec)
    assert json.dumps(spec.fields()) == _OLDER_FILES[scaling][1]


@pytest.mark.parametrize("fields", [{}, _YARN, _LONGROPE, {**_YARN, "resonance": True}])
def test_fields_are_what_the_scaling_reads(fields: dict[str, Any]) -> None:
    spec = RopeSpec(head_dim=8, **fields)
    assert RopeSpec(**spec.fields()) == spec
    assert spec.fields().keys() >= fields.keys() | {"head_dim", "theta", "scaling"}
    assert "low_freq_factor" not in spec.fields()


def test_a_factor_of_one_says_nothing_where_no_factor_is_read() -> None:
    assert RopeSpec(head_dim=8, factor=1).factor is None
    for factor in (True, 0, 0.5):
        with pytest.raises(ValueError, match="factor="):
            RopeSpec(head_dim=8, factor=factor)


def test_with_method_keeps_only_what_the_other_scaling_reads() -> None:
    yarn = RopeSpec(head_dim=8, theta=500.0, beta_fast=16.0, **_YARN)
    assert yarn.with_method("none", resonance=True) == RopeSpec(
        head_dim=8, theta=500.0, resonance=True
    )
    assert yarn.with_method("linear", resonance=False) == RopeSpec(
        head_dim=8, theta=500.0, scaling="linear", factor=4.0
    )
    with pytest.raises(ValueError, match="factor is not set, but scaling='linear' needs it"):
        RopeSpec(head_dim=8).with_method("linear", resonance=False)


def test_spec_for_method_names_an_unknown_scaling() -> None:
    with pytest.raises(ValueError, match="scaling='yern' is unknown"):
        spec_for_method({"head_dim": 8}, "yern", resonance=False)


def test_spec_is_static_under_jit() -> None:
    traced = []

    @jax.jit
    def by_closure(positions: jax.Array) -> jax.Array:
        return rope.cos_sin(spec, positions)[0]

    def by_argument(spec: RopeSpec, positions: jax.Array) -> jax.Array:
        traced.append(spec)
        return rope.cos_sin(spec, positions)[0]

    spec = RopeSpec(head_dim=8, resonance=True)
    jitted = jax.jit(by_argument, static_argnums=0)
    positions = np.arange(5)
    first = jitted(spec, positions)
    again = jitted(RopeSpec(head_dim=8, resonance=True), positions)
    assert len(traced) == 1
    np.testing.assert_array_equal(first, again)
    np.testing.assert_array_equal(first, by_closure(positions))
