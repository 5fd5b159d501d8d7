"""What llama.cpp takes where a GGUF file says nothing of its tokenizer, and damaged keys."""

import json
import logging
from typing import Any

import pytest

from rrope_jax.data.tokenizers import Tokenizer, load_tokenizer
from rrope_jax.io.gguf import tokenizer as gguf_tokenizer
from rrope_jax.io.gguf import vocabulary as gguf_vocabulary
from rrope_jax.io.gguf.pre_tokenizers import PRE_TOKENIZERS
from rrope_jax.io.tokenizer.files import SCORES
from rrope_jax.io.tokenizer.sentencepiece import LeftmostFirst
from tests.io.vocabularies import CONTROL, LETTERS, byte_level, sentencepiece

TOKENS = [*LETTERS, *CONTROL]


def _loaded(metadata: dict[str, Any]) -> Tokenizer:
    files = gguf_tokenizer.tokenizer_files(metadata)
    assert files is not None
    return load_tokenizer(files)


def _read(metadata: dict[str, Any]) -> gguf_vocabulary.Vocabulary:
    vocabulary = gguf_vocabulary.read(metadata)
    assert vocabulary is not None
    return vocabulary


def _spelled(metadata: dict[str, Any], text: str) -> list[str]:
    tokens = metadata["tokenizer.ggml.tokens"]
    return [tokens[index] for index in _loaded(metadata).encode(text)]


@pytest.mark.parametrize(
    ("pre", "adds_bos", "whole"),
    [
        ("llama-bpe", True, True),
        ("llama3", True, True),
        ("tekken", True, True),
        ("smaug-bpe", False, False),
        ("qwen2", False, False),
        ("gpt-4o", False, False),
        ("smollm", False, False),
        ("gpt-2", False, False),
        ("default", False, False),
        (None, False, False),
    ],
)
def test_first_token_and_whole_words_follow_the_pre_tokenizer(
    pre: str | None, adds_bos: bool, whole: bool
) -> None:
    metadata = byte_level(pre=pre)
    tokenizer = _loaded(metadata)
    assert tokenizer.adds_bos is adds_bos
    assert tokenizer.bos_id == TOKENS.index("<|begin|>")
    assert _spelled(metadata, "abcd") == (["abcd"] if whole else ["ab", "cd"])
    # what the file says counts
    assert _loaded(byte_level(pre=pre, add_bos_token=not adds_bos)).adds_bos is not adds_bos


def test_default_cuts_otherwise_than_gpt_2() -> None:
    """Punctuation alone, digits in threes."""
    merges = ["1 2", "12 3"]
    tokens = [*LETTERS, ".", "Ġ.", "1234", *CONTROL]
    more = {"tokens": tokens, "token_type": None, "bos_token_id": None, "eos_token_id": None}
    cuts = {
        name: _spelled(byte_level(pre=name, merges=[*merges, "123 4", "Ġ ."], **more), "1234 .")
        for name in ("gpt-2", "default")
    }
    assert cuts == {"gpt-2": ["1234", "Ġ."], "default": ["123", "4", "Ġ", "."]}
    unnamed = byte_level(merges=[*merges, "123 4", "Ġ ."], **more)
    assert _spelled(unnamed, "1234 .") == cuts["default"]


def test_each_name_is_in_the_table_once() -> None:
    rows = {id(row): row for row in PRE_TOKENIZERS.values()}.values()
    names = [name for row in rows for name in row.names]
    assert len(set(names)) == len(names) == len(PRE_TOKENIZERS)


def test_special_tokens_that_a_file_leaves_out() -> None:
    vocabulary = _read(sentencepiece())
    assert vocabulary.ids == {"bos": 1, "eos": 2, "unknown": 0}
    assert vocabulary.adds_bos
    assert _loaded(sentencepiece()).bos_id == 1
    unnamed = _read(byte_level(bos_token_id=None, eos_token_id=None))
    assert (unnamed.ids["bos"], unnamed.ids["eos"]) == (11, 11)
    assert any("eos_token_id is left out" in note for note in unnamed.notes)
    glm = _read(byte_level(pre="glm4", bos_token_id=None))
    assert "bos" not in glm.ids


@pytest.mark.parametrize("name", ["padding", "unknown", "bos", "eos", "eot", "fim_pad"])
@pytest.mark.parametrize("index", [4294967295, 12, -1])
def test_special_tokens_beyond_the_vocabulary_are_passed_over(
    name: str, index: int, caplog: pytest.LogCaptureFixture
) -> None:
    plain = _read(sentencepiece())
    with caplog.at_level(logging.WARNING):
        metadata = sentencepiece(**{f"{name}_token_id": index})
        assert gguf_tokenizer.tokenizer_files(metadata) is not None
    assert f"tokenizer.ggml.{name}_token_id={index} is not one of the 12 tokens" in caplog.text
    assert _read(metadata).ids == plain.ids


def test_equal_scores_join_the_leftmost_pair_first() -> None:
    scores = [0.0] * 12
    assert _spelled(sentencepiece(scores=scores), "abcd") == ["▁a", "bc", "d"]
    scores[-1] = -5.0  # of ▁a
    tied = sentencepiece(scores=scores)
    assert _spelled(tied, "abcd") == ["▁", "ab", "cd"]
    assert _spelled(tied, "abcd</s>abcd") == ["▁", "ab", "cd", "</s>", "▁", "ab", "cd"]
    # a file without scores is one of equal ones
    assert _spelled(sentencepiece(scores=None), "ab") == ["▁a", "b"]
    # and with others, a tokenizer.json says all
    files = gguf_tokenizer.tokenizer_files(sentencepiece())
    assert files is not None
    assert SCORES not in files.files


def test_equal_scores_survive_a_round_trip() -> None:
    scores = [0.0] * 11 + [-5.0]
    files = gguf_tokenizer.tokenizer_files(sentencepiece(scores=scores))
    metadata = gguf_tokenizer.metadata_of(files, 14)
    assert metadata["tokenizer.ggml.scores"][:12] == scores
    assert _spelled(metadata, "abcd") == ["▁", "ab", "cd"]


def test_words_are_joined_as_the_whole_text_is() -> None:
    """Texts are cut at spaces only where no token goes across one."""
    tokens = {token: index for index, token in enumerate(["a", "▁", "a▁", "▁a", "aa"])}
    value = {
        "model": {"vocab": tokens, "unk_token": None},
        "added_tokens": [],
        "normalizer": {"normalizers": []},
    }
    exact = LeftmostFirst(value, [0.0] * 5)
    assert exact.encode("a a") == [tokens["a▁"], tokens["a"]]
    assert exact.encode(" aa") == [tokens["▁a"], tokens["a"]]


@pytest.mark.parametrize(
    ("pieces", "keys", "ends"),
    [
        (["<|im_end|>"], {}, ["</s>", "<|im_end|>"]),
        (["[end]"], {"eot_token_id": 12}, ["</s>", "[end]"]),
        (["[end]", "[more]"], {"eom_token_id": 13}, ["</s>", "[more]"]),
        (["<end_of_turn>", "<|eom_id|>"], {}, ["</s>", "<end_of_turn>", "<|eom_id|>"]),
        (["<|fim_pad|>", "<|file_sep|>"], {}, ["</s>", "<|fim_pad|>", "<|file_sep|>"]),
        (["<|end|>", "<|call|>", "<|return|>"], {}, ["</s>", "<|call|>", "<|return|>"]),
        (["<|end|>", "<|call|>"], {}, ["</s>", "<|end|>", "<|call|>"]),
        (["[end]"], {}, ["</s>"]),
    ],
)
@pytest.mark.parametrize("kind", [1, 3, 4])
def test_ends_of_a_text_by_key_and_by_spelling(
    pieces: list[str], keys: dict[str, int], ends: list[str], kind: int
) -> None:
    plain = sentencepiece()
    tokens = [*plain["tokenizer.ggml.tokens"], *pieces]
    more = {
        "tokens": tokens,
        "token_type": [*plain["tokenizer.ggml.token_type"], *[kind] * len(pieces)],
        "scores": [float(-index) for index in range(len(tokens))],
    }
    vocabulary = _read(sentencepiece(**more, **keys))
    assert [tokens[index] for index in vocabulary.ends] == ends
    # what ends a text by its spelling is no text, whatever the file says
    spelled = [tokens.index(each) for each in ends if each.startswith("<")]
    assert {vocabulary.kinds[index] for index in spelled} == {3}


def test_templates() -> None:
    metadata = sentencepiece() | {
        "tokenizer.chat_template": "D",
        "tokenizer.chat_template.tool_use": "T",
        "tokenizer.chat_templates": ["tool_use"],
    }
    files = gguf_tokenizer.tokenizer_files(metadata)
    assert files is not None
    config = json.loads(files.files["tokenizer_config.json"])
    assert config["chat_template"] == [
        {"name": "default", "template": "D"},
        {"name": "tool_use", "template": "T"},
    ]
    back = gguf_tokenizer.metadata_of(files, 12)
    assert {key: back.get(key) for key in metadata if "template" in key} == {
        key: value for key, value in metadata.items() if "template" in key
    }


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"merges": None}, "has no tokenizer.ggml.merges"),
        ({"merges": ["ab"]}, "is no pair"),
        ({"merges": ["a x"]}, "'a x' is no pair of tokens that make a third"),
        ({"merges": "a b"}, "merges must be an array"),
        ({"merges": [1, 2]}, "each entry a string"),
        ({"tokens": ["a", "a"], "token_type": None}, "'a' twice"),
        ({"tokens": "abc"}, "tokens must be an array"),
        ({"tokens": [1, 2]}, "tokens must be an array, and each entry a string"),
        ({"token_type": [1, 2]}, "token_type has 2 entries for 18 tokens"),
        ({"token_type": ["x"] * 18}, "token_type must be an array"),
        ({"scores": [0.0]}, "scores has 1 entries"),
        ({"scores": [float("nan")] * 18}, "not finite"),
        ({"model": 3}, "model=3 must be a string"),
        ({"pre": ["x"]}, "pre=.* must be a string"),
        ({"bos_token_id": "1"}, "bos_token_id=1 must be an integer"),
        ({"eos_token_id": [1, 2]}, "eos_token_id=.* must be an integer"),
        ({"add_bos_token": "yes"}, "add_bos_token=yes must be a bool"),
        ({"add_space_prefix": 2.5}, "add_space_prefix=2.5 must be a bool"),
        (
            {"pre": "glm4", "bos_token_id": None, "add_bos_token": True},
            "add_bos_token is true, but there is no tokenizer.ggml.bos_token_id",
        ),
    ],
)
def test_damaged_keys(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        gguf_tokenizer.tokenizer_files(byte_level(**keys))


def test_tokens_that_are_not_utf_8(caplog: pytest.LogCaptureFixture) -> None:
    """The model is read; its tokenizer is not."""
    tokens = [*LETTERS[:-1], b"\xff".decode(errors="surrogateescape"), *CONTROL]
    with caplog.at_level(logging.WARNING):
        assert gguf_tokenizer.tokenizer_files(byte_level(tokens=tokens)) is None
    assert "text that is not UTF-8" in caplog.text


def test_more_entries_than_tokens_are_left_out() -> None:
    longer = byte_level(token_type=[1] * 15 + [3] * 3 + [1, 1], scores=[0.0] * 20)
    assert _spelled(longer, "ab<|stop|>") == ["ab", "<|stop|>"]


def test_empty_tokens_have_names() -> None:
    tokens = [*LETTERS[:4], "", *LETTERS[5:], *CONTROL[:2], ""]
    found = _read(byte_level(tokens=tokens)).tokens
    assert (found[4], found[-1]) == ("[EMPTY_4]", "[EMPTY_17]")


def test_pairs_that_nothing_is_joined_to_do_not_matter() -> None:
    assert _spelled(byte_level(merges=["[NO] [MERGE]"]), "ab") == ["a", "b"]


def test_last_token_of_a_text() -> None:
    files = gguf_tokenizer.tokenizer_files(byte_level(add_eos_token=True, add_bos_token=True))
    assert files is not None
    metadata = gguf_tokenizer.metadata_of(files, len(TOKENS))
    assert metadata["tokenizer.ggml.add_eos_token"] is True
    assert metadata["tokenizer.ggml.add_bos_token"] is True
    assert load_tokenizer(files).adds_bos
    only_last = gguf_tokenizer.tokenizer_files(byte_level(add_eos_token=True, bos_token_id=16))
    assert only_last is not None
    assert not load_tokenizer(only_last).adds_bos
