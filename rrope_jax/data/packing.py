"""Packs documents into rows of equal length.

A document of n tokens has n - 1 pairs of an input token and its target, the next token. A packing
lays out the pairs of all documents in one long sequence, which is cut into rows. No pair is lost,
and none spans two documents. With rows of length 4, documents a0..a5 and b0..b2 become:

                              tokens                    targets
    documents             a0 a1 a2 a3 | a4 b0 b1 .    a1 a2 a3 a4 | a5 b1 b2 .
    one_document_per_row  a0 a1 a2 a3 | a4 .  .  . | b0 b1 .  .
                          a1 a2 a3 a4 | a5 .  .  . | b1 b2 .  .

Tokens cannot attend to the previous row, so when a document continues in a new row, its positions
start at 0 again.

Axes: N documents, T tokens per row.
"""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

Row = dict[str, np.ndarray]
"""One row or a batch of rows; see `Rows`."""


def _documents(pairs_N: np.ndarray, length: int) -> np.ndarray:
    return pairs_N


def _one_document_per_row(pairs_N: np.ndarray, length: int) -> np.ndarray:
    return -(-pairs_N // length) * length


PACKINGS: dict[str, Callable[[np.ndarray, int], np.ndarray]] = {
    "documents": _documents,
    "one_document_per_row": _one_document_per_row,
}
"""Functions from pairs per document, int64[N], and T to positions per document, int64[N]."""


@dataclasses.dataclass(frozen=True)
class Summary:
    """Statistics of packed documents.

    Attributes:
      documents, tokens: numbers of documents and of tokens before packing.
      without_target: number of documents with fewer than two tokens, which have no target.
      rows: number of rows in an epoch.
      targets: number of targets in an epoch: all tokens but the first of each document.
      padding: fraction of the positions in an epoch that are padding.
    """

    documents: int
    tokens: int
    without_target: int
    rows: int
    targets: int
    padding: float

    def __str__(self) -> str:
        left_out = f", {self.without_target} without a target" if self.without_target else ""
        return (
            f"{self.documents} documents{left_out}, {self.tokens} tokens, {self.targets} targets "
            f"in {self.rows} rows ({self.padding:.1%} padding)"
        )


class Rows:
    """A sequence of rows of packed documents.

    A row is a dict of [T] arrays: int32 `tokens`, `targets`, `segment_ids` (1, 2, ... by document;
    0 for padding) and `positions` (from 0 in each document), and float32 `weights` (1 for targets;
    0 for padding).
    """

    def __init__(self, documents: Sequence[np.ndarray], *, length: int, packing: str):
        """Computes the layout; rows are assembled on access.

        Args:
          documents: the tokens of each document, an integer array, in packing order.
          length: tokens per row, T.
          packing: a key of `PACKINGS`.

        Raises:
          ValueError: the length or packing is invalid, or no document has two tokens.
        """
        if packing not in PACKINGS:
            raise ValueError(f"packing={packing!r} is unknown; choose one of {', '.join(PACKINGS)}")
        if length < 1:
            raise ValueError(f"length={length} must be at least 1, the tokens of a row")
        sizes_N = np.array([len(document) for document in documents], np.int64)
        self._documents, self._length = documents, length
        self._pairs_N = np.maximum(sizes_N - 1, 0)
        ends_N = np.cumsum(PACKINGS[packing](self._pairs_N, length))
        self._starts_N = np.concatenate([[0], ends_N[:-1]]).astype(np.int64)
        self._stops_N = self._starts_N + self._pairs_N
        targets = int(self._pairs_N.sum())
        if not targets:
            raise ValueError(
                f"there is nothing to predict in the {len(documents)} documents to pack: a "
                "document needs two tokens; give more text or hold out less of it"
            )
        self._rows = -(-int(ends_N[-1]) // length)
        self.summary = Summary(
            documents=len(documents),
            tokens=int(sizes_N.sum()),
            without_target=int((self._pairs_N == 0).sum()),
            rows=self._rows,
            targets=targets,
            padding=1 - targets / (self._rows * length),
        )

    def __len__(self) -> int:
        return self._rows

    def count_targets(self) -> np.ndarray:
        """Counts the targets of every row, int64[R], without assembling the rows."""
        before_N = np.cumsum(self._pairs_N) - self._pairs_N
        borders = np.arange(self._rows + 1) * self._length
        document = np.searchsorted(self._starts_N, borders, side="right") - 1
        inside = np.minimum(borders - self._starts_N[document], self._pairs_N[document])
        targets_R: np.ndarray = np.diff(before_N[document] + inside)
        return targets_R

    def __getitem__(self, index: int) -> Row:
        length = self._length
        row = {
            name: np.zeros(length, np.int32)
            for name in ("tokens", "targets", "segment_ids", "positions")
        }
        begin, end = index * length, (index + 1) * length
        first = int(np.searchsorted(self._stops_N, begin, side="right"))
        last = int(np.searchsorted(self._starts_N, end, side="left"))
        segment = 0
        for document in range(first, last):
            start = int(self._starts_N[document])
            low, high = max(start, begin), min(int(self._stops_N[document]), end)
            if low >= high:  # a document without pairs
                continue
            segment += 1
            part = self._documents[document][low - start : high - start + 1]
            place = slice(low - begin, high - begin)
            row["tokens"][place] = part[:-1]
            row["targets"][place] = part[1:]
            row["segment_ids"][place] = segment
            row["positions"][place] = np.arange(high - low)
        row["weights"] = (row["segment_ids"] > 0).astype(np.float32)
        return row
