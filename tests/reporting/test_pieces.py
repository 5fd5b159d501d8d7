"""Finished pieces of a job: kept whole, and computed again where they are not."""

import json
from pathlib import Path
from typing import Any

import pytest

from rrope_jax.reporting.pieces import FinishedPieces
from rrope_jax.run.workdir import Workdir


@pytest.fixture
def workdir(tmp_path: Path) -> Workdir:
    return Workdir.joined(tmp_path)


@pytest.mark.parametrize("checksums", [False, True])
def test_a_piece_outlives_the_process(workdir: Workdir, checksums: bool) -> None:
    piece = {"losses": [1.5, 2.25], "text": "ä"}
    FinishedPieces(workdir, "units", checksums=checksums).put("a/b", piece)
    pieces = FinishedPieces(workdir, "units", checksums=checksums)
    assert pieces.get("a/b") == piece
    assert pieces.get("a/c") is None


@pytest.mark.parametrize("text", ["", "{", "null", "[]", '{"x": 2, "checksum": "0"}'])
def test_a_damaged_piece_counts_as_missing(
    workdir: Workdir, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    pieces = FinishedPieces(workdir, "units", checksums=True)
    pieces.put("a", {"x": 1})
    pieces.put("b", {"x": 2})
    (workdir.path / "units/a.json").write_text(text)
    assert pieces.get("a") is None
    assert f"{workdir.path / 'units/a.json'} is damaged" in caplog.text
    assert pieces.get("b") == {"x": 2}


def test_pieces_from_before_checksums_are_read(workdir: Workdir) -> None:
    workdir.write_text("units/a.json", json.dumps({"x": 1}))
    assert FinishedPieces(workdir, "units", checksums=True).get("a") == {"x": 1}


def test_a_piece_that_does_not_parse_counts_as_missing(
    workdir: Workdir, caplog: pytest.LogCaptureFixture
) -> None:
    def positive(value: Any) -> int:
        if value["x"] <= 0:
            raise ValueError("x is not positive")
        return int(value["x"])

    pieces = FinishedPieces(workdir, "cells")
    pieces.put("a", {"x": 3})
    pieces.put("b", {"x": -3})
    assert pieces.get("a", positive) == 3
    assert pieces.get("b", positive) is None
    assert "x is not positive" in caplog.text
