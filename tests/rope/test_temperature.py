"""The factor on queries that grows with their position."""

import json
import math
from typing import Any

import jax
import numpy as np
import pytest

from rrope_jax import rope
from rrope_jax.rope import RopeSpec, query_temperature
from rrope_jax.rope.factor_lists import as_factor_lists

LOG_N = RopeSpec(head_dim=8, position_temperature="log_n", temperature_context=16)
LLAMA_4 = RopeSpec(
    head_dim=8, scaling="yarn", factor=4.0, original_context=16, llama_4_scaling_beta=0.1
)


def test_log_n_by_hand() -> None:
    """A query at position 255 sees 256 = 16^2 tokens, at 15 exactly the 16 of training."""
    positions = np.array([0, 7, 15, 63, 255])
    np.testing.assert_allclose(query_temperature(LOG_N, positions), [1, 1, 1, 1.5, 2], rtol=1e-6)


def test_log_n_counts_in_the_original_context_unless_told() -> None:
    yarn = {"head_dim": 8, "scaling": "yarn", "factor": 4.0, "original_context": 16}
    spec = RopeSpec(**yarn, position_temperature="log_n")
    other = RopeSpec(**yarn, position_temperature="log_n", temperature_context=256)
    positions = np.arange(0, 300, 7)
    np.testing.assert_array_equal(
        query_temperature(spec, positions), query_temperature(LOG_N, positions)
    )
    assert query_temperature(other, np.array([255])) == 1


@pytest.mark.parametrize("spec", [LOG_N, LLAMA_4, RopeSpec(head_dim=8)])
def test_coefficients_as_an_argument_of_a_program(spec: RopeSpec) -> None:
    positions = np.array([[0, 15, 16, 40, 2**31 - 1]], np.int32)
    from_table = jax.jit(rope.query_temperature_from_table)
    found = from_table(rope.query_temperature_table(spec), positions)
    expected = query_temperature(spec, positions)
    # a compiled program may compute logarithms in another way
    np.testing.assert_allclose(found, 1 if expected is None else expected, rtol=1e-6)


def test_a_spec_that_says_no_more_than_beta_is_llama4() -> None:
    named = RopeSpec(**{**LLAMA_4.fields(), "position_temperature": "llama4"})
    assert named == LLAMA_4
    assert named.fields() == LLAMA_4.fields()
    assert "position_temperature" not in named.fields()
    assert RopeSpec(head_dim=8, position_temperature="none") == RopeSpec(head_dim=8)
    assert json.loads(json.dumps(LOG_N.fields()))["position_temperature"] == "log_n"
    assert RopeSpec(**LOG_N.fields()) == LOG_N


def test_llama4_on_plain_rope() -> None:
    spec = RopeSpec(head_dim=8, llama_4_scaling_beta=0.5, temperature_context=16)
    expected = 1 + 0.5 * math.log(3)
    np.testing.assert_allclose(query_temperature(spec, np.array([40])), [expected], rtol=1e-6)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"position_temperature": "llama4"}, "must be above 0 with position_temperature='llama4'"),
        ({"position_temperature": "log_n"}, "must be given with a temperature_context"),
        ({"position_temperature": "sqrt"}, "is unknown; choose one of none, llama4, log_n"),
        ({"position_temperature": True}, "position_temperature=True is unknown"),
        ({"temperature_context": 8}, "temperature_context=8 has no effect with"),
        (
            {"position_temperature": "log_n", "temperature_context": 1},
            "temperature_context=1 must be an integer from 2",
        ),
        (
            {**LOG_N.fields(), "llama_4_scaling_beta": 0.1},
            "llama_4_scaling_beta=0.1 has no effect with position_temperature='log_n'",
        ),
        (
            {**LLAMA_4.fields(), "position_temperature": "none"},
            "llama_4_scaling_beta=0.1 has no effect with position_temperature='none'",
        ),
    ],
)
def test_refuses(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RopeSpec(**{"head_dim": 8, **fields})


def test_lists_of_factors_keep_it() -> None:
    listed = as_factor_lists(LOG_N, 64)
    positions = np.array([3, 100])
    np.testing.assert_array_equal(
        query_temperature(listed, positions), query_temperature(LOG_N, positions)
    )


@pytest.mark.parametrize("model_type", [None, "ministral3"])
@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (LOG_N, "position_temperature='log_n': other runtimes have no such factor"),
        (
            RopeSpec(
                head_dim=8,
                scaling="dynamic_ntk",
                factor=4.0,
                original_context=16,
                llama_4_scaling_beta=0.1,
                temperature_context=8,
            ),
            r"temperature_context=8: .* original_context \(16\), .* scaling='ntk' and a fixed",
        ),
        (
            RopeSpec(
                head_dim=8,
                scaling="longrope",
                original_context=16,
                short_factor=(1.0,) * 4,
                long_factor=(2.0,) * 4,
                llama_4_scaling_beta=0.1,
                temperature_context=8,
            ),
            r"temperature_context=8: .* original_context \(16\), .* one of its lists as both",
        ),
    ],
)
def test_what_other_runtimes_lack(spec: RopeSpec, message: str, model_type: str | None) -> None:
    with pytest.raises(ValueError, match=message):
        rope.to_hf(spec, model_type=model_type)


YARN = {"scaling": "yarn", "factor": 4.0, "original_context": 16}
LISTS = {"short_factor": (1.0, 2.0, 3.0, 4.0), "long_factor": (1.0, 2.0, 3.0, 4.0)}


@pytest.mark.parametrize("context", [8, 16])
@pytest.mark.parametrize(
    "fields",
    [
        {},
        YARN,
        {**YARN, "resonance": True},
        {"scaling": "longrope", "original_context": 16} | LISTS,
    ],
)
def test_another_length_to_count_in_is_exported_as_lists(
    fields: dict[str, Any], context: int
) -> None:
    spec = RopeSpec(head_dim=8, llama_4_scaling_beta=0.1, temperature_context=context, **fields)
    keys = rope.to_hf(spec, model_type="ministral3")
    assert keys["rope_parameters"]["original_max_position_embeddings"] == context
    read = rope.from_hf({**keys, "model_type": "ministral3"})
    positions = np.arange(0, 100, 3)
    np.testing.assert_array_equal(
        query_temperature(read, positions), query_temperature(spec, positions)
    )
    for length in (None, 7, 12, 60):
        found, expected = rope.frequencies(read, length), rope.frequencies(spec, length)
        np.testing.assert_allclose(found.inv_freq, expected.inv_freq, rtol=1e-12)
        np.testing.assert_allclose(found.attention_factor, expected.attention_factor, rtol=1e-7)
