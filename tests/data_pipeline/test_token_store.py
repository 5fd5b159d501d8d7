"""Token ids are made once, and again only when they have to be."""

import json
import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from rrope_jax.data.document import Document
from rrope_jax.data.local_text import LocalText
from rrope_jax.data.token_store import TokenStore, tokenize
from rrope_jax.data.tokenizers import Tokenizer, load_tokenizer
from tests.data_pipeline.samples import NAMES, TEXTS, WORDS


@pytest.fixture
def tokenizer(tokenizer_folder: Path) -> Tokenizer:
    return load_tokenizer(str(tokenizer_folder))


def _ids(store: TokenStore) -> list[list[int]]:
    return [ids.tolist() for ids in store.select(range(len(store.names)))]


EXPECTED = [[WORDS.index(word) + 3 for word in text.split()] for text in TEXTS]


class _Counting(LocalText):
    """Local text that knows how often it was read."""

    reads = 0

    def __iter__(self) -> Iterator[Document]:
        self.reads += 1
        return super().__iter__()


@pytest.fixture
def text(folder: Path) -> _Counting:
    return _Counting(str(folder), text_key="text")


class TestTokenize:
    @pytest.mark.parametrize("cached", [False, True])
    def test_ids_of_every_document(
        self, text: _Counting, tokenizer: Tokenizer, tmp_path: Path, cached: bool
    ) -> None:
        store = tokenize(text, tokenizer, cache_dir=str(tmp_path / "c") if cached else None)
        assert list(store.names) == NAMES
        assert _ids(store) == EXPECTED
        assert store.select([4, 1])[1].tolist() == EXPECTED[1]

    def test_special_tokens_around(self, text: _Counting, tokenizer: Tokenizer) -> None:
        assert _ids(tokenize(text, tokenizer, bos=True)) == [[1, *ids] for ids in EXPECTED]
        assert _ids(tokenize(text, tokenizer, eos=True)) == [[*ids, 2] for ids in EXPECTED]

    def test_special_token_that_is_not_there(self, text: _Counting, tokenizer: Tokenizer) -> None:
        tokenizer.eos_id = None
        with pytest.raises(ValueError, match=r"eos=True, but .* no such token; set eos=False"):
            tokenize(text, tokenizer, eos=True)

    def test_empty_documents_stay(self, tmp_path: Path, tokenizer: Tokenizer) -> None:
        (tmp_path / "a.txt").write_text("")
        text = LocalText(str(tmp_path), text_key="text")
        for cache_dir in (None, str(tmp_path / "cache")):
            assert _ids(tokenize(text, tokenizer, cache_dir=cache_dir)) == [[]]

    def test_large_ids(self, tmp_path: Path) -> None:
        class Wide:
            vocab_size = 2**17

            def encode(self, texts: list[str]) -> list[list[int]]:
                return [[2**17 - 1, 0] for _ in texts]

            def decode(self, ids: list[int]) -> str:
                raise NotImplementedError

        (tmp_path / "a.txt").write_text("x")
        wide = Tokenizer(Wide(), fingerprint="wide", bos_id=None, eos_id=None)  # type: ignore[arg-type]
        assert _ids(tokenize(LocalText(str(tmp_path), text_key="text"), wide)) == [[2**17 - 1, 0]]


class TestCache:
    def test_text_is_read_once(self, text: _Counting, tokenizer: Tokenizer, tmp_path: Path) -> None:
        first = tokenize(text, tokenizer, cache_dir=str(tmp_path / "c"))
        second = tokenize(text, tokenizer, cache_dir=str(tmp_path / "c"))
        assert text.reads == 1
        assert _ids(second) == EXPECTED
        assert isinstance(second.select([0])[0], np.memmap)
        assert first.fingerprint == second.fingerprint

    def test_in_memory_or_not_the_fingerprint_is_the_same(
        self, text: _Counting, tokenizer: Tokenizer, tmp_path: Path
    ) -> None:
        cached = tokenize(text, tokenizer, cache_dir=str(tmp_path / "c"))
        assert tokenize(text, tokenizer).fingerprint == cached.fingerprint

    def test_fingerprint_follows_tokens_and_names(self, folder: Path, tokenizer: Tokenizer) -> None:
        def fingerprint(**fields: bool) -> str:
            text = LocalText(str(folder), text_key="text")
            return tokenize(text, tokenizer, **fields).fingerprint  # type: ignore[arg-type]

        seen = [fingerprint(), fingerprint(bos=True)]
        (folder / "b.txt").write_text("two five six")
        seen.append(fingerprint())
        (folder / "b.txt").rename(folder / "bb.txt")
        seen.append(fingerprint())
        assert len(set(seen)) == 4

    def test_changed_text_tokenizer_or_special_tokens_are_made_anew(
        self, folder: Path, tokenizer: Tokenizer, tmp_path: Path
    ) -> None:
        cache_dir = str(tmp_path / "c")

        def ids(tokenizer: Tokenizer, **fields: bool) -> list[list[int]]:
            text = LocalText(str(folder), text_key="text")
            store = tokenize(text, tokenizer, cache_dir=cache_dir, **fields)  # type: ignore[arg-type]
            return _ids(store)

        assert ids(tokenizer) == EXPECTED
        assert ids(tokenizer, bos=True)[1] == [1, 4, 6, 8]
        assert ids(load_tokenizer("bytes"))[1] == list(b"two four six")
        (folder / "b.txt").write_text("seven")
        assert ids(tokenizer)[1] == [9]
        assert len(list(Path(cache_dir).iterdir())) == 4

    @pytest.mark.parametrize("name", ["tokens.bin", "sizes.npy", "store.json"])
    def test_damaged_cache_is_made_again(
        self,
        text: _Counting,
        tokenizer: Tokenizer,
        tmp_path: Path,
        name: str,
        caplog: pytest.LogCaptureFixture,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr(logging.getLogger("rrope_jax"), "propagate", True)
        cache_dir = tmp_path / "c"
        tokenize(text, tokenizer, cache_dir=str(cache_dir))
        (file,) = cache_dir.rglob(name)
        file.write_bytes(file.read_bytes()[:-7])
        assert _ids(tokenize(text, tokenizer, cache_dir=str(cache_dir))) == EXPECTED
        assert "is damaged and made again" in caplog.text

    def test_failure_leaves_nothing(
        self, folder: Path, tokenizer: Tokenizer, tmp_path: Path
    ) -> None:
        (folder / "z.jsonl").write_text(json.dumps({"no": "text"}))
        with pytest.raises(ValueError, match="has no string 'text'"):
            tokenize(
                LocalText(str(folder), text_key="text"), tokenizer, cache_dir=str(tmp_path / "c")
            )
        assert list((tmp_path / "c").iterdir()) == []

    def test_another_process_that_was_faster(
        self, folder: Path, tokenizer: Tokenizer, tmp_path: Path
    ) -> None:
        cache_dir = str(tmp_path / "c")

        class Late(LocalText):
            def __iter__(self) -> Iterator[Document]:
                tokenize(LocalText(str(folder), text_key="text"), tokenizer, cache_dir=cache_dir)
                return super().__iter__()

        store = tokenize(Late(str(folder), text_key="text"), tokenizer, cache_dir=cache_dir)
        assert _ids(store) == EXPECTED
        assert len(list(Path(cache_dir).iterdir())) == 1

    def test_folder_that_cannot_be_written(
        self, text: _Counting, tokenizer: Tokenizer, tmp_path: Path
    ) -> None:
        (tmp_path / "file").write_text("")
        with pytest.raises(ValueError, match=r"cache_dir='.*/file' cannot be used: .*; give"):
            tokenize(text, tokenizer, cache_dir=str(tmp_path / "file"))
