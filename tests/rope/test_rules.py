"""The rules of resonance: which periods features get, and that phases repeat exactly after them."""

import json
import math
from fractions import Fraction
from typing import Any

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rrope_jax import rope
from rrope_jax.rope import RopeSpec, analysis, coprime, cos_sin, design, frequencies, from_hf, to_hf
from rrope_jax.rope.methods import method_of, parse_method, plain_variant
from rrope_jax.rope.resonance import RULES

L, LENGTH = 64, 256
FIELDS: dict[str, dict[str, Any]] = {
    "nearest": {},
    "rational": {"resonance_period": L},
    "coprime": {"resonance_limit": L},
    "designed": {"resonance_period": L, "resonance_length": LENGTH, "resonance_near": 5},
}
SCALINGS: dict[str, dict[str, Any]] = {
    "none": {},
    "yarn": {"factor": 4.0, "original_context": L},
    "ntk": {"factor": 4.0},
}


def _spec(rule: str, scaling: str = "none", **fields: Any) -> RopeSpec:
    fields = {"head_dim": 64, **FIELDS[rule], **SCALINGS[scaling], **fields}
    return RopeSpec(scaling=scaling, resonance=rule, **fields)


def test_every_rule_is_tested() -> None:
    assert FIELDS.keys() | {"none"} == RULES.keys()


@pytest.mark.parametrize("scaling", SCALINGS)
@pytest.mark.parametrize("rule", FIELDS)
def test_theorem_1_holds_for_every_rule(rule: str, scaling: str) -> None:
    """Features that turn within training have no gap: training sees each of their phases."""
    spec = _spec(rule, scaling)
    pre_critical = analysis.is_pre_critical(spec, L)
    assert pre_critical.any()
    gap = analysis.feature_gap(spec, L, LENGTH)
    np.testing.assert_array_equal(gap[pre_critical], 0)
    plain = analysis.feature_gap(spec.with_method(scaling, resonance=False), L, LENGTH)
    assert plain[pre_critical].max() > 0.01


@pytest.mark.parametrize("scaling", rope.SCALINGS)
@pytest.mark.parametrize("rule", RULES)
def test_every_rule_goes_with_every_scaling(rule: str, scaling: str) -> None:
    """There is no gap in features that repeat within training, and none starts to turn."""
    shared = {
        "factor": 4.0,
        "original_context": L,
        "clipped_features": 4,
        "abf_theta": 5e5,
        "shortest_wavelength": 6.0,
        "short_factor": (1.0,) * 8,
        "long_factor": (1.0, 1.0, 1.5, 2.0, 3.0, 4.0, 4.0, 4.0),
        "partial_rotary_factor": 0.5 if scaling == "proportional" else 1.0,
    }
    fields = {"head_dim": 16, "theta": 1000.0, **shared, **FIELDS.get(rule, {})}
    spec = rope.spec_for_method(fields, scaling, resonance=rule)
    table = frequencies(spec, LENGTH)
    plain = frequencies(spec.with_method(scaling, resonance=False), LENGTH)
    never = plain.inv_freq == 0
    np.testing.assert_array_equal(table.inv_freq == 0, never)
    np.testing.assert_array_equal(table.periods[never], 0)
    assert np.all(table.periods[plain.wavelengths <= L] > 0) or rule == "none"
    gap = analysis.feature_gap(spec, L, LENGTH, seq_len=LENGTH)
    np.testing.assert_array_equal(gap[(table.periods > 0) & (table.periods <= L)], 0)
    assert parse_method(method_of(spec)) == (scaling, spec.resonance)


@pytest.mark.parametrize("rule", FIELDS)
def test_phases_repeat_bit_for_bit(rule: str) -> None:
    """At the ends of the int32 range too, where float32 products have lost every digit."""
    spec = _spec(rule)
    table = frequencies(spec)
    positions = np.array([0, 1, 17, 12_345, 2**31 - 1, -(2**31) + 2**20], np.int64)
    tables = jax.jit(lambda positions: cos_sin(spec, positions))
    for index in np.flatnonzero(table.periods):
        period = int(table.periods[index])
        if period > 2**20:
            continue
        sign = np.where(positions > 0, -1, 1)
        moved = tables((positions + sign * period * (1000 // period + 1)).astype(np.int32))
        for before, after in zip(tables(positions.astype(np.int32)), moved, strict=True):
            np.testing.assert_array_equal(before[:, index], after[:, index])


@pytest.mark.parametrize("rule", FIELDS)
def test_tables_are_those_of_exact_fractions(rule: str) -> None:
    spec = _spec(rule)
    table = frequencies(spec)
    positions = np.array([0, 5, 1000, 2**30 + 7])
    cos, sin = cos_sin(spec, positions)
    for index in np.flatnonzero(table.periods):
        p, q = int(table.periods[index]), int(table.turns[index])
        assert math.gcd(p, q) == 1
        assert table.wavelengths[index] == p / q
        turns = [float(Fraction(q * int(position), p) % 1) for position in positions]
        # float32 tables, computed from integer phases
        np.testing.assert_allclose(cos[:, index], np.cos(2 * np.pi * np.array(turns)), atol=2e-7)
        np.testing.assert_allclose(sin[:, index], np.sin(2 * np.pi * np.array(turns)), atol=2e-7)


def test_rational_periods_by_hand() -> None:
    """Wavelengths 2 pi = 6.283 and 11.173, in at most 32 tokens: 25 / 4 and 11; then unchanged."""
    table = frequencies(_spec("rational", head_dim=16, theta=100.0, resonance_period=32))
    assert table.periods.tolist()[:2] == [25, 11]
    assert table.turns.tolist()[:2] == [4, 1]
    plain = frequencies(RopeSpec(head_dim=16, theta=100.0))
    np.testing.assert_array_equal(table.periods > 0, plain.wavelengths <= 32)
    np.testing.assert_array_equal(
        table.wavelengths[plain.wavelengths > 32], plain.wavelengths[plain.wavelengths > 32]
    )


@settings(max_examples=60, deadline=None)
@given(
    theta=st.floats(2.0, 1e7),
    period=st.integers(8, 10_000),
    half=st.integers(1, 24),
)
def test_rational_is_the_best_approximation(theta: float, period: int, half: int) -> None:
    spec = RopeSpec(head_dim=2 * half, theta=theta, resonance="rational", resonance_period=period)
    table, plain = frequencies(spec), frequencies(RopeSpec(head_dim=2 * half, theta=theta))
    for index in np.flatnonzero(table.periods):
        p, q = int(table.periods[index]), int(table.turns[index])
        exact = 1 / Fraction(float(plain.wavelengths[index]))
        error = abs(Fraction(q, p) - exact)
        assert p <= period
        assert error <= Fraction(1, 2 * period)
        # no better fraction with a period nearby
        for other in range(max(p - 5, 2), min(p + 5, period) + 1):
            assert error <= abs(Fraction(round(exact * other), other) - exact)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(2.0, 1e5), min_size=1, max_size=20))
def test_coprime_integers_share_no_factor(numbers: list[float]) -> None:
    integers = coprime.near(tuple(numbers))
    assert len(integers) == len(numbers)
    assert min(integers) >= 2
    assert all(math.gcd(a, b) == 1 for i, a in enumerate(integers) for b in integers[i + 1 :])


def test_coprime_by_hand() -> None:
    # 6 and 8 share 2: of (5, 8), (6, 7), (7, 8), (6, 5), ... the second is nearest as ratios
    assert coprime.near((6.1, 7.9)) == (6, 7)
    # nothing to change, in any order
    assert coprime.near((31.2, 10.9, 6.0)) == (31, 11, 6)


def test_uniqueness_of_coprime_periods_is_their_product() -> None:
    spec = _spec("coprime")
    periods = frequencies(spec).periods
    assert analysis.uniqueness(spec, L) == math.prod(periods[periods > 0].tolist())
    assert analysis.uniqueness(spec, L) > analysis.uniqueness(_spec("nearest"), L)


@settings(max_examples=20, deadline=None)
@given(
    st.lists(st.floats(3.0, 40.0), min_size=1, max_size=6),
    st.integers(1, 8),
    st.floats(0.02, 0.3),
)
def test_designed_is_never_worse_than_nearest(
    wavelengths: list[float], near: int, tolerance: float
) -> None:
    designed = design.integers(
        tuple(wavelengths), first=48, length=160, near=near, tolerance=tolerance
    )
    apart = np.arange(48 - near + 1, 160)
    nearest = [round(wavelength) for wavelength in wavelengths]
    assert design.likeness(designed, apart).max() <= design.likeness(nearest, apart).max() + 1e-9
    for integer, wavelength, rounded in zip(designed, wavelengths, nearest, strict=True):
        assert integer == rounded or abs(integer - wavelength) <= tolerance * wavelength


def test_designed_optimizes_what_is_analyzed() -> None:
    designed, nearest = (
        analysis.coincidence(_spec(rule), L, LENGTH, near=5).max()
        for rule in ("designed", "nearest")
    )
    assert designed < nearest - 0.1
    periods = frequencies(_spec("designed")).periods
    likeness = design.likeness(periods[periods > 0].tolist(), np.arange(L - 4, LENGTH))
    assert likeness.max() == pytest.approx(designed, rel=1e-9)  # sums in another order


def test_a_limit_leaves_longer_features_alone() -> None:
    limited, plain = (
        frequencies(_spec("nearest", resonance_limit=L)),
        frequencies(RopeSpec(head_dim=64)),
    )
    long = plain.wavelengths > L
    np.testing.assert_array_equal(limited.periods[long], 0)
    np.testing.assert_array_equal(limited.inv_freq[long], plain.inv_freq[long])
    np.testing.assert_array_equal(
        limited.periods[~long], frequencies(_spec("nearest")).periods[~long]
    )


def test_true_and_false_are_names() -> None:
    assert RopeSpec(head_dim=8, resonance="nearest") == RopeSpec(head_dim=8, resonance=True)
    assert RopeSpec(head_dim=8, resonance="none") == RopeSpec(head_dim=8)
    fields = RopeSpec(head_dim=8, resonance="nearest").fields()
    assert fields["resonance"] is True
    assert not any(name.startswith("resonance_") for name in fields)


@pytest.mark.parametrize("rule", FIELDS)
def test_fields_and_names_come_back(rule: str) -> None:
    spec = _spec(rule, "yarn")
    assert RopeSpec(**spec.fields()) == spec
    name = method_of(spec)
    assert parse_method(name) == ("yarn", spec.resonance)
    assert plain_variant(name) == "yarn"
    assert name == ("resonance_yarn" if rule == "nearest" else f"{rule}_yarn")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"resonance": "prime"}, "resonance='prime' is unknown; choose one of none, nearest"),
        ({"resonance": 2}, "resonance=2 must be True, False or the name of a rule"),
        ({"resonance": "rational"}, "resonance_period is not set, but resonance='rational'"),
        ({"resonance_period": 8}, "resonance_period=8 has no effect with resonance='none'"),
        ({"resonance": True, "resonance_length": 9}, "resonance_length=9 has no effect"),
        ({"resonance": "coprime", "resonance_period": 9}, "resonance_period=9 has no effect"),
        ({"resonance": "rational", "resonance_period": 9, "resonance_limit": 9}, "no effect"),
        ({"resonance": "rational", "resonance_period": 1}, "must be an integer from 2"),
        (
            {"resonance": "designed", "resonance_period": 8, "resonance_length": 8},
            r"resonance_length=8 must be an integer above resonance_period \(8\)",
        ),
        (
            {
                "resonance": "designed",
                "resonance_period": 8,
                "resonance_length": 16,
                "resonance_near": 9,
            },
            r"resonance_near=9 must be an integer from 1 to resonance_period \(8\)",
        ),
        (
            {
                "resonance": "designed",
                "resonance_period": 8,
                "resonance_length": 16,
                "resonance_tolerance": 1.0,
            },
            "resonance_tolerance=1.0 must be a number between 0 and 1",
        ),
    ],
)
def test_refuses(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RopeSpec(head_dim=8, **fields)


def test_distortion_is_the_chord_between_the_angles() -> None:
    """Feature 0 turns once in 6.283 tokens and, rounded, in 6."""
    moved = analysis.distortion(_spec("nearest"), 10)
    chord = abs(np.exp(1j * 10.0) - np.exp(2j * np.pi * 10 / 6))
    assert moved[0] == pytest.approx(chord, rel=1e-12)
    rational = analysis.distortion(_spec("rational"), 10)
    pre_critical = analysis.is_pre_critical(_spec("nearest"), L)
    assert rational[pre_critical].max() < moved[pre_critical].max() / 3
    np.testing.assert_array_equal(analysis.distortion(RopeSpec(head_dim=64), 10), 0)


def test_distinct_angles() -> None:
    counts = analysis.distinct_angles(_spec("nearest"), L)
    assert counts[:3].tolist() == [6, 8, 11]
    assert counts[-1] == L
    np.testing.assert_array_equal(analysis.distinct_angles(RopeSpec(head_dim=64), L), L)


def test_effective_rank_of_whole_turns() -> None:
    """Over whole turns, cos and sin of different frequencies are orthogonal and equally long."""
    spec = RopeSpec(
        head_dim=4,
        scaling="longrope",
        original_context=24,
        short_factor=(8 / (2 * math.pi), 12 / (2 * math.pi * 100)),
        long_factor=(8 / (2 * math.pi), 12 / (2 * math.pi * 100)),
        resonance=True,
    )
    assert frequencies(spec).periods.tolist() == [8, 12]
    assert analysis.effective_rank(spec, 24) == pytest.approx(4, rel=1e-9)
    assert analysis.effective_rank(spec, 1) == pytest.approx(1, rel=1e-6)


def test_context_bound_by_hand() -> None:
    """A single feature, cos(m), is first negative at 2, since pi / 2 is 1.57."""
    assert analysis.context_bound(RopeSpec(head_dim=2), 100) == 2
    theta = analysis.least_theta(16, 300)
    reached = [
        analysis.context_bound(RopeSpec(head_dim=16, theta=theta * step), 300)
        for step in (1.0, 1 - 1e-5)
    ]
    assert reached[0] == 300 > reached[1]


@pytest.mark.parametrize("scaling", SCALINGS)
@pytest.mark.parametrize("rule", FIELDS)
def test_periods_survive_the_keys_of_other_runtimes(rule: str, scaling: str) -> None:
    """They are lists of factors there, from which the same integers and fractions come back."""
    spec = _spec(rule, scaling)
    read = from_hf(json.loads(json.dumps(to_hf(spec, max_position_embeddings=LENGTH))))
    ours, theirs = frequencies(spec), frequencies(read)
    np.testing.assert_array_equal(theirs.periods, ours.periods)
    np.testing.assert_array_equal(theirs.turns, ours.turns)
    np.testing.assert_allclose(theirs.inv_freq, ours.inv_freq, rtol=1e-12)  # of float64 factors
