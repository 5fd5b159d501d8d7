"""Which source a row comes from: hand-worked periods, exact shares of every prefix."""

from fractions import Fraction
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rrope_jax.data.interleaving import PERIOD, Interleaving, quotas


# Windows of quotas 3, 2, 1: [0, 2) [2, 4) [4, 6); [0, 3) [3, 6); [0, 6).
@pytest.mark.parametrize(
    ("quota", "sources"),
    [
        ((1,), [0, 0, 0]),
        ((1, 1), [0, 1, 0, 1]),
        ((3, 1), [0, 0, 0, 1, 0, 0, 0, 1]),
        ((3, 2, 1), [0, 1, 0, 1, 0, 2, 0, 1, 0, 1, 0, 2]),
    ],
)
def test_by_hand(quota: tuple[int, ...], sources: list[int]) -> None:
    rows = Interleaving(quota)
    assert [rows.place(row)[0] for row in range(len(sources))] == sources


@given(st.lists(st.integers(1, 30), min_size=1, max_size=7), st.integers(0, 10**12))
def test_every_prefix_has_its_shares_rounded_down_or_up(quota: list[int], start: int) -> None:
    rows, period = Interleaving(quota), sum(quota)
    for count in range(start, start + period):
        counts = rows.counts(count)
        assert sum(counts) == count
        for of_source, share in zip(counts, quota, strict=True):
            assert count * share // period <= of_source <= -(-count * share // period)


@given(st.lists(st.integers(1, 30), min_size=1, max_size=7), st.integers(0, 10**12))
def test_each_source_is_read_row_after_row(quota: list[int], start: int) -> None:
    rows = Interleaving(quota)
    for row in range(start, start + sum(quota)):
        source, number = rows.place(row)
        before, after = rows.counts(row), rows.counts(row + 1)
        assert number == before[source]
        assert [b - a for a, b in zip(before, after, strict=True)] == [
            int(s == source) for s in range(len(quota))
        ]


def test_quotas_are_rounded_by_the_largest_remainder() -> None:
    assert quotas({"a": Fraction(5), "b": Fraction(5)}) == (1, 1)
    thirds = quotas({"a": Fraction(1), "b": Fraction(1), "c": Fraction(1)})
    assert sorted(thirds) == [PERIOD // 3, PERIOD // 3, PERIOD // 3 + 1]
    assert quotas({"a": Fraction(PERIOD * 2 - 1), "b": Fraction(1)}) == (PERIOD - 1, 1)


def test_a_source_without_a_row_is_refused() -> None:
    with pytest.raises(ValueError, match=r"sources\.tiny: its weight gives it 1e-06 of the rows"):
        quotas({"most": Fraction(10**6), "tiny": Fraction(1)})


def test_small_sources_are_spread_out() -> None:
    rows = Interleaving((7, 1))
    places = [row for row in range(80) if rows.place(row)[0] == 1]
    assert {after - before for before, after in pairwise(places)} == {8}
