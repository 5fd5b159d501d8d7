"""Tokenizers are written as GGUF where llama.cpp makes the same tokens, or it is said."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from rrope_jax.data.tokenizers import load_tokenizer
from rrope_jax.io import pretrained
from rrope_jax.io.conversion import convert
from rrope_jax.io.gguf import tokenizer as gguf_tokenizer
from rrope_jax.io.gguf.pre_tokenizers import PRE_TOKENIZERS
from rrope_jax.io.tokenizer import chat_templates
from rrope_jax.io.tokenizer.end_of_text import end_ids
from rrope_jax.io.tokenizer.files import SCORES, TokenizerFiles
from tests.io import tiny
from tests.io.vocabularies import added, byte_level, files, sentencepiece, sentencepiece_json, size

EOT = "<|eot_id|>"


def _metadata(tokenizer: dict[str, Any], **config: Any) -> dict[str, Any]:
    return gguf_tokenizer.metadata_of(files(tokenizer, **config), size(tokenizer))


def _with(tokenizer: dict[str, Any], **model: Any) -> dict[str, Any]:
    return tokenizer | {"model": tokenizer["model"] | model}


def _byte_level_json(**model: Any) -> dict[str, Any]:
    """Of all bytes, with Llama 3's words."""
    made = gguf_tokenizer.tokenizer_files(byte_level(pre="llama-bpe"))
    assert made is not None
    tokenizer: dict[str, Any] = json.loads(made.files["tokenizer.json"])
    return _with(tokenizer, **model)


_STEPS = sentencepiece_json()["normalizer"]["normalizers"]
_REFUSED = {
    "digits": {"pre_tokenizer": {"type": "Digits", "individual_digits": True}},
    "words": {"pre_tokenizer": {"type": "Whitespace"}},
    "small letters": {
        "normalizer": {"type": "Sequence", "normalizers": [{"type": "Lowercase"}, *_STEPS]}
    },
    "compatibility forms": {
        "normalizer": {"type": "Sequence", "normalizers": [{"type": "NFKC"}, *_STEPS]}
    },
    "composed characters": {
        "normalizer": {"type": "Sequence", "normalizers": [{"type": "NFC"}, *_STEPS]}
    },
    "spaces around": {
        "normalizer": {
            "type": "Sequence",
            "normalizers": [{"type": "Strip", "strip_left": True, "strip_right": True}, *_STEPS],
        }
    },
    "many spaces": {
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                {"type": "Replace", "pattern": {"Regex": " +"}, "content": " "},
                *_STEPS,
            ],
        }
    },
    "quotes": {
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                {"type": "Replace", "pattern": {"String": "\u2019"}, "content": "'"},
                *_STEPS,
            ],
        }
    },
}


@pytest.mark.parametrize("name", _REFUSED)
def test_what_llama_cpp_would_cut_otherwise_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"llama\.cpp would make other tokens of a text: '.*' has"):
        _metadata(sentencepiece_json(**_REFUSED[name]))


def test_what_it_would_cut_alike_is_not() -> None:
    metadata = _metadata(sentencepiece_json(), bos_token="<s>", eos_token="</s>")
    assert metadata["tokenizer.ggml.model"] == "llama"


def test_tokens_that_nothing_is_joined_to() -> None:
    """llama.cpp joins whatever makes a token."""
    tokenizer = sentencepiece_json()
    with pytest.raises(ValueError, match=r"'12' has the ids .* and would have"):
        _metadata(_with(tokenizer, merges=[["a", "b"]]))


def test_whole_words() -> None:
    """Llama 3's expression without its way with whole words has another name."""
    listed = _byte_level_json(ignore_merges=False)
    metadata = _metadata(listed, eos_token="<|stop|>")
    assert metadata["tokenizer.ggml.pre"] == "smaug-bpe"
    back = gguf_tokenizer.tokenizer_files(metadata)
    assert back is not None
    assert load_tokenizer(back).encode("abcd") == load_tokenizer(files(listed)).encode("abcd")
    whole = _metadata(_byte_level_json(ignore_merges=True), eos_token="<|stop|>")
    assert whole["tokenizer.ggml.pre"] == "llama-bpe"
    digits = _byte_level_json(ignore_merges=True) | {
        "pre_tokenizer": PRE_TOKENIZERS["smollm"].value
    }
    with pytest.raises(ValueError, match="'abcd' has the ids"):
        _metadata(digits)
    # where it makes no difference, there is none
    plain = _with(digits, merges=[["a", "b"], ["c", "d"], ["ab", "cd"]])
    plain["model"]["vocab"] = {t: i for t, i in plain["model"]["vocab"].items() if t[:2] != "12"}
    assert _metadata(plain)["tokenizer.ggml.pre"] == "smollm"


_LIMITS = {
    "rstrip": sentencepiece_json(
        added_tokens=[*sentencepiece_json()["added_tokens"], added(268, EOT, rstrip=True)]
    ),
    "lstrip": sentencepiece_json(
        added_tokens=[*sentencepiece_json()["added_tokens"], added(268, EOT, lstrip=True)]
    ),
    "single_word": sentencepiece_json(
        added_tokens=[*sentencepiece_json()["added_tokens"], added(268, EOT, single_word=True)]
    ),
    "first": sentencepiece_json(
        normalizer=None,
        pre_tokenizer={
            "type": "Metaspace",
            "replacement": "▁",
            "prepend_scheme": "first",
            "split": False,
        },
    ),
}


@pytest.mark.parametrize("name", _LIMITS)
def test_limits_of_the_format_are_named(name: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        _metadata(_LIMITS[name], eos_token="</s>")
    assert "llama.cpp makes other tokens of some texts, since GGUF has no place" in caplog.text
    assert "would have" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        _metadata(sentencepiece_json(), eos_token="</s>")
    assert not caplog.text


def test_llama_cpps_own_forms_are_named(caplog: pytest.LogCaptureFixture) -> None:
    """It takes capitals of other alphabets for small letters, too."""
    value = PRE_TOKENIZERS["tekken"].value
    cased = _byte_level_json(ignore_merges=True) | {"pre_tokenizer": value}
    letters = ["Ã", "ī", "Ãī", "aÃī"]  # two bytes, which are an É, and one behind an a
    vocab = cased["model"]["vocab"]
    vocab = vocab | {letter: len(vocab) + index for index, letter in enumerate(letters)}
    merges = [*cased["model"]["merges"], ["Ã", "ī"], ["a", "Ãī"], ["ab", "cd"]]
    tokenizer = _with(cased, vocab=vocab, merges=merges)
    with caplog.at_level(logging.WARNING):
        metadata = _metadata(tokenizer, eos_token="<|stop|>")
    assert metadata["tokenizer.ggml.pre"] == "tekken"
    assert "llama.cpp's own form of 'tekken' cuts some texts otherwise" in caplog.text


def test_no_end_of_a_text(caplog: pytest.LogCaptureFixture) -> None:
    """llama.cpp takes one that nobody named."""
    with caplog.at_level(logging.WARNING):
        _metadata(sentencepiece_json())
    assert "eos_token_id is left out; llama.cpp then takes 2 ('</s>')" in caplog.text


def test_added_tokens_beyond_the_model(caplog: pytest.LogCaptureFixture) -> None:
    pad = added(268, "<pad>")
    tokenizer = sentencepiece_json(added_tokens=[*sentencepiece_json()["added_tokens"], pad])
    with caplog.at_level(logging.WARNING):
        metadata = gguf_tokenizer.metadata_of(files(tokenizer, eos_token="</s>"), 268)
    assert "1 tokens beyond the model's vocab_size of 268, such as '<pad>' of id 268" in caplog.text
    assert len(metadata["tokenizer.ggml.tokens"]) == 268
    assert "<pad>" not in metadata["tokenizer.ggml.tokens"]


TEMPLATES = [{"name": "tool_use", "template": "T"}, {"name": "default", "template": "D"}]


@pytest.mark.parametrize(
    ("config", "more"),
    [
        ({"chat_template": TEMPLATES}, {}),
        ({"chat_template": {"tool_use": "T", "default": "D"}}, {}),
        (
            {"chat_template": "old"},
            {"chat_template.json": json.dumps({"chat_template": TEMPLATES})},
        ),
        (
            {"chat_template": [TEMPLATES[0]]},
            {"chat_template.jinja": "D"},
        ),
        ({}, {"chat_template.jinja": "D", "additional_chat_templates/tool_use.jinja": "T"}),
    ],
)
def test_chat_templates(config: dict[str, Any], more: dict[str, str], tmp_path: Path) -> None:
    given = files(sentencepiece_json(), **config).files
    contents = {name: data.encode() for name, data in more.items()}
    TokenizerFiles({**given, **contents}).write(tmp_path)
    read = TokenizerFiles.of_folder(tmp_path)
    assert read is not None
    metadata = gguf_tokenizer.metadata_of(read, 268)
    assert metadata["tokenizer.chat_template"] == "D"
    assert metadata["tokenizer.chat_template.tool_use"] == "T"
    assert metadata["tokenizer.chat_templates"] == ["tool_use"]


@pytest.mark.parametrize("value", [3, [1], [{"name": "default"}], {"default": 1}])
def test_damaged_chat_templates(value: Any) -> None:
    with pytest.raises(ValueError, match=r"tokenizer_config\.json: chat_template must be"):
        chat_templates.read(files(sentencepiece_json()), {"chat_template": value})


def _saved(folder: Path, target_format: str, tokenizer: TokenizerFiles, eos: Any) -> Path:
    made = tiny.decoder(vocab_size=300)
    extras = {} if eos is None else {"eos_token_id": eos}
    return tiny.save(made, folder, target_format, tokenizer=tokenizer, extras=extras)


@pytest.mark.parametrize(
    ("config", "generation", "expected"),
    [
        (2, None, (2,)),
        ([2, 5], None, (2, 5)),
        (2, 5, (2, 5)),
        (2, [2, 5, 7], (2, 5, 7)),
        (None, [5, 2], (5, 2)),
        ([], [], ()),
        (-1, [5], (5,)),
    ],
)
def test_ends_of_a_text_in_every_format(
    config: Any, generation: Any, expected: tuple[int, ...], tmp_path: Path
) -> None:
    """What stops in one format stops in all of them."""
    contents = dict(files(sentencepiece_json()).files)
    if generation is not None:
        contents["generation_config.json"] = json.dumps({"eos_token_id": generation}).encode()
    first = _saved(tmp_path / "hf", "hf", TokenizerFiles(contents), config)
    assert end_ids(pretrained.describe(first)) == expected
    # llama.cpp ends at </s> in any case
    anyway = {*expected, 2}
    for path in ("gguf", "orbax", "again", "last"):
        convert(first, tmp_path / path, {"again": "hf", "last": "gguf"}.get(path, path))
        first = tmp_path / path
        found = end_ids(pretrained.describe(first))
        assert set(found) == anyway
    generation_config = (
        json.loads((tmp_path / "again" / "generation_config.json").read_text())
        if (tmp_path / "again" / "generation_config.json").exists()
        else {}
    )
    assert len(anyway) < 2 or set(generation_config["eos_token_id"]) == anyway


def test_more_ends_than_there_are_keys(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    given = files(sentencepiece_json(), eos_token="</s>")
    with caplog.at_level(logging.WARNING):
        _saved(tmp_path / "a", "gguf", given, [2, 5, 6, 7])
    assert "llama.cpp will not stop at [7]" in caplog.text
    assert end_ids(pretrained.describe(tmp_path / "a")) == (2, 5, 6)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"{", "generation_config.json cannot be read as JSON"),
        (b"[1]", "generation_config.json must hold a JSON object"),
        (b'{"eos_token_id": "2"}', "eos_token_id='2' must be a token id or a list of them"),
        (b'{"eos_token_id": [2, null]}', "must be a token id or a list of them"),
    ],
)
def test_damaged_generation_config(data: bytes, message: str, tmp_path: Path) -> None:
    given = {**files(sentencepiece_json()).files, "generation_config.json": data}
    folder = tiny.save(tiny.decoder(), tmp_path / "a", "hf")
    TokenizerFiles(given).write(folder)
    with pytest.raises(ValueError, match=message):
        pretrained.describe(folder)


def test_equal_scores_are_named_in_a_folder(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Other programs read its tokenizer.json, which cannot say them; ours keeps them."""
    tied = gguf_tokenizer.tokenizer_files(sentencepiece(scores=[0.0] * 11 + [-5.0]))
    assert tied is not None
    with caplog.at_level(logging.WARNING):
        folder = tiny.save(tiny.decoder(), tmp_path / "a", "hf", tokenizer=tied)
    assert "several tokens have equal scores" in caplog.text
    assert (folder / SCORES).is_file()
    assert load_tokenizer(str(folder)).encode("abcd") == load_tokenizer(tied).encode("abcd")
    (folder / SCORES).write_text("{}")
    with pytest.raises(ValueError, match="its scores are damaged"):
        load_tokenizer(str(folder))


def test_damage_that_shows_in_use_only() -> None:
    """The library panics there, which is no Exception of Python."""
    around = [
        {"SpecialToken": {"id": "<s>", "type_id": 0}},
        {"Sequence": {"id": "A", "type_id": 0}},
    ]
    template = {"type": "TemplateProcessing", "single": around, "pair": around}
    damaged = files(sentencepiece_json(post_processor={**template, "special_tokens": {}}))
    with pytest.raises(ValueError, match=r"tokenizer\.json cannot be read: no entry found"):
        gguf_tokenizer.metadata_of(damaged, 268)
    with pytest.raises(ValueError, match="cannot be read: no entry found"):
        load_tokenizer(damaged)


@pytest.mark.parametrize("model", ["BPE", [1], 3, None, {}])
def test_damaged_models(model: Any) -> None:
    with pytest.raises(ValueError, match=r"tokenizer\.json cannot be read"):
        gguf_tokenizer.metadata_of(files(sentencepiece_json(model=model)), 268)
