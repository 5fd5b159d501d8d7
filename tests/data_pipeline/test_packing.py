"""Rows of packed documents: every pair of neighbours once, none across documents."""

import itertools

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from rrope_jax.data.packing import PACKINGS, Rows

A, B = np.arange(10, 16), np.arange(20, 23)  # a0..a5, b0..b2


def _columns(rows: Rows, name: str) -> list[list[float]]:
    return [rows[i][name].tolist() for i in range(len(rows))]


class TestByHand:
    def test_documents(self) -> None:
        rows = Rows([A, B], length=4, packing="documents")
        assert _columns(rows, "tokens") == [[10, 11, 12, 13], [14, 20, 21, 0]]
        assert _columns(rows, "targets") == [[11, 12, 13, 14], [15, 21, 22, 0]]
        assert _columns(rows, "segment_ids") == [[1, 1, 1, 1], [1, 2, 2, 0]]
        assert _columns(rows, "positions") == [[0, 1, 2, 3], [0, 0, 1, 0]]
        assert _columns(rows, "weights") == [[1, 1, 1, 1], [1, 1, 1, 0]]

    def test_one_document_per_row(self) -> None:
        rows = Rows([A, B], length=4, packing="one_document_per_row")
        assert _columns(rows, "tokens") == [[10, 11, 12, 13], [14, 0, 0, 0], [20, 21, 0, 0]]
        assert _columns(rows, "targets") == [[11, 12, 13, 14], [15, 0, 0, 0], [21, 22, 0, 0]]
        assert _columns(rows, "segment_ids") == [[1, 1, 1, 1], [1, 0, 0, 0], [1, 1, 0, 0]]
        assert _columns(rows, "positions") == [[0, 1, 2, 3], [0, 0, 0, 0], [0, 1, 0, 0]]
        assert _columns(rows, "weights") == [[1, 1, 1, 1], [1, 0, 0, 0], [1, 1, 0, 0]]

    def test_document_that_just_fits_fills_one_row(self) -> None:
        # 4 places, 4 pairs, 5 tokens
        for packing in PACKINGS:
            rows = Rows([np.arange(5)], length=4, packing=packing)
            assert _columns(rows, "tokens") == [[0, 1, 2, 3]]
            assert _columns(rows, "targets") == [[1, 2, 3, 4]]

    def test_dtypes(self) -> None:
        row = Rows([A.astype(np.uint16)], length=4, packing="documents")[0]
        assert {name: array.dtype for name, array in row.items()} == {
            "tokens": np.int32,
            "targets": np.int32,
            "segment_ids": np.int32,
            "positions": np.int32,
            "weights": np.float32,
        }

    def test_summary_counts_what_is_left_over(self) -> None:
        summary = Rows([A, B, A[:1], A[:0]], length=4, packing="documents").summary
        assert (summary.documents, summary.tokens, summary.without_target) == (4, 10, 2)
        assert (summary.rows, summary.targets, summary.padding) == (2, 7, 1 / 8)
        assert str(summary) == (
            "4 documents, 2 without a target, 10 tokens, 7 targets in 2 rows (12.5% padding)"
        )


@given(
    sizes=st.lists(st.integers(0, 13), min_size=1, max_size=8),
    length=st.integers(1, 9),
    packing=st.sampled_from(sorted(PACKINGS)),
)
def test_every_pair_once_and_nothing_else(sizes: list[int], length: int, packing: str) -> None:
    # token 100 d + i is the i-th of document d, so a token says where it comes from
    documents = [100 * d + np.arange(size) for d, size in enumerate(sizes)]
    wanted = sorted(pair for tokens in documents for pair in itertools.pairwise(tokens))
    if not wanted:
        with pytest.raises(ValueError, match="nothing to predict"):
            Rows(documents, length=length, packing=packing)
        return
    rows = Rows(documents, length=length, packing=packing)
    found, places = [], 0
    for index in range(len(rows)):
        row = rows[index]
        assert {array.shape for array in row.values()} == {(length,)}
        used = row["weights"] == 1
        places += length
        assert (used == (row["segment_ids"] > 0)).all()
        assert not any(array[~used].any() for array in row.values())
        found += zip(row["tokens"][used], row["targets"][used], strict=True)
        for segment in range(1, row["segment_ids"].max() + 1):
            inside = row["segment_ids"] == segment
            assert len(set(row["tokens"][inside] // 100)) == 1
            assert row["positions"][inside].tolist() == list(range(inside.sum()))
        if packing == "one_document_per_row":
            assert row["segment_ids"].max() == 1
        elif index < len(rows) - 1:
            assert used.all()
    assert sorted(found) == wanted
    assert rows.summary.targets == len(wanted)
    assert rows.summary.padding == pytest.approx(1 - len(wanted) / places)


class TestRefusals:
    def test_unknown_packing(self) -> None:
        with pytest.raises(ValueError, match=r"packing='best' is unknown; choose one of documents"):
            Rows([A], length=4, packing="best")

    def test_length(self) -> None:
        with pytest.raises(ValueError, match="length=0 must be at least 1"):
            Rows([A], length=0, packing="documents")
