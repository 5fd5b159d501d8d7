"""Tables with another base, and tables of which some features do not turn."""

import math
from typing import Any

import numpy as np
import pytest

from rrope_jax.rope import RopeSpec, cos_sin, frequencies

# frequencies 1, 10^(-1/2), 10^(-1), ... at d = 16 and b = 10^4
_PLAIN = 10 ** (-np.arange(8) / 2)


def _inv_freq(scaling: str, **fields: Any) -> np.ndarray:
    return frequencies(RopeSpec(head_dim=16, scaling=scaling, **fields)).inv_freq


def test_nope_rotates_nothing() -> None:
    spec = RopeSpec(head_dim=16, scaling="nope", resonance=True)
    table = frequencies(spec)
    assert table.wavelengths.tolist() == [math.inf] * 8
    assert table.periods.tolist() == [0] * 8
    cos, sin = cos_sin(spec, np.array([0, 7, 2**31 - 1]))
    np.testing.assert_array_equal(cos, 1)
    np.testing.assert_array_equal(sin, 0)


def test_abf_is_plain_rope_with_its_base() -> None:
    assert _inv_freq("abf", abf_theta=5e5).tolist() == _inv_freq("none", theta=5e5).tolist()


def test_hardclip_stops_the_slowest() -> None:
    expected = np.where(np.arange(8) < 5, _PLAIN, 0)
    np.testing.assert_allclose(_inv_freq("hardclip", clipped_features=3), expected, rtol=1e-14)


def test_cope_by_hand() -> None:
    """A half-cosine over 5 features is 1, (1 + 1/sqrt 2)/2, 1/2, (1 - 1/sqrt 2)/2, 0."""
    half = math.sqrt(0.5)
    taper = [1, 1, 1, 1, (1 + half) / 2, 0.5, (1 - half) / 2, 0]
    clipped = _inv_freq("cope", clipped_features=5)
    np.testing.assert_allclose(clipped, _PLAIN * taper, rtol=1e-14)
    assert clipped[-1] == 0


def test_rope_id_by_hand() -> None:
    """The first four of eight features turn once in 32, 64, 128 and 256 tokens; L is 512."""
    table = frequencies(RopeSpec(head_dim=16, scaling="rope_id", original_context=512))
    np.testing.assert_allclose(table.wavelengths[:4], [32, 64, 128, 256], rtol=1e-14)
    assert table.inv_freq[4:].tolist() == [0.0] * 4
    few = _inv_freq("rope_id", original_context=64, shortest_wavelength=4.0)
    np.testing.assert_allclose(2 * math.pi / few[:4], [4, 8, 16, 32], rtol=1e-14)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"scaling": "abf"}, "abf_theta is not set, but scaling='abf' needs it"),
        ({"scaling": "abf", "abf_theta": 1.0}, "abf_theta=1.0 must be a finite number > 1"),
        ({"abf_theta": 5e5}, "abf_theta=500000.0 has no effect with scaling='none'"),
        ({"scaling": "cope"}, "clipped_features is not set"),
        ({"scaling": "cope", "clipped_features": 1}, "at least 2 with scaling='cope'"),
        ({"scaling": "hardclip", "clipped_features": 9}, "an integer from 1 to .* 16 rotated"),
        ({"scaling": "hardclip", "clipped_features": 0}, "an integer from 1 to"),
        ({"scaling": "rope_id"}, "original_context is not set"),
        (
            {"scaling": "rope_id", "original_context": 63},
            r"shortest_wavelength=32.0 must be at most half of original_context \(63\)",
        ),
        (
            {"scaling": "rope_id", "original_context": 64, "shortest_wavelength": 1.5},
            "shortest_wavelength=1.5 must be a finite number from 2",
        ),
        (
            {"scaling": "rope_id", "original_context": 64, "partial_rotary_factor": 0.125},
            "head_dim=16 must be such that more than 2 dimensions are rotated",
        ),
        (
            {"scaling": "dprope", "original_context": 2**21, "factor": 4.0},
            "original_context=2097152 must be at most 4194304 when multiplied by factor",
        ),
    ],
)
def test_refuses(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RopeSpec(head_dim=16, **fields)
