"""Critical dimension, feature gap and uniqueness."""

import math
from typing import Any

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rrope_jax import rope
from rrope_jax.rope import RopeSpec, analysis
from tests.rope.strategies import specs

_cos_sin = jax.jit(rope.cos_sin_from_table)
_LLAMA2 = RopeSpec(head_dim=128, resonance=True)
_lengths = st.tuples(st.integers(1, 300), st.integers(1, 1500)).map(lambda n: (n[0], sum(n)))


def brute_force_gap(spec: RopeSpec, train_length: int, test_length: int) -> np.ndarray:
    """The definition, over all pairs of positions."""
    gaps = []
    for wavelength in rope.frequencies(spec).wavelengths:
        turns = np.fmod(np.arange(test_length, dtype=np.float64), wavelength) / wavelength
        seen, unseen = np.split(np.exp(2j * np.pi * turns), [train_length])
        gaps.append(np.abs(unseen[:, None] - seen).min(axis=1).max())
    return np.array(gaps)


@pytest.mark.smoke
@pytest.mark.parametrize("resonance", [False, True])
def test_published_anchors(resonance: bool) -> None:
    posgen = RopeSpec(head_dim=64, resonance=resonance)
    llama2 = RopeSpec(head_dim=128, resonance=resonance)
    assert analysis.critical_dimension(posgen, 64) == 9
    assert analysis.critical_dimension(llama2, 4096) == 46
    assert f"{analysis.uniqueness(llama2, 4096):.3e}" == "7.058e+51"


def test_uniqueness_is_the_exact_least_common_multiple() -> None:
    """The nine pre-critical wavelengths of d = 64 at 64 tokens, factorized by hand."""
    spec = RopeSpec(head_dim=64, resonance=True)
    wavelengths = rope.frequencies(spec).wavelengths[:9].astype(int).tolist()
    assert wavelengths == [6, 8, 11, 15, 20, 26, 35, 47, 63]
    # 2^3 from 8, 3^2 from 63, then 5, 7, 11, 13 and 47 once each
    assert analysis.uniqueness(spec, 64) == 8 * 9 * 5 * 7 * 11 * 13 * 47
    assert analysis.uniqueness(spec, 5) == 1  # no feature is pre-critical


def test_features_repeat_together_after_the_uniqueness_and_not_before() -> None:
    spec = RopeSpec(head_dim=8, theta=30.0, resonance=True)  # wavelengths 6, 15, 34, 81
    period = analysis.uniqueness(spec, 40)
    assert period == math.lcm(6, 15, 34)
    cos, sin = (np.asarray(table)[:, :3] for table in rope.cos_sin(spec, np.arange(period + 1)))
    same = np.all((cos == cos[0]) & (sin == sin[0]), axis=1)
    assert np.flatnonzero(same).tolist() == [0, period]


def test_a_wavelength_equal_to_the_length_is_seen_whole() -> None:
    spec = RopeSpec(head_dim=64, resonance=True)  # feature 8 has 63 tokens
    assert analysis.critical_dimension(spec, 63) == 9
    assert analysis.critical_dimension(spec, 62) == 8
    assert analysis.feature_gap(spec, 63, 1000)[8] == 0.0
    assert analysis.feature_gap(spec, 62, 1000)[8] > 0.0


def test_gap_by_hand() -> None:
    """Wavelengths 6 and 63, trained on 4 tokens: residues 0..3 of both are seen."""
    spec = RopeSpec(head_dim=4, theta=100.0, resonance=True)
    # 6: residues 4 and 5 are both one token from a seen one, a sixth of a turn: chord 1
    # 63: of 4..9 the last is six tokens from 3
    np.testing.assert_allclose(
        analysis.feature_gap(spec, 4, 10), [1.0, 2 * math.sin(math.pi * 6 / 63)], rtol=1e-14
    )
    # once it wraps around, residue 33 is the worst, 30 from 3 and 30 from 63
    np.testing.assert_allclose(
        analysis.feature_gap(spec, 4, 64)[1], 2 * math.sin(math.pi * 30 / 63), rtol=1e-14
    )


def test_gap_is_between_zero_and_two_and_ignores_temperature() -> None:
    spec = RopeSpec(head_dim=32, attention_factor=3.0)
    gap = analysis.feature_gap(spec, 1, 1000)  # one seen phase: the other side is met
    assert np.all(gap[:8] > 1.9)
    assert np.all(gap <= 2.0)


def test_features_that_never_turn_have_no_gap() -> None:
    spec = RopeSpec(head_dim=8, scaling="proportional", partial_rotary_factor=0.5)
    assert analysis.feature_gap(spec, 10, 100)[2:].tolist() == [0.0, 0.0]
    assert analysis.critical_dimension(spec, 10**6) == 2


@given(spec=specs(), lengths=_lengths)
@settings(max_examples=60)
def test_gap_agrees_with_brute_force(spec: RopeSpec, lengths: tuple[int, int]) -> None:
    if spec.scaling == "proportional":
        return  # infinite wavelengths, see above
    np.testing.assert_allclose(
        analysis.feature_gap(spec, *lengths), brute_force_gap(spec, *lengths), atol=1e-9
    )


@pytest.mark.smoke
@given(spec=specs(resonance=True), lengths=_lengths, seq_len=st.one_of(st.none(), st.just(9999)))
def test_theorem_1(spec: RopeSpec, lengths: tuple[int, int], seq_len: int | None) -> None:
    """Under resonance the gap of every pre-critical feature is exactly 0."""
    pre_critical = analysis.is_pre_critical(spec, lengths[0], seq_len=seq_len)
    gap = analysis.feature_gap(spec, *lengths, seq_len=seq_len)
    assert gap[pre_critical].tolist() == [0.0] * int(pre_critical.sum())


@given(spec=specs(resonance=True, num_features=8), train_length=st.integers(1, 300))
@settings(max_examples=30)
def test_theorem_1_holds_for_the_computed_tables(spec: RopeSpec, train_length: int) -> None:
    """Unseen positions give pre-critical features bits that training has given them."""
    pre_critical = analysis.is_pre_critical(spec, train_length)
    unseen = np.random.default_rng(train_length).integers(train_length, 2**31 - 1, 400)
    positions = np.concatenate([np.arange(train_length), unseen])[:400].astype(np.int32)
    tables = _cos_sin(rope.phase_table(spec), positions)
    bits = np.stack([np.asarray(table).view(np.uint32) for table in tables], axis=-1)
    for feature in np.flatnonzero(pre_critical):
        seen = {tuple(pair) for pair in bits[:train_length, feature].tolist()}
        assert all(tuple(pair) in seen for pair in bits[train_length:, feature].tolist())


@given(spec=specs(), train_length=st.integers(1, 5000))
def test_rounding_makes_no_feature_post_critical(spec: RopeSpec, train_length: int) -> None:
    """A wavelength of at most L rounds to at most L."""
    plain = spec.with_method(spec.scaling, resonance=False)
    resonant = spec.with_method(spec.scaling, resonance=True)
    before = analysis.is_pre_critical(plain, train_length)
    assert np.all(analysis.is_pre_critical(resonant, train_length)[before])
    assert analysis.uniqueness(plain, train_length) == analysis.uniqueness(resonant, train_length)


def test_long_contexts_are_analyzed_exactly() -> None:
    """Feature 22 of LLaMA 2 nearly closes its circle; float32 angles would hide by how much."""
    gap = analysis.feature_gap(RopeSpec(head_dim=128), 4096, 131072)
    assert gap.shape == (64,)
    wavelength = rope.frequencies(RopeSpec(head_dim=128)).wavelengths[22]
    distances = analysis.unseen_distances(float(wavelength), 4096, 131072)
    assert gap[22] == pytest.approx(2 * math.sin(math.pi * distances.max() / wavelength))
    assert 0.015 < gap[22] < 0.025
    assert np.all(gap[:46] > 0)
    assert np.all(analysis.feature_gap(_LLAMA2, 4096, 131072)[:46] == 0)


@pytest.mark.parametrize(
    ("lengths", "said"),
    [
        ((0, 10), "train_length=0 must be an integer >= 1"),
        ((4.0, 10), "train_length=4.0 must be an integer"),
        ((10, 10), "test_length=10 must be an integer >= 11; give a length in tokens"),
        ((10, 2**31), "test_length=2147483648 must be an integer <= 16777216"),
        ((10**400, 2), "train_length=1000"),
    ],
)
def test_refuses_lengths(lengths: tuple[Any, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        analysis.feature_gap(_LLAMA2, *lengths)


def test_refuses_lengths_that_are_no_positions() -> None:
    for measure in (analysis.critical_dimension, analysis.uniqueness):
        with pytest.raises(ValueError, match="train_length=2147483648 must be an integer <= "):
            measure(_LLAMA2, 2**31)
    with pytest.raises(ValueError, match=r"near=65536 times .* pairs to compare"):
        analysis.coincidence(_LLAMA2, 2**17, 2**18, near=2**16)


def test_refuses_wavelengths_too_short_to_round() -> None:
    spec = RopeSpec(
        head_dim=4,
        scaling="longrope",
        original_context=64,
        short_factor=[0.1, 1.0],
        long_factor=[1.0, 1.0],
    )
    with pytest.raises(ValueError, match="resonance=True rounds the wavelength of feature 0"):
        analysis.uniqueness(spec, 64)


def test_coincidence_by_hand() -> None:
    """Wavelengths 6, 11 and 32: at 66 the first two are back at 0 and the third 2 tokens on."""
    spec = RopeSpec(
        head_dim=32,
        scaling="yarn",
        factor=4.0,
        original_context=32,
        beta_fast=2.0,
        beta_slow=1.0,
        resonance=True,
    )
    assert rope.frequencies(spec).wavelengths[:3].tolist() == [6, 11, 32]
    alike = analysis.coincidence(spec, 32, 128)
    assert alike.shape == (96,)
    assert alike[66 - 32] == pytest.approx((2 + math.cos(2 * math.pi * 2 / 32)) / 3, rel=1e-14)
    assert np.argmax(alike) == 66 - 32
    # where the nearest six distances matter, 66 + m is as much like m as 66 is like 0
    nearest = analysis.coincidence(spec, 32, 128, near=6)
    np.testing.assert_array_equal(nearest[66 - 32 : 72 - 32], alike[66 - 32])
    assert max(nearest[65 - 32], nearest[72 - 32]) < 0.8


@given(specs(), _lengths, st.integers(1, 6))
def test_coincidence_is_its_definition(spec: RopeSpec, lengths: tuple[int, int], near: int) -> None:
    train_length, test_length = lengths
    near = min(near, train_length)
    found = analysis.coincidence(spec, train_length, test_length, near=near)
    wavelengths = rope.frequencies(spec).wavelengths
    wavelengths = wavelengths[wavelengths <= train_length]
    if not wavelengths.size:
        assert np.isnan(found).all()
        return
    for distance in (train_length, (train_length + test_length) // 2, test_length - 1):
        expected = max(
            float(np.mean(np.cos(2 * np.pi * (distance - m) / wavelengths))) for m in range(near)
        )
        assert found[distance - train_length] == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("near", [0, 33, 1.5])
def test_coincidence_refuses(near: Any) -> None:
    with pytest.raises(ValueError, match=rf"^near={near}"):
        analysis.coincidence(RopeSpec(head_dim=32), 32, 128, near=near)
