"""Text to ids and back."""

import json
import shutil
from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from rrope_jax.data.tokenizers import load_tokenizer, read_files
from rrope_jax.io.tokenizer_files import TokenizerFiles

FIVE_ONE = [7, 3]  # "five one" in the word tokenizer


class TestBytes:
    def test_ids_are_the_bytes_of_utf_8(self) -> None:
        tokenizer = load_tokenizer("bytes")
        assert tokenizer.encode("aé") == [97, 195, 169]
        assert (tokenizer.vocab_size, tokenizer.bos_id, tokenizer.eos_id) == (258, 256, 257)

    @given(st.text())
    def test_text_comes_back(self, text: str) -> None:
        tokenizer = load_tokenizer("bytes")
        ids = tokenizer.encode(text)
        assert all(0 <= i < 256 for i in ids)
        assert tokenizer.decode([256, *ids, 257]) == text

    def test_half_a_character_is_shown_as_such(self) -> None:
        assert load_tokenizer("bytes").decode([97, 195]) == "a\ufffd"


class TestHuggingFace:
    @pytest.mark.parametrize("name", ["", "tokenizer.json"])
    def test_folder_and_file(self, tokenizer_folder: Path, name: str) -> None:
        tokenizer = load_tokenizer(str(tokenizer_folder / name))
        assert tokenizer.encode("five one") == FIVE_ONE
        assert (tokenizer.vocab_size, tokenizer.bos_id, tokenizer.eos_id) == (10, 1, 2)

    def test_files_of_a_checkpoint(self, tokenizer_folder: Path) -> None:
        files = TokenizerFiles.of_folder(tokenizer_folder)
        assert files is not None
        tokenizer = load_tokenizer(files)
        assert tokenizer.encode("five one") == FIVE_ONE
        assert tokenizer.eos_id == 2

    def test_nothing_is_added_or_cut_off_though_the_file_asks_for_it(
        self, tokenizer_folder: Path
    ) -> None:
        # the file says: <s> first, </s> last, two tokens at most, padded to nine
        tokenizer = load_tokenizer(str(tokenizer_folder))
        assert tokenizer.encode("one two three four") == [3, 4, 5, 6]

    def test_many_texts_are_as_each_alone(self, tokenizer_folder: Path) -> None:
        tokenizer = load_tokenizer(str(tokenizer_folder))
        texts = ["one two", "", "seven", "two one"]
        ids = list(tokenizer.encode_all(iter(texts)))
        assert [i.tolist() for i in ids] == [[3, 4], [], [9], [4, 3]]
        assert {i.dtype for i in ids} == {np.dtype(np.int32)}

    def test_special_tokens_are_left_out_of_text(self, tokenizer_folder: Path) -> None:
        tokenizer = load_tokenizer(str(tokenizer_folder))
        assert tokenizer.decode(np.array([1, *FIVE_ONE, 2])) == "five one"

    def test_spelling_of_a_special_token_is_that_token(self, tokenizer_folder: Path) -> None:
        assert load_tokenizer(str(tokenizer_folder)).encode("five</s>") == [7, 2]

    def test_tokenizer_config_decides_over_special_tokens_map(
        self, tokenizer_folder: Path, tmp_path: Path
    ) -> None:
        folder = shutil.copytree(tokenizer_folder, tmp_path / "copy")
        (folder / "special_tokens_map.json").write_text(json.dumps({"bos_token": "</s>"}))
        assert load_tokenizer(str(folder)).bos_id == 1
        (folder / "tokenizer_config.json").write_text("{}")
        tokenizer = load_tokenizer(str(folder))
        assert (tokenizer.bos_id, tokenizer.eos_id) == (2, None)

    def test_fingerprint_follows_the_content(self, tokenizer_folder: Path, tmp_path: Path) -> None:
        folder = shutil.copytree(tokenizer_folder, tmp_path / "copy")
        before = load_tokenizer(str(tokenizer_folder)).fingerprint
        assert load_tokenizer(str(folder)).fingerprint == before
        file = folder / "tokenizer.json"
        file.write_text(file.read_text().replace('"seven"', '"eight"'))
        assert load_tokenizer(str(folder)).fingerprint != before

    def test_whether_the_file_asks_for_a_first_token(
        self, tokenizer_folder: Path, tmp_path: Path
    ) -> None:
        assert load_tokenizer(str(tokenizer_folder)).adds_bos
        folder = shutil.copytree(tokenizer_folder, tmp_path / "copy")
        content = json.loads((folder / "tokenizer.json").read_text())
        (folder / "tokenizer.json").write_text(json.dumps({**content, "post_processor": None}))
        assert not load_tokenizer(str(folder)).adds_bos
        assert not load_tokenizer("bytes").adds_bos

    @pytest.mark.parametrize("name", ["", "tokenizer.json"])
    def test_files_to_take_along(self, tokenizer_folder: Path, name: str) -> None:
        files = read_files(str(tokenizer_folder / name))
        assert files is not None
        assert dict(files.files) == {
            each: (tokenizer_folder / each).read_bytes()
            for each in ("tokenizer.json", "tokenizer_config.json")
        }


class TestRefusals:
    def test_nothing_there(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=r"tokenizer='.*/no' does not exist; give 'bytes'"):
            load_tokenizer(str(tmp_path / "no"))

    def test_folder_of_something_else(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="is no checkpoint"):
            load_tokenizer(str(tmp_path))

    def test_damaged_file(self, tmp_path: Path) -> None:
        (tmp_path / "tokenizer.json").write_text('{"version": "1.0", ')
        with pytest.raises(
            ValueError, match=r"cannot be read: .*; give a tokenizer.json"
        ) as caught:
            load_tokenizer(str(tmp_path))
        assert "\n" not in str(caught.value)

    def test_checkpoint_without_a_fast_tokenizer(self) -> None:
        with pytest.raises(ValueError, match=r"has no tokenizer\.json; write one"):
            load_tokenizer(TokenizerFiles({"tokenizer.model": b"x"}))
