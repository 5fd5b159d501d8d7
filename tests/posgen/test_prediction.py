"""What coincidences predict, against hand-worked and known cases."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rrope_jax.posgen import prediction
from rrope_jax.posgen.prediction import FOCUS, NEEDED_DISTANCE, predict
from rrope_jax.rope import RopeSpec, analysis


def _quick(**fields: Any) -> RopeSpec:
    """A head of posgen_quick; with a factor, YaRN as it has it in training."""
    yarn = {"scaling": "yarn", "factor": 4.0, "original_context": 32, "beta_fast": 2.0}
    return RopeSpec(head_dim=32, **yarn | fields)


def _predict(spec: RopeSpec, task: str = "recursive", **lengths: int) -> prediction.Prediction:
    return predict(
        spec, task=task, **{"j": 1, "k": 3, "train_length": 32, "test_length": 128} | lengths
    )


def test_distance_of_the_short_rule() -> None:
    assert NEEDED_DISTANCE["recursive"](1, 3) == 4  # 2 x_{l-1} - x_{l-5}
    assert NEEDED_DISTANCE["cot"](1, 3) == 3  # 2 x_{l-1} - x_{l-4}


def test_one_feature_of_six_tokens_by_hand() -> None:
    """Offsets of -3 to 3 in training, 6 is the first that looks the same: x_0 at position 10."""
    spec = RopeSpec(head_dim=2, resonance=True)
    found = _predict(spec, "cot", train_length=8, test_length=14)
    # 1 - cos is 1/2, 3/2 and 2 at offsets of 1, 2 and 3 tokens either way
    low, high = 0.0, 100.0
    for _ in range(80):
        a = (low + high) / 2
        left = 2 * math.exp(-a / 2) + 2 * math.exp(-3 * a / 2) + 2 * math.exp(-2 * a)
        low, high = (a, high) if left > 1 / FOCUS - 1 else (low, a)
    assert left == pytest.approx(1 / 99, rel=1e-9)
    by_offset = [math.exp(-a * (1 - math.cos(math.pi * o / 3))) for o in range(4, 10)]
    expected = 1 / (1 + 1 / 99 + np.cumsum(by_offset))
    np.testing.assert_allclose(found.retention_by_position, expected, rtol=1e-4)
    assert found.retention == pytest.approx(expected.mean(), rel=1e-4)
    assert found.cliff == 10
    assert found.worst == pytest.approx(1)  # e.g. distance 8 with distance 2
    assert found.gap == 0
    assert found.angles == 6


def test_cliffs_that_were_measured() -> None:
    """The steepest falls of models that were trained before there was a prediction."""
    assert _predict(_quick(resonance=True)).cliff == 71
    paper = RopeSpec(
        head_dim=64,
        scaling="yarn",
        factor=4.0,
        original_context=64,
        beta_fast=2.0,
        resonance=True,
    )
    assert _predict(paper, train_length=64, test_length=256).cliff == 125


def test_worst_is_the_coincidence_of_the_distances_that_are_used() -> None:
    spec = _quick()
    expected = analysis.coincidence(spec, 32, 128, near=5).max()
    assert _predict(spec).worst == pytest.approx(expected)


def test_a_gap_and_angles_are_those_of_features_that_turn() -> None:
    found = _predict(_quick())
    assert found.gap == pytest.approx(analysis.feature_gap(_quick(), 32, 128)[:3].max())
    assert found.angles == 3 * 128
    assert _predict(_quick(resonance=True)).gap == 0
    assert _predict(_quick(resonance=True)).angles == 6 + 11 + 32


def test_features_that_cannot_tell_tokens_apart_share_the_weight() -> None:
    """With 6 tokens a turn and 16 in training, no amplitude tells offset 6 from 0."""
    found = _predict(RopeSpec(head_dim=2, resonance=True), train_length=16, test_length=32)
    # offsets 0 and 6 up to position 16, with 12 from position 17, with 18 from 23, with 24 from 29
    shares = [1 / 2] + 6 * [1 / 3] + 6 * [1 / 4] + 3 * [1 / 5]
    assert found.retention_by_position == pytest.approx(shares)


def test_nothing_is_predicted_where_no_feature_turns() -> None:
    with pytest.raises(ValueError, match="no feature turns within train_length=5"):
        _predict(RopeSpec(head_dim=8), train_length=5)


@settings(max_examples=20, deadline=None)
@given(
    theta=st.floats(10, 1e5), half=st.integers(2, 12), needed=st.integers(1, 6), length=st.just(40)
)
def test_amplitudes_are_the_least_that_suffice(
    theta: float, half: int, needed: int, length: int
) -> None:
    spec = RopeSpec(head_dim=2 * half, theta=theta)
    offsets = np.arange(-needed, length - 1 - needed)
    apart = 1 - analysis.pre_critical_cosines(spec, length, offsets[offsets != 0])
    amplitudes = prediction._least_amplitudes(apart)

    def others(of_features: np.ndarray) -> float:
        return float(np.exp(-apart @ of_features).sum())

    assert (amplitudes >= 0).all()
    if not math.isclose(amplitudes.max(), amplitudes.min()):
        assert others(amplitudes) == pytest.approx(1 / FOCUS - 1, rel=1e-3)
    equal = np.full(apart.shape[1], amplitudes.sum() / apart.shape[1])
    assert others(equal) >= (1 / FOCUS - 1) * (1 - 1e-3)  # the same sum, shared evenly
    for index in range(amplitudes.size):  # nor shared as only one feature has it
        single = np.zeros(amplitudes.size)
        single[index] = amplitudes.sum()
        assert others((amplitudes + single) / 2) >= (1 / FOCUS - 1) * (1 - 1e-3)
