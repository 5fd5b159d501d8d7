"""Batches: shuffled, the same for any number of hosts, and continued exactly."""

import hashlib
import itertools
import json
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rrope_jax.data.document import Document
from rrope_jax.data.local_text import LocalText
from rrope_jax.data.packing import Row
from rrope_jax.data.pipeline import DataConfig, Text, TextBatches
from rrope_jax.data.tokenizers import Tokenizer, load_tokenizer
from tests.data_pipeline.samples import NAMES, TEXTS

ROOT = Path(__file__).parents[2]
Build = Callable[..., TextBatches]


# Rows of a batch of 8, by process.
SHARES: dict[str, list[tuple[int, ...]]] = {
    "one": [tuple(range(8))],
    "two": [(0, 1, 2, 3), (4, 5, 6, 7)],
    "eight": [(row,) for row in range(8)],
    "torus": [(0, 1, 4, 5), (2, 3, 6, 7)],
    "unequal": [(7, 0, 3), (6,), (5, 4, 2, 1)],
    "overlapping": [(0, 2, 4, 6), (0, 2, 4, 6), (1, 3, 5, 7), (1, 3, 5, 7)],
}


@pytest.fixture
def tokenizer() -> Tokenizer:
    return load_tokenizer("bytes")


@pytest.fixture
def source(tmp_path: Path) -> str:
    """40 documents of 1 to 40 bytes."""
    for i in range(40):
        (tmp_path / f"{i:02}.txt").write_text(chr(65 + i) * (i + 1))
    return str(tmp_path)


@pytest.fixture
def build(source: str, tokenizer: Tokenizer) -> Iterator[Build]:
    """Makes batches of 8 rows of 16, unless told otherwise, and closes them in the end."""
    made: list[TextBatches] = []

    def batches(
        rows: Sequence[int] | None = None,
        batch_size: int = 8,
        length: int = 16,
        **fields: Any,
    ) -> TextBatches:
        made.append(
            Text(DataConfig(source=source, **fields), tokenizer).batches(
                batch_size=batch_size, length=length, rows=rows
            )
        )
        return made[-1]

    yield batches
    for each in made:
        each.close()


def _take(batches: TextBatches, count: int) -> list[Row]:
    return list(itertools.islice(batches, count))


def _equal(one: list[Row], other: list[Row]) -> bool:
    return all(
        a.keys() == b.keys() and all(np.array_equal(a[k], b[k]) for k in a)
        for a, b in zip(one, other, strict=True)
    )


def _joined(shares: list[tuple[int, ...]], parts: list[list[Row]]) -> list[Row]:
    """The whole batches that processes have together."""
    joined = []
    for step in zip(*parts, strict=True):
        whole = {
            name: np.empty((8, *array.shape[1:]), array.dtype) for name, array in step[0].items()
        }
        for rows, part in zip(shares, step, strict=True):
            for name, array in part.items():
                whole[name][list(rows)] = array
        joined.append(whole)
    return joined


def _rows(batches: list[Row]) -> list[bytes]:
    """Every row of the batches, as bytes of its tokens and targets."""
    return [
        np.concatenate([tokens, targets]).tobytes()
        for batch in batches
        for tokens, targets in zip(batch["tokens"], batch["targets"], strict=True)
    ]


class TestBatches:
    def test_shapes_and_dtypes(self, build: Build) -> None:
        batch = next(build(rows=(1, 2, 4, 7)))
        assert {name: (array.shape, array.dtype.name) for name, array in batch.items()} == {
            "tokens": ((4, 16), "int32"),
            "targets": ((4, 16), "int32"),
            "segment_ids": ((4, 16), "int32"),
            "positions": ((4, 16), "int32"),
            "weights": ((4, 16), "float32"),
        }

    def test_every_epoch_has_the_same_rows_in_another_order(self, build: Build) -> None:
        batches = build()
        # 40 documents of n - 1 pairs: 780 pairs in 49 rows of 16, so batches straddle epochs
        rows = batches.summary.rows
        assert (rows, batches.summary.targets) == (49, 780)
        stream = _rows(_take(batches, 2 * rows))
        epochs = [stream[i * rows : (i + 1) * rows] for i in range(16)]
        assert len(stream) == 16 * rows
        assert len({tuple(sorted(epoch)) for epoch in epochs}) == 1
        assert len({tuple(epoch) for epoch in epochs}) == 16

    def test_first_epoch_has_every_pair_of_the_text_once(self, build: Build, source: str) -> None:
        batches = build(batch_size=7)
        found = []
        for batch in _take(batches, 7):
            used = batch["weights"] == 1
            found += zip(batch["tokens"][used], batch["targets"][used], strict=True)
        texts = [path.read_bytes() for path in Path(source).iterdir()]
        assert sorted(found) == sorted(pair for text in texts for pair in itertools.pairwise(text))

    def test_seed_decides(self, build: Build) -> None:
        first = _take(build(seed=3), 5)
        assert _equal(first, _take(build(seed=3), 5))
        assert not _equal(first, _take(build(seed=4), 5))

    def test_prefetch_and_cache_change_nothing(self, build: Build, tmp_path: Path) -> None:
        plain = _take(build(), 5)
        assert _equal(plain, _take(build(prefetch=7), 5))
        assert _equal(plain, _take(build(cache_dir=str(tmp_path / "cache")), 5))

    def test_heldout_documents_are_not_in_the_batches(self, build: Build) -> None:
        batches = build(heldout=("3?.txt",))
        assert batches.summary.documents == 30
        seen = {int(token) for batch in _take(batches, 10) for token in batch["tokens"].flat}
        assert seen == {0, *range(66, 95)}  # A has one byte, so no target; 30 to 39 are held out

    def test_the_order_is_that_of_earlier_releases(self, build: Build) -> None:
        """Runs that were begun with them go on with the same rows."""
        batches = _take(build(seed=7), 40)
        found = hashlib.sha256(b"".join(_rows(batches))).hexdigest()
        assert found[:16] == "144e636fb793d6ec"

    @pytest.mark.parametrize("shares", SHARES.values(), ids=SHARES.keys())
    def test_shares_together_make_the_same_batches(
        self, build: Build, shares: list[tuple[int, ...]]
    ) -> None:
        alone = _take(build(), 9)
        parts = [_take(build(rows), 9) for rows in shares]
        assert _equal(alone, _joined(shares, parts))


class TestResuming:
    @pytest.mark.parametrize("done", [0, 1, 6, 7, 30])
    def test_goes_on_exactly(self, build: Build, done: int) -> None:
        unbroken = _take(build(), done + 9)
        first = build()
        _take(first, done)
        state = json.loads(json.dumps(first.state()))
        second = build()
        second.restore(state)
        assert _equal(_take(second, 9), unbroken[done:])

    @pytest.mark.parametrize(
        ("before", "after"),
        [("one", "torus"), ("torus", "one"), ("two", "eight"), ("unequal", "torus")],
    )
    def test_goes_on_with_other_shares(self, build: Build, before: str, after: str) -> None:
        unbroken = _take(build(), 16)
        states = []
        for rows in SHARES[before]:
            batches = build(rows)
            _take(batches, 7)
            states.append(batches.state())
        assert all(state == states[0] for state in states)
        parts = []
        for rows in SHARES[after]:
            batches = build(rows)
            batches.restore(states[-1])
            parts.append(_take(batches, 9))
        assert _equal(_joined(SHARES[after], parts), unbroken[7:])

    @pytest.mark.parametrize("place", [None, -8, 12, 8.0, True, "8"])
    def test_what_is_no_place(self, build: Build, place: object) -> None:
        state = {**build().state(), "global_next_index": place}
        with pytest.raises(ValueError, match="which is no beginning of a batch of 8 rows"):
            build().restore(state)

    def test_places_are_those_of_earlier_releases(self, build: Build) -> None:
        """Checkpoints have them: the rows before the next batch, and what they belong to."""
        batches = build()
        _take(batches, 3)
        state = batches.state()
        assert state.keys() == {"data", "batch_size", "global_next_index"}
        assert (state["batch_size"], state["global_next_index"]) == (8, 24)

    def test_state_counts_what_was_given_not_what_was_made_ahead(self, build: Build) -> None:
        batches = build(prefetch=8)
        _take(batches, 3)
        assert batches.state()["global_next_index"] == 24

    def test_back_to_an_earlier_place(self, build: Build) -> None:
        batches = build()
        _take(batches, 2)
        state = batches.state()
        once = _take(batches, 4)
        batches.restore(state)
        assert _equal(once, _take(batches, 4))

    @pytest.mark.parametrize(
        ("fields", "key"),
        [
            ({"seed": 1}, "data"),
            ({"packing": "one_document_per_row"}, "data"),
            ({"heldout": ("07.txt",)}, "data"),
            ({"length": 8}, "data"),
            ({"eos": True}, "data"),
            ({"batch_size": 4}, "batch_size"),
        ],
    )
    def test_state_of_other_data(self, build: Build, fields: dict[str, Any], key: str) -> None:
        state = build().state()
        with pytest.raises(ValueError, match=rf"belongs to {key}=.* continue with the text"):
            build(**fields).restore(state)

    def test_changed_text(self, build: Build, source: str) -> None:
        state = build().state()
        (Path(source) / "05.txt").write_text("ABCDEF")
        with pytest.raises(ValueError, match="belongs to data="):
            build().restore(state)


class TestWaiting:
    def test_time_spent_waiting_is_counted(
        self, build: Build, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # a clock that says one second more at each look
        ticks = itertools.count()
        monkeypatch.setattr("rrope_jax.data.pipeline.time.perf_counter", lambda: next(ticks))
        batches = build()
        assert batches.waiting_seconds == 0
        _take(batches, 3)
        assert batches.waiting_seconds == 3


class TestHeldout:
    def test_whole_documents_by_name(self, folder: Path, tokenizer_folder: Path) -> None:
        config = DataConfig(source=str(folder), heldout=("b.txt", "e.jsonl:*"), bos=True, eos=True)
        found = Text(config, load_tokenizer(str(tokenizer_folder))).heldout
        assert [name for name, _ in found] == ["b.txt", "e.jsonl:1", "e.jsonl:3"]
        # with <s> before, without </s> after
        assert [ids.tolist() for _, ids in found] == [[1, 4, 6, 8], [1, 9, 8, 7], [1, 3, 3, 4]]
        assert {ids.dtype for _, ids in found} == {np.dtype(np.int32)}

    def test_all_of_a_source(self, folder: Path, tokenizer: Tokenizer) -> None:
        config = DataConfig(source=str(folder), heldout=("*",))
        found = Text(config, tokenizer).heldout
        assert [(name, bytes(ids.tolist()).decode()) for name, ids in found] == list(
            zip(NAMES, TEXTS, strict=True)
        )

    def test_nothing_held_out(self, folder: Path, tokenizer: Tokenizer) -> None:
        with pytest.raises(ValueError, match=r"no document .* held out; name some in heldout"):
            _ = Text(DataConfig(source=str(folder)), tokenizer).heldout

    @pytest.mark.parametrize("cached", [False, True])
    def test_opened_and_tokenized_once_for_both_parts(
        self,
        folder: Path,
        tokenizer: Tokenizer,
        tmp_path: Path,
        cached: bool,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        opened: list[str] = []
        read: list[int] = []

        class Counting(LocalText):
            def __init__(self, source: str, **keywords: Any):
                opened.append(source)
                super().__init__(source, **keywords)

            def read(self, indices: Iterable[int]) -> Iterator[Document]:
                indices = list(indices)
                read.extend(indices)
                return super().read(indices)

        monkeypatch.setattr("rrope_jax.data.text.LocalText", Counting)
        cache_dir = str(tmp_path / "cache") if cached else None
        config = DataConfig(source=str(folder), heldout=("b*", "e*"), cache_dir=cache_dir)
        text = Text(config, tokenizer)
        for _ in range(2):
            assert len(text.heldout) == 3
            with text.batches(batch_size=2, length=8) as batches:
                next(batches)
        assert opened == [str(folder)]
        assert sorted(read) == list(range(len(NAMES)))


class TestRefusals:
    @pytest.mark.parametrize(
        ("fields", "message"),
        [
            ({"packing": "best"}, "packing='best' is unknown; choose one of documents, one_docu"),
            ({"seed": -1}, r"seed=-1 must be from 0 to 2\^32 - 1"),
            ({"prefetch": 0}, "prefetch=0 must be at least 1"),
            ({"batch_size": 0}, "batch_size=0 must be at least 1"),
            ({"rows": (6, 7, 8)}, r"rows=\(6, 7, 8\) must be some of the 8 rows .* from 0 to 7"),
            ({"rows": ()}, r"rows=\(\) must be some of the 8 rows"),
            ({"heldout": ("*",)}, "nothing to predict in the 0 documents .* hold out less"),
        ],
    )
    def test_fields(self, build: Build, fields: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            build(**fields)


@pytest.mark.slow
def test_process_ends_though_nothing_was_closed(source: str) -> None:
    code = (
        "from rrope_jax.data.pipeline import *; from rrope_jax.data.tokenizers import *\n"
        f"text = Text(DataConfig(source={source!r}), load_tokenizer('bytes'))\n"
        "batches = text.batches(batch_size=2, length=8)\n"
        "print(next(batches)['tokens'].shape)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, cwd=ROOT
    )
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "(2, 8)", "")
