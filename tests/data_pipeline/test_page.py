"""docs/data.md: its code runs and its tables are complete."""

import dataclasses
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ml_collections import ConfigDict

from rrope_jax.cli.settings import from_config
from rrope_jax.data.config import MixtureConfig, ReadingConfig, SourceConfig
from rrope_jax.data.packing import PACKINGS, Rows
from rrope_jax.data.pipeline import DataConfig
from rrope_jax.data.posgen_tfds import Posgen, PosgenConfig

PAGE = (Path(__file__).parents[2] / "docs" / "data.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


@pytest.fixture
def books(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tokenizer_folder: Path) -> None:
    """What the page takes for granted, in the current folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "books").mkdir()
    (tmp_path / "books" / "emma.txt").write_text("one two three")
    (tmp_path / "books" / "others.txt").write_text("four five six")
    (tmp_path / "path/of/a").mkdir(parents=True)
    (tmp_path / "path/of/a/checkpoint").symlink_to(tokenizer_folder)


def test_field_table_is_complete() -> None:
    table = PAGE.partition("| field | means |\n")[2].partition("\n\n")[0]
    names = re.findall(r"`(\w+)`", "\n".join(row.split("|")[1] for row in table.splitlines()))
    assert sorted(names) == sorted(field.name for field in dataclasses.fields(DataConfig))


def test_config_of_the_page() -> None:
    scope: dict[str, Any] = {"config": ConfigDict(), "ConfigDict": ConfigDict}
    exec(BLOCKS[0], scope)
    made = from_config(DataConfig, scope["config"].data, "config.data")
    assert made == DataConfig(source="books/", heldout=("emma.txt",))


@pytest.mark.usefixtures("books")
def test_posgen_of_the_page(monkeypatch: pytest.MonkeyPatch) -> None:
    # fewer rows than the paper's, to save time
    small = PosgenConfig(
        name="cot", task="cot", train_sequences=4, validation_sequences=2, test_sequences=3
    )
    monkeypatch.setitem(Posgen.builder_configs, "cot", small)
    scope: dict[str, Any] = {}
    exec(BLOCKS[1], scope)
    assert len(scope["test"]) == 3
    assert scope["test"][0]["tokens"].shape == (256,)
    call = re.search(r"`(Posgen\(.*\))`", PAGE)
    assert call is not None
    made = eval(call[1], {"Posgen": Posgen, "PosgenConfig": PosgenConfig})
    assert made.builder_config.setting()["modulus"] == 7


@pytest.mark.usefixtures("books")
def test_batches_of_the_page() -> None:
    scope: dict[str, Any] = {}
    exec(BLOCKS[2], scope)
    assert len(BLOCKS) == 4
    assert scope["batch"]["tokens"].shape == (8, 4096)
    last = BLOCKS[2].splitlines()[-1].partition("#")
    ((name, ids),) = eval(last[0], scope)
    assert (name, ids.tolist(), ids.dtype) == ("emma.txt", [3, 4, 5], np.int32)


def test_mixture_of_the_page() -> None:
    scope: dict[str, Any] = {"config": ConfigDict(), "ConfigDict": ConfigDict}
    exec(BLOCKS[3], scope)
    made = from_config(MixtureConfig, scope["config"].data, "config.data")
    assert {name: source.weight for name, source in made.sources.items()} == {
        "books": 0.6,
        "short": 0.1,
        "code": 0.3,
    }
    assert (made.sources["books"].min_tokens, made.sources["short"].max_tokens) == (32768, 32767)
    own = re.search(r"Each has its own (.*?);(.*?)are those of all", PAGE, re.DOTALL)
    assert own is not None
    of_each, of_all = (set(re.findall(r"`(\w+)`", part)) for part in own.groups())
    assert of_each == {field.name for field in dataclasses.fields(SourceConfig)}
    assert of_all == {field.name for field in dataclasses.fields(ReadingConfig)}


@pytest.mark.parametrize("packing", PACKINGS)
def test_packing_table(packing: str) -> None:
    documents = [np.arange(10, 16), np.arange(20, 23)]
    words = {0: ".", **{10 + i: f"a{i}" for i in range(6)}, **{20 + i: f"b{i}" for i in range(3)}}
    rows = Rows(documents, length=4, packing=packing)
    cells = [
        ", ".join(f"`{' '.join(words[int(i)] for i in rows[r][name])}`" for r in range(len(rows)))
        for name in ("tokens", "targets")
    ]
    assert f"| `{packing}` | {cells[0]} | {cells[1]} |" in PAGE
