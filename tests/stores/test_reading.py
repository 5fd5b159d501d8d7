"""Texts, tokenizers and models that are read from object stores."""

from pathlib import Path

import jax
import numpy as np
import pytest
import tokenizers
from flax import nnx

from rrope_jax.data.local_text import LocalText
from rrope_jax.data.tokenizers import load_tokenizer
from rrope_jax.io import local_copies, pretrained
from rrope_jax.io.description import Description
from rrope_jax.io.local_copies import checkpoint_here, text_here
from rrope_jax.io.orbax.layout import DESCRIPTION, description_to_json
from rrope_jax.io.orbax.store_checkpoints import StoreCheckpoints
from rrope_jax.io.stores import StoreError, StorePath, send
from tests.io import tiny
from tests.stores.object_server import Faults, ObjectServer


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RROPE_CACHE_DIR", str(tmp_path / "cache"))


def _names(source: str) -> list[str]:
    here = Path(text_here(source))
    files = [here] if here.is_file() else [path for path in here.rglob("*") if path.is_file()]
    return sorted(path.name for path in files)


def test_texts(folder: StorePath) -> None:
    for name in ("a.txt", "b.jsonl", "deep/c.txt", "other/d.txt"):
        (folder / name).write_text(f'{{"text": "{name}"}}\n')
    assert _names(str(folder)) == ["a.txt", "b.jsonl", "c.txt", "d.txt"]
    assert _names(f"{folder}/b.jsonl") == ["b.jsonl"]
    whole = LocalText(text_here(f"{folder}/**/*.txt"), text_key="text")
    assert [document.name for document in whole] == ["a.txt", "deep/c.txt", "other/d.txt"]
    with pytest.raises(ValueError, match=r"no object matches .*\.gz; give another"):
        text_here(f"{folder}/*.gz")


def test_copies_follow_the_store_and_are_the_same_everywhere(
    folder: StorePath, server: ObjectServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a.txt", "b.txt", "c.txt"):
        (folder / name).write_text(name)
    here = Path(text_here(str(folder)))
    before = LocalText(str(here), text_key="text").fingerprint
    read: list[str] = []
    monkeypatch.setattr(local_copies, "replace_file", lambda file, data: read.append(file.name))
    assert Path(text_here(str(folder))) == here
    assert read == []  # nothing has changed
    monkeypatch.undo()
    monkeypatch.setenv("RROPE_CACHE_DIR", str(tmp_path / "elsewhere"))
    for name, value in server.environment().items():
        monkeypatch.setenv(name, value)
    assert LocalText(text_here(str(folder)), text_key="text").fingerprint == before
    (folder / "b.txt").write_text("another")
    (folder / "c.txt").unlink()
    there = Path(text_here(str(folder)))
    assert [path.read_text() for path in sorted(there.iterdir())] == ["a.txt", "another"]
    assert LocalText(str(there), text_key="text").fingerprint != before


def test_models_of_all_formats(folder: StorePath, tmp_path: Path) -> None:
    decoder = tiny.decoder()
    params = nnx.to_pure_dict(nnx.state(decoder))
    for form, name in (("orbax", "native"), ("hf", "hf"), ("gguf", "model.gguf")):
        tiny.save(decoder, tmp_path / "out" / name, form)
    send(tmp_path / "out", folder)
    for name in ("native", "hf", "model.gguf"):
        read = pretrained.load_params(pretrained.open_source(f"{folder}/{name}"))
        jax.tree.map(np.testing.assert_array_equal, read, params)


def test_tokenizers(folder: StorePath, tmp_path: Path) -> None:
    vocabulary = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, "b": 1}, unk_token="a"))
    vocabulary.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "b"}')
    here = load_tokenizer(str(tmp_path))
    (folder / "tokenizer.json").write_bytes((tmp_path / "tokenizer.json").read_bytes())
    (folder / "tokenizer_config.json").write_text('{"eos_token": "b"}')
    for source in (f"{folder}/tokenizer.json", str(folder)):
        there = load_tokenizer(source)
        assert (there.fingerprint, there.eos_id) == (here.fingerprint, 1)


def test_training_run(folder: StorePath) -> None:
    """The newest whole checkpoint, without the optimizer's state, or the step that is named."""
    decoder = tiny.decoder()
    params = nnx.to_pure_dict(nnx.state(decoder))
    described = Description(decoder.config, decoder.rope, tiny.CONTEXT)
    metadata = {DESCRIPTION: description_to_json(described)}
    with StoreCheckpoints(folder / "checkpoints", keep=3) as store:
        for step in (1, 2, 3):
            moved = jax.tree.map(lambda x, step=step: x + step, params)
            store.save(step, {"params": moved, "opt_state": params}, metadata)
    (folder / "checkpoints/3/checksums/metadata").unlink()
    for path, step in ((folder, 2), (folder / "checkpoints" / "1", 1)):
        read = pretrained.load_params(pretrained.open_source(str(path)))
        moved = jax.tree.map(lambda x, step=step: x + step, params)
        jax.tree.map(np.testing.assert_array_equal, read, moved)
    copy = Path(checkpoint_here(str(folder)))
    chunks = [path.parent.name for path in copy.rglob("0*") if path.is_file()]
    assert chunks
    assert not [name for name in chunks if name.startswith("opt_state")]


def test_what_cannot_be_read(folder: StorePath, server: ObjectServer) -> None:
    with pytest.raises(ValueError, match=f"{folder}/absent does not exist"):
        pretrained.open_source(f"{folder}/absent")
    server.faults = Faults(forbidden=("GET", "HEAD"))
    with pytest.raises(StoreError, match="permission denied"):
        text_here(str(folder))
