"""Several texts in one run: their shares, buckets and epochs, and that it goes on exactly."""

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rrope_jax.data.config import MixtureConfig, WeightedSource
from rrope_jax.data.corpus import Corpus
from rrope_jax.data.mixture import MixedBatches, Mixture
from rrope_jax.data.packing import Row
from rrope_jax.data.pipeline import DataConfig, Text
from rrope_jax.data.tokenizers import load_tokenizer

LENGTH = 16
BYTES = load_tokenizer("bytes")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Text `a` has documents of 1 to 40 times the letter a, `b` one of 3,000 b."""
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    for size in range(1, 41):
        (tmp_path / "a" / f"{size:02}.txt").write_text("a" * size)
    (tmp_path / "b" / "long.txt").write_text("b" * 3000)
    (tmp_path / "b" / "out.txt").write_text("b" * 100)
    return tmp_path


def _config(folder: Path, **sources: dict[str, Any]) -> MixtureConfig:
    return MixtureConfig(
        sources={
            name: WeightedSource(**({"source": str(folder / name[0])} | fields))
            for name, fields in sources.items()
        },
        seed=5,
    )


def _mixture(folder: Path, **sources: dict[str, Any]) -> Mixture:
    return Mixture(_config(folder, **sources), BYTES)


@pytest.fixture
def batches(folder: Path) -> Iterator[Any]:
    made: list[MixedBatches] = []

    def make(mixture: Mixture | None = None, **arguments: Any) -> MixedBatches:
        mixture = mixture or _mixture(
            folder,
            a={"weight": 3.0, "packing": "one_document_per_row"},
            b={"weight": 1.0, "heldout": ("out.txt",)},
        )
        made.append(mixture.batches(**({"batch_size": 8, "length": LENGTH} | arguments)))
        return made[-1]

    yield make
    for each in made:
        each.close()


def _take(batches: MixedBatches, count: int) -> list[Row]:
    return list(itertools.islice(batches, count))


def _equal(one: list[Row], other: list[Row]) -> bool:
    return all(
        a.keys() == b.keys() and all(np.array_equal(a[k], b[k]) for k in a)
        for a, b in zip(one, other, strict=True)
    )


def _targets(batches: list[Row], letter: str) -> int:
    return sum(int(np.sum(batch["targets"] == ord(letter))) for batch in batches)


def test_weights_are_shares_of_targets_and_the_table_is_what_was_read(batches: Any) -> None:
    """Though rows of `a` are padded: 40 documents, of up to 39 targets, in 69 rows of 16."""
    mixed = batches()
    read = _take(mixed, 300)
    a, b = _targets(read, "a"), _targets(read, "b")
    assert a / (a + b) == pytest.approx(0.75, abs=2e-3)  # `a` ends within an epoch
    table = {each.name: each for each in mixed.read()}
    assert {name: each.targets for name, each in table.items()} == {"a": a, "b": b}
    assert sum(each.rows for each in table.values()) == 2400
    assert table["a"].share == a / (a + b)
    assert table["a"].epochs == table["a"].rows / 69
    assert table["b"].epochs == pytest.approx(b / 2999, rel=1e-2)
    assert mixed.summary.targets == 780 + 2999


def test_every_batch_has_the_shares(batches: Any) -> None:
    """As near as whole rows can be: the rows of `b` in a batch of 8 differ by one at most."""
    counts = {int(np.sum(batch["tokens"][:, 0] == ord("b"))) for batch in _take(batches(), 200)}
    assert max(counts) - min(counts) == 1


def test_each_text_has_the_rows_that_it_has_alone(folder: Path, batches: Any) -> None:
    mixed = _take(batches(), 20)
    rows = [row for batch in mixed for row in batch["targets"] if row[0] == ord("a")]
    config = DataConfig(source=str(folder / "a"), packing="one_document_per_row", seed=5)
    with Text(config, BYTES).batches(batch_size=1, length=LENGTH) as alone:
        expected = [next(alone)["targets"][0] for _ in rows]
    assert len(rows) > 69  # more than an epoch
    np.testing.assert_array_equal(rows, expected)


@pytest.mark.parametrize("done", [0, 7, 30])
def test_goes_on_exactly_with_other_shares_of_the_rows(batches: Any, done: int) -> None:
    unbroken = _take(batches(), done + 9)
    first = batches(rows=(5, 1))
    _take(first, done)
    state = json.loads(json.dumps(first.state()))
    assert state.keys() == {"data", "batch_size", "global_next_index"}
    second = batches(rows=(3, 0, 6))
    second.restore(state)
    assert second.read() == first.read()
    part = [{name: x[[3, 0, 6]] for name, x in batch.items()} for batch in unbroken[done:]]
    assert _equal(_take(second, 9), part)


@pytest.mark.parametrize(
    "fields",
    [{"weight": 2.0}, {"min_tokens": 2}, {"heldout": ("03.txt",)}, {"packing": "documents"}],
)
def test_state_of_another_mixture_is_refused(
    folder: Path, batches: Any, fields: dict[str, Any]
) -> None:
    a = {"weight": 3.0, "packing": "one_document_per_row"}
    b: dict[str, Any] = {"weight": 1.0}
    state = batches(_mixture(folder, a=a, b=b)).state()
    # the order of the groups is no part of it
    batches(_mixture(folder, b=b, a=a)).restore(state)
    with pytest.raises(ValueError, match="belongs to data="):
        batches(_mixture(folder, a=a | fields, b=b)).restore(state)


@pytest.mark.parametrize("cached", [False, True])
def test_buckets_of_one_text_are_read_once(
    folder: Path, batches: Any, cached: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = []
    plain = Corpus.__init__

    def counting(self: Corpus, *arguments: Any) -> None:
        opened.append(arguments)
        plain(self, *arguments)

    monkeypatch.setattr(Corpus, "__init__", counting)
    buckets = {
        "a_short": {"weight": 1.0, "max_tokens": 16},
        "a_long": {"weight": 1.0, "min_tokens": 17, "packing": "one_document_per_row"},
    }
    config = _config(folder, **buckets)
    object.__setattr__(config, "cache_dir", str(folder / "cache") if cached else None)
    mixed = batches(Mixture(config, BYTES))
    assert len(opened) == 1
    read = _take(mixed, 40)
    table = {each.name: each for each in mixed.read()}
    # documents of up to 16 letters have 120 targets, the others 660
    assert table["a_long"].epochs == pytest.approx(table["a_short"].epochs * 120 / 660, rel=0.02)
    short = [row for batch in read for row in batch["segment_ids"] if row.max() > 1]
    assert short  # several documents in a row
    # but for the last row of each of its 18 epochs
    assert len(short) == table["a_short"].rows - 18


def test_heldout_documents_by_text_and_bucket(folder: Path) -> None:
    heldout = {"heldout": ("05.txt", "2?.txt")}
    mixture = _mixture(
        folder,
        a_short={"weight": 1.0, "max_tokens": 16, **heldout},
        a_long={"weight": 1.0, "min_tokens": 17, **heldout},
        b={"weight": 1.0},
    )
    assert {name: len(found) for name, found in mixture.heldout_by_source.items()} == {
        "a_short": 1,
        "a_long": 10,
    }
    assert mixture.heldout[0][0] == "a_long/20.txt"


@pytest.mark.parametrize(("steps", "refused"), [(69, False), (70, True)])
def test_a_text_that_is_too_short(folder: Path, batches: Any, steps: int, refused: bool) -> None:
    """Two epochs of `a` are 2 x 69 rows, and every second row is one of it."""
    mixture = _mixture(
        folder,
        a={"weight": 780 / 69, "packing": "one_document_per_row", "max_epochs": 2},
        b={"weight": 2999 / 188},
    )
    batches(mixture, batch_size=4)  # without steps nothing is known
    if not refused:
        batches(mixture, batch_size=4, steps=steps)
        return
    with pytest.raises(ValueError, match=r"sources\.a: max_epochs=2, .* 1.. rows .* has 69: 2.0"):
        batches(mixture, batch_size=4, steps=steps)


@pytest.mark.parametrize(
    ("sources", "message"),
    [
        ({}, "sources is empty"),
        ({"a-b": {"weight": 1.0}}, "'a-b' is no name of a source"),
        ({"a": {"weight": 0.0}}, "weight=0.0 must be a number above 0"),
        ({"a": {"weight": 1.0, "min_tokens": 0}}, "min_tokens=0 must be at least 1"),
        ({"a": {"weight": 1.0, "min_tokens": 9, "max_tokens": 8}}, "above max_tokens=8"),
        ({"c": {"weight": 1.0}}, r"sources\.c: source=.* is neither a file nor a folder"),
        ({"a": {"weight": 1.0, "min_tokens": 41}}, r"sources\.a: there is nothing to predict"),
    ],
)
def test_refused(
    folder: Path, batches: Any, sources: dict[str, dict[str, Any]], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        batches(_mixture(folder, **sources))


def test_nothing_held_out(folder: Path) -> None:
    with pytest.raises(ValueError, match="no document of the sources a, b is held out"):
        _ = _mixture(folder, b={"weight": 1.0}, a={"weight": 1.0}).heldout


_HELD_OUT = {"weight": 1.0, "heldout": ("05.txt",)}


@pytest.mark.parametrize("path", ["a", "linked", "hard", "a/*.txt"])
def test_what_one_text_holds_out_no_other_trains_on(folder: Path, path: str) -> None:
    (folder / "linked").symlink_to(folder / "a")
    (folder / "hard").mkdir()
    (folder / "hard" / "five.txt").hardlink_to(folder / "a" / "05.txt")
    name = "five.txt" if path == "hard" else "05.txt"
    other = {"weight": 1.0, "source": str(folder / path)}
    with pytest.raises(ValueError, match=rf"^sources\.a holds out '05.txt' .*/a', .* '{name}' of"):
        _mixture(folder, a=_HELD_OUT, z=other)
    _mixture(folder, a=_HELD_OUT, z=other | {"heldout": (name,)})
    _mixture(folder, a={**_HELD_OUT, "max_tokens": 9}, z=other | {"min_tokens": 10})


def test_a_line_that_one_text_holds_out_no_other_trains_on(folder: Path) -> None:
    file = folder / "lines.jsonl"
    file.write_text('{"text": "one", "answer": "1"}\n{"text": "two", "answer": "2"}\n')
    one, lines = {**_HELD_OUT, "source": str(file), "heldout": ("*:2",)}, {"source": str(file)}
    with pytest.raises(ValueError, match=r"sources\.one holds out 'lines.jsonl:2' "):
        _mixture(folder, one=one, two={"weight": 1.0, "heldout": ("*:1",), **lines})
    _mixture(folder, one=one, two={"weight": 1.0, "text_key": "answer", **lines})
