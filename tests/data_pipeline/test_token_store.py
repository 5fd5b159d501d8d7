"""Token ids are made once, and again only when they have to be."""

import json
import logging
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from rrope_jax.data.document import Document
from rrope_jax.data.local_text import LocalText
from rrope_jax.data.token_store import Tokens, tokenize
from rrope_jax.data.tokenizers import Tokenizer, load_tokenizer
from tests.data_pipeline.samples import NAMES, TEXTS, WORDS


@pytest.fixture
def tokenizer(tokenizer_folder: Path) -> Tokenizer:
    return load_tokenizer(str(tokenizer_folder))


def _ids(tokens: Tokens) -> list[list[int]]:
    return [ids.tolist() for ids in tokens.arrays]


EXPECTED = [[WORDS.index(word) + 3 for word in text.split()] for text in TEXTS]


class _Counting(LocalText):
    """Local text that knows what was read of it."""

    reads: list[int]

    def read(self, indices: Iterable[int]) -> Iterator[Document]:
        for index in indices:
            self.reads.append(index)
            yield from super().read([index])


@pytest.fixture
def text(folder: Path) -> _Counting:
    text = _Counting(str(folder), text_key="text")
    text.reads = []
    return text


ALL = range(len(NAMES))


class TestTokenize:
    @pytest.mark.parametrize("cached", [False, True])
    def test_ids_of_every_document(
        self, text: _Counting, tokenizer: Tokenizer, tmp_path: Path, cached: bool
    ) -> None:
        cache_dir = str(tmp_path / "c") if cached else None
        tokens = tokenize(text, ALL, tokenizer, cache_dir=cache_dir)
        assert list(tokens.names) == NAMES
        assert _ids(tokens) == EXPECTED

    @pytest.mark.parametrize("cached", [False, True])
    def test_some_documents_in_the_order_asked_for(
        self, text: _Counting, tokenizer: Tokenizer, tmp_path: Path, cached: bool
    ) -> None:
        cache_dir = str(tmp_path / "c") if cached else None
        tokens = tokenize(text, [4, 1, 6], tokenizer, cache_dir=cache_dir)
        assert list(tokens.names) == [NAMES[4], NAMES[1], NAMES[6]]
        assert _ids(tokens) == [EXPECTED[4], EXPECTED[1], EXPECTED[6]]
        assert text.reads == (list(ALL) if cached else [1, 4, 6])

    def test_no_document(self, text: _Counting, tokenizer: Tokenizer) -> None:
        assert _ids(tokenize(text, [], tokenizer)) == []

    def test_special_tokens_around(self, text: _Counting, tokenizer: Tokenizer) -> None:
        assert _ids(tokenize(text, ALL, tokenizer, bos=True)) == [[1, *ids] for ids in EXPECTED]
        assert _ids(tokenize(text, ALL, tokenizer, eos=True)) == [[*ids, 2] for ids in EXPECTED]

    def test_special_token_that_is_not_there(self, text: _Counting, tokenizer: Tokenizer) -> None:
        tokenizer.eos_id = None
        with pytest.raises(ValueError, match=r"eos=True, but .* no such token; set eos=False"):
            tokenize(text, ALL, tokenizer, eos=True)

    def test_empty_documents_stay(self, tmp_path: Path, tokenizer: Tokenizer) -> None:
        (tmp_path / "a.txt").write_text("")
        text = LocalText(str(tmp_path), text_key="text")
        for cache_dir in (None, str(tmp_path / "cache")):
            assert _ids(tokenize(text, [0], tokenizer, cache_dir=cache_dir)) == [[]]

    def test_large_ids(self, tmp_path: Path) -> None:
        class Wide:
            vocab_size = 2**17

            def encode(self, texts: list[str]) -> list[list[int]]:
                return [[2**17 - 1, 0] for _ in texts]

            def decode(self, ids: list[int]) -> str:
                raise NotImplementedError

        (tmp_path / "a.txt").write_text("x")
        wide = Tokenizer(Wide(), fingerprint="wide", bos_id=None, eos_id=None)  # type: ignore[arg-type]
        text = LocalText(str(tmp_path), text_key="text")
        assert _ids(tokenize(text, [0], wide)) == [[2**17 - 1, 0]]


class TestCache:
    def test_text_is_read_once(self, text: _Counting, tokenizer: Tokenizer, tmp_path: Path) -> None:
        first = tokenize(text, ALL, tokenizer, cache_dir=str(tmp_path / "c"))
        second = tokenize(text, ALL, tokenizer, cache_dir=str(tmp_path / "c"))
        assert text.reads == list(ALL)
        assert _ids(second) == EXPECTED
        assert isinstance(second.arrays[0], np.memmap)
        assert first.fingerprint == second.fingerprint

    def test_in_memory_or_not_the_fingerprint_is_the_same(
        self, text: _Counting, tokenizer: Tokenizer, tmp_path: Path
    ) -> None:
        cached = tokenize(text, ALL, tokenizer, cache_dir=str(tmp_path / "c"))
        assert tokenize(text, ALL, tokenizer).fingerprint == cached.fingerprint

    def test_fingerprint_follows_tokens_names_and_order(
        self, folder: Path, tokenizer: Tokenizer
    ) -> None:
        def fingerprint(indices: Sequence[int] = ALL, *, bos: bool = False) -> str:
            text = LocalText(str(folder), text_key="text")
            return tokenize(text, indices, tokenizer, bos=bos).fingerprint

        seen = [fingerprint(), fingerprint(bos=True), fingerprint([1, 0]), fingerprint([0, 1])]
        (folder / "b.txt").write_text("two five six")
        seen.append(fingerprint())
        (folder / "b.txt").rename(folder / "bb.txt")
        seen.append(fingerprint())
        assert len(set(seen)) == 6

    def test_changed_text_tokenizer_or_special_tokens_are_made_anew(
        self, folder: Path, tokenizer: Tokenizer, tmp_path: Path
    ) -> None:
        cache_dir = str(tmp_path / "c")

        def ids(tokenizer: Tokenizer, **fields: bool) -> list[list[int]]:
            text = LocalText(str(folder), text_key="text")
            return _ids(tokenize(text, ALL, tokenizer, cache_dir=cache_dir, **fields))

        assert ids(tokenizer) == EXPECTED
        assert ids(tokenizer, bos=True)[1] == [1, 4, 6, 8]
        assert ids(load_tokenizer("bytes"))[1] == list(b"two four six")
        (folder / "b.txt").write_text("seven")
        assert ids(tokenizer)[1] == [9]
        assert len(list(Path(cache_dir).iterdir())) == 4

    @pytest.mark.parametrize("left", [0, -7])
    @pytest.mark.parametrize("name", ["tokens.bin", "documents.npy", "store.json"])
    def test_damaged_cache_is_made_again(
        self,
        text: _Counting,
        tokenizer: Tokenizer,
        tmp_path: Path,
        name: str,
        left: int,
        caplog: pytest.LogCaptureFixture,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr(logging.getLogger("rrope_jax"), "propagate", True)
        cache_dir = tmp_path / "c"
        tokenize(text, ALL, tokenizer, cache_dir=str(cache_dir))
        (file,) = cache_dir.rglob(name)
        file.write_bytes(file.read_bytes()[:left])
        assert _ids(tokenize(text, ALL, tokenizer, cache_dir=str(cache_dir))) == EXPECTED
        assert "is damaged and made again" in caplog.text

    def test_failure_leaves_nothing(
        self, folder: Path, tokenizer: Tokenizer, tmp_path: Path
    ) -> None:
        (folder / "z.jsonl").write_text(json.dumps({"no": "text"}))
        text = LocalText(str(folder), text_key="text")
        with pytest.raises(ValueError, match="has no string 'text'"):
            tokenize(text, ALL, tokenizer, cache_dir=str(tmp_path / "c"))
        assert list((tmp_path / "c").iterdir()) == []

    def test_another_process_that_was_faster(
        self, folder: Path, tokenizer: Tokenizer, tmp_path: Path
    ) -> None:
        cache_dir = str(tmp_path / "c")

        class Late(LocalText):
            def read(self, indices: Iterable[int]) -> Iterator[Document]:
                prompt = LocalText(str(folder), text_key="text")
                tokenize(prompt, ALL, tokenizer, cache_dir=cache_dir)
                return super().read(indices)

        late = Late(str(folder), text_key="text")
        assert _ids(tokenize(late, ALL, tokenizer, cache_dir=cache_dir)) == EXPECTED
        assert len(list(Path(cache_dir).iterdir())) == 1

    def test_folder_that_cannot_be_written(
        self, text: _Counting, tokenizer: Tokenizer, tmp_path: Path
    ) -> None:
        (tmp_path / "file").write_text("")
        with pytest.raises(ValueError, match=r"cache_dir='.*/file' cannot be used: .*; give"):
            tokenize(text, ALL, tokenizer, cache_dir=str(tmp_path / "file"))
