"""Laying documents into rows of one length.

A document of n tokens gives n - 1 pairs of an input and the token after it. Rows are cut from a
line of places on which every packing lays out all pairs of all documents, so none is lost and none
crosses from one document into another. With rows of 4, documents a0..a5 and b0..b2 become:

                              tokens                    targets
    documents             a0 a1 a2 a3 | a4 b0 b1 .    a1 a2 a3 a4 | a5 b1 b2 .
    one_document_per_row  a0 a1 a2 a3 | a4 .  .  . | b0 b1 .  .
                          a1 a2 a3 a4 | a5 .  .  . | b1 b2 .  .

A part of a document that begins a row cannot see the row before, so its positions start at 0 too.

N documents, T tokens of a row.
"""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

Row = dict[str, np.ndarray]
"""One row, or a batch of them: see `Rows`."""


def _documents(pairs_N: np.ndarray, length: int) -> np.ndarray:
    return pairs_N


def _one_document_per_row(pairs_N: np.ndarray, length: int) -> np.ndarray:
    return -(-pairs_N // length) * length


PACKINGS: dict[str, Callable[[np.ndarray, int], np.ndarray]] = {
    "documents": _documents,
    "one_document_per_row": _one_document_per_row,
}
"""Packing -> (pairs int64[N], row length) -> places that each document takes, int64[N]."""


@dataclasses.dataclass(frozen=True)
class Summary:
    """What became of the documents.

    Attributes:
      documents, tokens: all that were given.
      without_target: documents of fewer than two tokens, which have nothing to predict.
      rows: rows of one epoch.
      targets: tokens that are predicted in an epoch: all but the first of every document.
      padding: share of the places of an epoch that holds nothing.
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
    """Random-access rows of packed documents.

    A row is a dict of [T] arrays: `tokens`, `targets`, `segment_ids` (1, 2, ... by document, 0
    where padded), `positions` (from 0 in every document), all int32, and `weights`, float32, 1
    where there is a target and 0 where padded.
    """

    def __init__(self, documents: Sequence[np.ndarray], *, length: int, packing: str):
        """Lays documents out.

        Args:
          documents: int[N_d] tokens of each, in the order of packing.
          length: T.
          packing: a key of `PACKINGS`.

        Raises:
          ValueError: the length or packing is not allowed, or no document has two tokens.
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
            if low >= high:  # a document without a pair
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
