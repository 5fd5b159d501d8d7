"""Embeddings that differ between layers: `RopeSpec.sliding_attention`; the position temperature."""

import dataclasses
import json

import numpy as np
import pytest

from rrope_jax.rope import RopeSpec, cos_sin, query_temperature

LOCAL = RopeSpec(head_dim=8, theta=10_000.0)
GEMMA = RopeSpec(
    head_dim=8,
    theta=1e6,
    scaling="linear",
    factor=8.0,
    sliding_attention=LOCAL,
)


def test_each_layer_type_has_its_embedding() -> None:
    assert GEMMA.of("sliding_attention") == LOCAL
    full = GEMMA.of("full_attention")
    assert full.sliding_attention is None
    assert (full.theta, full.factor) == (1e6, 8.0)
    np.testing.assert_array_equal(cos_sin(GEMMA, [3, 70])[0], cos_sin(full, [3, 70])[0])
    assert LOCAL.of("sliding_attention") is LOCAL


def test_fields_survive_json_and_name_no_absent_layers() -> None:
    stored = json.loads(json.dumps(GEMMA.fields()))
    assert RopeSpec(**stored) == GEMMA
    assert hash(RopeSpec(**stored)) == hash(GEMMA)
    assert LOCAL.fields().keys().isdisjoint({"sliding_attention", "llama_4_scaling_beta"})


def test_equal_embeddings_are_one() -> None:
    assert dataclasses.replace(LOCAL, sliding_attention=LOCAL) == LOCAL
    assert GEMMA.of("full_attention") != GEMMA


def test_methods_change_full_layers_only() -> None:
    yarn = dataclasses.replace(GEMMA, scaling="yarn", original_context=64).with_method(
        "yarn", resonance=True
    )
    assert yarn.resonance
    assert yarn.of("sliding_attention") == LOCAL


@pytest.mark.parametrize("other", [GEMMA, RopeSpec(head_dim=16), 3])
def test_other_layers_must_be_of_the_same_model(other: object) -> None:
    with pytest.raises(ValueError, match="sliding_attention"):
        dataclasses.replace(LOCAL, sliding_attention=other)


def test_query_temperature_counts_original_contexts() -> None:
    spec = RopeSpec(
        head_dim=8, scaling="yarn", factor=4.0, original_context=16, llama_4_scaling_beta=0.1
    )
    positions = np.array([[0, 15, 16, 31, 32, 160]])
    expected = 1 + 0.1 * np.log(1 + np.array([[0, 0, 1, 1, 2, 10]]))
    # float32 logarithm
    np.testing.assert_allclose(query_temperature(spec, positions), expected, rtol=1e-6)
    assert query_temperature(LOCAL, positions) is None
    with pytest.raises(ValueError, match=r"llama_4_scaling_beta.* must be 0 without"):
        RopeSpec(head_dim=8, llama_4_scaling_beta=0.1)
