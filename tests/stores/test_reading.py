"""Texts, tokenizers and models that are read from object stores."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest
import tokenizers
from flax import nnx

from rrope_jax.data.local_text import LocalText
from rrope_jax.data.text import TextConfig, documents
from rrope_jax.data.tokenizers import load_tokenizer
from rrope_jax.evaluation.closed_ended import read_lines
from rrope_jax.evaluation.ruler.questions_file import read_questions
from rrope_jax.evaluation.ruler.word_lists import FILES, read_words
from rrope_jax.inspection.sources import inspect
from rrope_jax.io import local_copies, pretrained
from rrope_jax.io.description import Description
from rrope_jax.io.local_copies import checkpoint_here, text_here
from rrope_jax.io.orbax.layout import DESCRIPTION, description_to_json
from rrope_jax.io.orbax.store_checkpoints import StoreCheckpoints
from rrope_jax.io.stores import StoreError, StorePath, send
from rrope_jax.jobs.inspect import results_of
from rrope_jax.rope import frequencies
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
    whole = documents(TextConfig(source=f"{folder}/**/*.txt"))
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


def test_files_of_an_evaluation(folder: StorePath) -> None:
    line = {"input": "a", "instructions": ["b"], "outputs": ["c"]}
    (folder / "quiz.jsonl").write_text(json.dumps(line))
    assert read_lines(f"{folder}/quiz.jsonl") == [("a", ["b"], ["c"])]
    for name in FILES.values():
        (folder / "words" / name).write_text("one\ntwo\n")
    assert read_words(f"{folder}/words").nouns == ("one", "two")
    paragraph = {
        "context": "d",
        "qas": [{"question": "q", "is_impossible": False, "answers": [{"text": "e"}]}],
    }
    (folder / "squad.json").write_text(json.dumps({"data": [{"paragraphs": [paragraph]}]}))
    assert read_questions("squad", f"{folder}/squad.json").documents == ("d",)
    with pytest.raises(ValueError, match=f"{folder}/x does not exist"):
        read_questions("squad", f"{folder}/x")


def test_positions_are_inspected_without_weights(folder: StorePath, tmp_path: Path) -> None:
    decoder = tiny.decoder()
    for form in ("orbax", "hf"):
        tiny.save(decoder, tmp_path / "out" / form, form)
    np.save(tmp_path / "out" / "inv_freq.npy", frequencies(decoder.rope).inv_freq)
    send(tmp_path / "out", folder)
    there = folder / "hf" / "model.safetensors"
    assert there.is_file()
    there.write_bytes(b"damaged, and not read")
    for name in ("hf", "hf/config.json", "orbax"):
        here = results_of(inspect(tmp_path / "out" / name))
        assert results_of(inspect(f"{folder}/{name}")) == here | {"path": f"{folder}/{name}"}
    (comparison,) = results_of(inspect(f"{folder}/hf"), [f"{folder}/inv_freq.npy"])["layer_types"][
        "full_attention"
    ]["against"]
    assert comparison["same"]


def test_what_cannot_be_read(folder: StorePath, server: ObjectServer) -> None:
    with pytest.raises(ValueError, match=f"{folder}/absent does not exist"):
        pretrained.open_source(f"{folder}/absent")
    server.faults = Faults(forbidden=("GET", "HEAD"))
    with pytest.raises(StoreError, match="permission denied"):
        text_here(str(folder))
