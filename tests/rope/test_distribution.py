"""DPRoPE's choice of the features that it interpolates."""

import numpy as np
import pytest

from rrope_jax.rope import RopeSpec, frequencies


@pytest.mark.parametrize(
    ("head_dim", "context", "factor", "divided"),
    [
        # from the code of the paper, 1180301012/DPRoPE, run once
        (32, 128, 4.0, [2, *range(6, 16)]),
        (64, 256, 2.0, [1, 3, 4, 5, 8, 10, *range(14, 32)]),
        (64, 256, 8.0, [4, 5, *range(12, 32)]),
        (64, 512, 4.0, [2, 4, 5, 10, 12, *range(14, 32)]),
    ],
)
def test_divides_the_features_that_the_code_of_the_paper_divides(
    head_dim: int, context: int, factor: float, divided: list[int]
) -> None:
    spec = RopeSpec(head_dim=head_dim, scaling="dprope", factor=factor, original_context=context)
    plain = frequencies(RopeSpec(head_dim=head_dim)).inv_freq
    expected = np.where(np.isin(np.arange(head_dim // 2), divided), plain / factor, plain)
    np.testing.assert_array_equal(frequencies(spec).inv_freq, expected)


def test_a_factor_of_1_changes_nothing() -> None:
    spec = RopeSpec(head_dim=32, scaling="dprope", factor=1.0, original_context=64)
    plain = frequencies(RopeSpec(head_dim=32)).inv_freq
    np.testing.assert_array_equal(frequencies(spec).inv_freq, plain)


def test_a_feature_whose_angles_are_all_seen_is_kept() -> None:
    """Wavelength 6: positions 0 to 23 show all six angles, interpolated ones show new ones."""
    spec = RopeSpec(
        head_dim=2, scaling="dprope", factor=2.0, original_context=24, theta=1e4, resonance=True
    )
    assert frequencies(spec).wavelengths.tolist() == [6.0]
