"""Durations and sizes as people read them."""

import pytest

from rrope_jax.reporting.quantities import clock, gib, seconds_text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0:00:00"), (41.6, "0:00:42"), (3723, "1:02:03"), (90_000, "25:00:00")],
)
def test_clock(seconds: float, text: str) -> None:
    assert clock(seconds) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "-"),
        (5400, "1.5 h"),
        (90, "1.5 min"),
        (2, "2 s"),
        (0.0125, "12.5 ms"),
        (2e-5, "20 µs"),
    ],
)
def test_seconds_in_a_fitting_unit(seconds: float | None, text: str) -> None:
    assert seconds_text(seconds) == text


def test_gib() -> None:
    assert gib(1.5 * 2**30) == "1.50 GiB"
