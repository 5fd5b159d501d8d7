"""Frequencies of other implementations beside a checkpoint's."""

from pathlib import Path

import numpy as np
import pytest

from rrope_jax.inspection import against
from rrope_jax.inspection.positions import LayerPositions, Positions
from rrope_jax.rope import RopeSpec, frequencies

SPEC = RopeSpec(
    head_dim=64,
    theta=1e6,
    scaling="yarn",
    factor=4.0,
    original_context=8192,
    resonance=True,
)
LOCAL = RopeSpec(head_dim=64)
POSITIONS = Positions(
    {
        "full_attention": LayerPositions(SPEC, None, (1,)),
        "sliding_attention": LayerPositions(LOCAL, 512, (0,)),
        "nope": LayerPositions(None, None, (2,)),
    },
    context=32768,
    original_context=8192,
)
OURS = frequencies(SPEC).inv_freq


def compare(vector: np.ndarray, layer_type: str = "full_attention") -> against.Comparison:
    found = against.compare(vector, POSITIONS, layer_type)
    assert found is not None
    return found


def test_float32_is_the_same() -> None:
    found = compare(OURS.astype(np.float32).astype(np.float64))
    assert found.same
    assert found.is_also is None
    assert found.largest_difference < 1e-7  # half a unit of 24 bits is 6e-8


@pytest.mark.parametrize(
    ("vector", "expected"),
    [
        (frequencies(RopeSpec(head_dim=64, theta=1e6)).inv_freq, "without its scaling"),
        (frequencies(SPEC.with_method("yarn", resonance=False)).inv_freq, "without Resonance"),
        (frequencies(LOCAL).inv_freq, "the embedding of sliding_attention"),
        (frequencies(SPEC).wavelengths, "the wavelengths, not the frequencies"),
        (OURS / 4, "with all frequencies times 0.25"),
        (OURS * np.linspace(1, 1.1, 32), None),
    ],
)
def test_what_a_vector_is_instead(vector: np.ndarray, expected: str | None) -> None:
    found = compare(vector)
    assert not found.same
    assert found.is_also == expected or (expected and expected in (found.is_also or ""))


def test_angle_at_the_end_of_the_context() -> None:
    """The fastest feature, 1e-6 faster: 32,767 positions later, the angle is off by 0.034."""
    vector = OURS.copy()
    vector[0] *= 1 + 1e-6
    found = compare(vector)
    assert found.feature == 0
    assert found.angle == pytest.approx(32767 * 1e-6 * OURS[0], rel=1e-6)


def test_layers_without_rotation_are_not_compared() -> None:
    assert against.compare(OURS, POSITIONS, "nope") is None


def test_both_halves_of_a_head(tmp_path: Path) -> None:
    np.save(tmp_path / "twice.npy", np.concatenate([OURS, OURS]))
    assert np.array_equal(against.load(tmp_path / "twice.npy"), OURS)
