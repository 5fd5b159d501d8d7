"""Text to ids and back."""

import json
import logging
import shutil
from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from rrope_jax.data.tokenizers import load_tokenizer, read_files
from rrope_jax.io.tokenizer.files import TokenizerFiles
from tests.io.vocabularies import files, sentencepiece_json

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


class TestPrinting:
    """What follows a prompt is printed apart from it, and never half a character."""

    def test_broken_bytes_do_not_break_those_before_them(self) -> None:
        tokenizer = load_tokenizer(files(sentencepiece_json()))
        prompt = tokenizer.encode("a \U0001f600")
        byte = {value: 3 + value for value in range(256)}
        begun = [byte[0xF0], byte[0x9F]]
        assert tokenizer.decode([*prompt, *begun]) == "a \U0001f600\ufffd"
        assert tokenizer.decode_after(prompt, begun) == ""
        assert tokenizer.decode_after(prompt, [*begun, byte[0x98], byte[0x80]]) == "\U0001f600"
        assert tokenizer.decode_after(prompt, [*begun, *tokenizer.encode("b")]) == "\ufffd b"
        assert tokenizer.decode_after(prompt, [byte[0xFF], 1, byte[0xC3]]) == "\ufffd"

    def test_space_before_the_first_word_stays(self) -> None:
        tokenizer = load_tokenizer(files(sentencepiece_json()))
        prompt = tokenizer.encode("ab")
        assert tokenizer.decode(tokenizer.encode("ab")) == "ab"
        assert tokenizer.decode_after(prompt, tokenizer.encode("ab")) == " ab"

    def test_half_a_character_of_byte_level_tokens(self) -> None:
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        inner = Tokenizer(models.BPE({token: index for index, token in enumerate(alphabet)}, []))
        inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        inner.decoder = decoders.ByteLevel()
        inner.add_special_tokens(["<s>"])
        tokenizer = load_tokenizer(TokenizerFiles({"tokenizer.json": inner.to_str().encode()}))
        prompt, smile = tokenizer.encode("a \U0001f600"), tokenizer.encode("\U0001f600")
        for length in range(1, 4):
            assert tokenizer.decode_after(prompt, smile[:length]) == ""
        assert tokenizer.decode_after(prompt, smile) == "\U0001f600"
        assert tokenizer.decode_after(prompt, [*smile[:2], 256]) == "\ufffd"

    def test_half_a_character_of_bytes(self) -> None:
        tokenizer = load_tokenizer("bytes")
        assert tokenizer.decode_after([97], [98, 0xF0, 0x9F]) == "b"
        assert tokenizer.decode_after([97], [98, 0xFF]) == "b\ufffd"
        assert tokenizer.decode_after([97], []) == ""

    def test_a_decoder_that_changes_what_is_before(self) -> None:
        """WordPiece takes the space before a full stop away, so the start is another one."""
        inner = Tokenizer(models.WordLevel({"a": 0, " .": 1}, unk_token="a"))
        inner.decoder = decoders.Sequence([decoders.Fuse(), decoders.Replace("a .", "b.")])
        tokenizer = load_tokenizer(TokenizerFiles({"tokenizer.json": inner.to_str().encode()}))
        assert tokenizer.decode([0, 1]) == "b."
        assert tokenizer.decode_after([0], [1]) == " ."


class TestTokensBeyondTheModel:
    """A padding token that was added and never trained is no reason to refuse a checkpoint."""

    @pytest.fixture
    def padded(self, tokenizer_folder: Path, tmp_path: Path) -> Path:
        """The tokenizer with a padding token of id 10."""
        folder = shutil.copytree(tokenizer_folder, tmp_path / "padded")
        inner = Tokenizer.from_file(str(folder / "tokenizer.json"))
        inner.add_special_tokens(["<pad>"])
        inner.save(str(folder / "tokenizer.json"))
        return folder

    def test_text_without_them_is_read(
        self, padded: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        tokenizer = load_tokenizer(str(padded))
        with caplog.at_level(logging.WARNING):
            fitting = tokenizer.for_model(10)
        assert "ids up to 10 ('<pad>'), the model embeddings for 10" in caplog.text
        assert fitting.encode("five one") == FIVE_ONE
        assert (fitting.bos_id, fitting.eos_id, fitting.adds_bos) == (1, 2, True)
        with pytest.raises(ValueError, match="token '<pad>' of id 10, but the model has embedding"):
            fitting.encode("five <pad>")
        with pytest.raises(ValueError, match="token '<pad>' of id 10"):
            list(fitting.encode_all(["one", "<pad>"]))

    def test_a_model_with_embeddings_for_all(self, padded: Path) -> None:
        tokenizer = load_tokenizer(str(padded))
        assert tokenizer.for_model(11) is tokenizer
        # cached ids of one model are not those of another
        assert tokenizer.for_model(10).fingerprint != tokenizer.fingerprint

    def test_another_models_tokenizer(self, padded: Path) -> None:
        with pytest.raises(ValueError, match=r"^has 11 tokens, but the model's vocab_size is 9"):
            load_tokenizer(str(padded)).for_model(9)
        with pytest.raises(ValueError, match=r"^has 258 tokens, but the model's vocab_size is 99"):
            load_tokenizer("bytes").for_model(99)

    def test_ends_beyond_the_model(self) -> None:
        fitting = load_tokenizer("bytes").for_model(257)
        assert (fitting.bos_id, fitting.eos_id) == (256, None)
        assert fitting.encode("a") == [97]
        with pytest.raises(ValueError, match="no token that begins a text"):
            load_tokenizer("bytes").for_model(256).beginning(True)


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
