"""Learned frequencies: where they start, their gradient, and the exact table that they become."""

import dataclasses
import json
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.typing import NDArray

from rrope_jax.rope import (
    RopeSpec,
    cos_sin,
    cos_sin_from_table,
    frequencies,
    from_hf,
    phase_table,
    to_hf,
)
from rrope_jax.rope.learned import learned_cos_sin, learned_spec, unrounded
from rrope_jax.rope.methods import (
    fixed_variant,
    is_learned,
    learned_variant,
    parse_method,
    plain_variant,
)
from rrope_jax.rope.resonance import RULES, periods_of, wavelengths_of

Float64Array = NDArray[np.float64]

L = 64
YARN = RopeSpec(head_dim=32, scaling="yarn", factor=4.0, original_context=L)
PROPORTIONAL = RopeSpec(head_dim=32, scaling="proportional", partial_rotary_factor=0.5)
PARTIAL = RopeSpec(head_dim=32, partial_rotary_factor=0.5)
RULE_FIELDS: dict[str, dict[str, Any]] = {
    "none": {},
    "nearest": {},
    "rational": {"resonance_period": L},
    "coprime": {},
    "designed": {"resonance_period": L, "resonance_length": 256, "resonance_near": 5},
}


def _log_ratios(features: int = 16, spread: float = 0.3) -> NDArray[np.float32]:
    return np.random.default_rng(0).normal(0, spread, features).astype(np.float32)


def _exact(spec: RopeSpec, log_ratio_F: Any, positions_T: Any) -> tuple[Float64Array, Float64Array]:
    """Cosines and sines by the formula, float64[T, F]."""
    table = frequencies(spec)
    inv_freq_F = table.inv_freq * np.exp(np.asarray(log_ratio_F, np.float64)[: table.inv_freq.size])
    angle_TF = np.multiply.outer(np.asarray(positions_T, np.float64), inv_freq_F)
    factor = table.attention_factor
    return factor * np.cos(angle_TF), factor * np.sin(angle_TF)


@pytest.mark.parametrize("spec", [YARN, PROPORTIONAL, PARTIAL, RopeSpec(head_dim=32, theta=1.5)])
def test_training_starts_at_the_spec_bit_for_bit(spec: RopeSpec) -> None:
    table, positions_T = phase_table(spec), jnp.arange(100)
    fraction_T = jnp.linspace(0, 0.99, 100)
    for fraction in (None, fraction_T):
        found = learned_cos_sin(table, np.zeros(16), positions_T, fraction=fraction)
        expected = cos_sin_from_table(table, positions_T, fraction=fraction)
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("spec", [YARN, PROPORTIONAL, PARTIAL])
def test_float_phases_of_training_agree_with_the_exact_table(spec: RopeSpec) -> None:
    """The error is that of the exact phases and 3e-7 of the angle by which learning moved them."""
    log_ratio_F, positions_T = _log_ratios(), np.arange(4096)
    learned = learned_spec(spec, {"full_attention": log_ratio_F}, L)
    assert frequencies(learned).attention_factor == frequencies(spec).attention_factor
    inv_freq_F = frequencies(spec).inv_freq
    ratio_F = np.exp(log_ratio_F[: inv_freq_F.size].astype(np.float64))
    np.testing.assert_allclose(frequencies(learned).inv_freq, inv_freq_F * ratio_F, atol=1e-30)
    moved_TF = np.multiply.outer(positions_T, abs(inv_freq_F * (ratio_F - 1)))
    in_training = learned_cos_sin(phase_table(spec), log_ratio_F, positions_T)
    for found, expected in zip(in_training, cos_sin(learned, positions_T), strict=True):
        error_TF = abs(np.float64(found) - np.float64(expected))
        assert (error_TF <= 6e-7 + 3e-7 * moved_TF).all()


@pytest.mark.parametrize("scaled", [YARN, PROPORTIONAL])
def test_gradient_agrees_with_finite_differences(scaled: RopeSpec) -> None:
    spec = dataclasses.replace(scaled, theta=30.0)  # so that every feature counts
    random, positions_T = np.random.default_rng(1), np.arange(L)
    log_ratio_F = _log_ratios()
    weight_TF, other_TF = random.normal(size=(2, L, 16)).astype(np.float32)

    def of_table(cos_TF: Any, sin_TF: Any) -> Any:
        return (weight_TF * cos_TF + other_TF * sin_TF**2).sum()

    found_F = jax.grad(
        lambda ratio_F: of_table(*learned_cos_sin(phase_table(spec), ratio_F, positions_T))
    )(jnp.asarray(log_ratio_F))
    step = 1e-6
    expected_F = np.array(
        [
            np.subtract(
                *(
                    of_table(*_exact(spec, np.float64(log_ratio_F) + sign * unit_F, positions_T))
                    for sign in (1, -1)
                )
            )
            / (2 * step)
            for unit_F in step * np.eye(16)
        ]
    )
    inv_freq_F = frequencies(spec).inv_freq
    scale_F = positions_T.sum() * inv_freq_F  # of the sum of 64 float32 terms that each one is
    assert (abs(found_F - expected_F) <= 1e-5 * scale_F + 1e-9).all()
    turning_F = inv_freq_F > 0
    assert (abs(expected_F[turning_F]) > 1e-3 * scale_F[turning_F]).all()
    np.testing.assert_array_equal(np.asarray(found_F)[~turning_F], 0)


@pytest.mark.parametrize("rule", RULES)
def test_every_rule_moves_what_was_learned(rule: str) -> None:
    spec = dataclasses.replace(YARN, resonance=rule, **RULE_FIELDS[rule])
    log_ratio_F = _log_ratios()
    learned = learned_spec(spec, {"full_attention": log_ratio_F}, L)
    assert learned.resonance == spec.resonance
    without = learned_spec(unrounded(spec), {"full_attention": log_ratio_F}, L)
    wavelengths_F = wavelengths_of(frequencies(without).inv_freq)
    np.testing.assert_allclose(
        wavelengths_F, frequencies(unrounded(spec)).wavelengths / np.exp(np.float64(log_ratio_F))
    )
    periods = [tuple(period) for period in periods_of(spec, wavelengths_F)]
    table = frequencies(learned)
    assert list(zip(table.periods.tolist(), table.turns.tolist(), strict=True)) == periods
    assert any(tokens for tokens, _ in periods) == (rule != "none")


@pytest.mark.parametrize("rule", RULES)
def test_config_json_has_the_learned_table(rule: str) -> None:
    spec = dataclasses.replace(YARN, resonance=rule, **RULE_FIELDS[rule])
    learned = learned_spec(spec, {"full_attention": _log_ratios()}, L)
    keys = json.loads(json.dumps(to_hf(learned, max_position_embeddings=4 * L)))
    read = from_hf({"head_dim": 32, **keys})
    table, expected = frequencies(read), frequencies(learned)
    np.testing.assert_allclose(table.inv_freq, expected.inv_freq, rtol=1e-12)
    np.testing.assert_array_equal(table.periods, expected.periods)
    assert table.attention_factor == expected.attention_factor


def test_both_lists_of_longrope_move() -> None:
    factors = tuple(1.0 + i / 8 for i in range(16)), tuple(2.0 + i for i in range(16))
    spec = RopeSpec(
        head_dim=32,
        scaling="longrope",
        factor=4.0,
        original_context=L,
        short_factor=factors[0],
        long_factor=factors[1],
    )
    log_ratio_F = _log_ratios()
    learned = learned_spec(spec, {"full_attention": log_ratio_F}, 9999)
    for seq_len in (L, L + 1):
        np.testing.assert_allclose(
            frequencies(learned, seq_len).inv_freq,
            frequencies(spec, seq_len).inv_freq * np.exp(np.float64(log_ratio_F)),
        )
    assert frequencies(learned).attention_factor == frequencies(spec).attention_factor


def test_each_layer_type_has_its_own() -> None:
    local = RopeSpec(head_dim=32, theta=100.0, resonance=True)
    spec = dataclasses.replace(YARN, sliding_attention=local)
    ratios = {"full_attention": np.zeros(16), "sliding_attention": np.full(16, math.log(2))}
    learned = learned_spec(spec, ratios, L)
    np.testing.assert_allclose(
        frequencies(learned.of("full_attention")).inv_freq, frequencies(YARN).inv_freq
    )
    sliding = frequencies(learned.of("sliding_attention"))
    plain = frequencies(RopeSpec(head_dim=32, theta=100.0))
    np.testing.assert_array_equal(
        sliding.periods, np.maximum(np.rint(plain.wavelengths / 2), 2).astype(int)
    )
    only = learned_spec(spec, {"sliding_attention": ratios["sliding_attention"]}, L)
    assert only == learned.of("sliding_attention")


@pytest.mark.parametrize("rule", RULES)
def test_no_feature_turns_faster_than_half_a_turn_per_token(rule: str) -> None:
    """It would look like a slower one, and no rule has a period below two tokens."""
    spec = dataclasses.replace(YARN, resonance=rule, **RULE_FIELDS[rule])
    log_ratio_F = np.full(16, 5.0, np.float32)
    learned = learned_spec(spec, {"full_attention": log_ratio_F}, L)
    assert frequencies(learned).inv_freq.max() <= math.pi * (1 + 1e-12)
    assert frequencies(learned).inv_freq[0] >= math.pi / 2
    cos_TF, _ = learned_cos_sin(phase_table(unrounded(spec)), log_ratio_F, np.arange(8))
    expected_T = frequencies(YARN).attention_factor * (-1.0) ** np.arange(8)
    np.testing.assert_allclose(cos_TF[:, 0], expected_T, atol=1e-5)


def test_frequencies_of_every_length_cannot_be_learned() -> None:
    spec = RopeSpec(head_dim=32, scaling="dynamic_ntk", factor=2.0, original_context=L)
    with pytest.raises(ValueError, match="'dynamic_ntk' has other frequencies at every length"):
        unrounded(spec)


def test_names_of_methods() -> None:
    assert learned_variant("resonance_yarn") == "learned_yarn"
    for method, fixed in (
        ("learned_rope", "rope"),
        ("resonance_learned_rope", "resonance_rope"),
        ("rational_learned_yarn", "rational_yarn"),
    ):
        assert is_learned(method)
        assert fixed_variant(method) == fixed
        assert plain_variant(method) == learned_variant(fixed)
        with pytest.raises(ValueError, match="unknown"):
            parse_method(method)
    for method in ("rope", "resonance_yarn"):
        assert not is_learned(method)
        assert fixed_variant(method) == method
