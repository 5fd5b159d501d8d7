"""Results that are computed in two ways."""

from typing import Any

import numpy as np

# Of the largest number. Processors, and programs of another shape, add up the same terms in other
# orders, and each order has its own rounding: 2^-24 a term, and some hundred terms one after the
# other in the layers of tiny models. Under AVX-512, AVX2 and SSE4.2, less than half was seen.
FLOAT32 = 2e-5


def without_seconds(value: Any) -> Any:
    """Results, or any part of them, without what clocks say."""
    if isinstance(value, list):
        return [without_seconds(each) for each in value]
    if not isinstance(value, dict):
        return value
    return {key: without_seconds(each) for key, each in value.items() if key != "seconds"}


def assert_close(found: Any, expected: Any, share: float = FLOAT32) -> None:
    """Asserts that arrays differ by at most a share of the largest expected number."""
    largest = np.max(np.abs(np.asarray(expected, np.float64)), initial=0.0)
    np.testing.assert_allclose(found, expected, rtol=0, atol=share * largest)
