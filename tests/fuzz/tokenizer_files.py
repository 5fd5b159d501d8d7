"""tokenizer.json and the files beside it, loaded and used."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rrope_jax.data.tokenizers import load_tokenizer
from rrope_jax.io.tokenizer.files import TokenizerFiles
from tests.fuzz.judging import Target

TEXTS = ("", "a b  ab", "<s>ba\n\u00e9\U0001f600 12 345")


def added(index: int, content: str, *, special: bool = True) -> dict[str, Any]:
    """An entry of `added_tokens`."""
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": index, "content": content, **flags, "special": special}


def _bpe(vocab: Sequence[str], merges: Sequence[Any], **fields: Any) -> dict[str, Any]:
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": False,
        "vocab": {token: index for index, token in enumerate(vocab)},
        "merges": list(merges),
    } | fields


_BYTE_LEVEL = {
    "type": "ByteLevel",
    "add_prefix_space": False,
    "trim_offsets": True,
    "use_regex": True,
}


def byte_level() -> dict[str, Any]:
    """GPT-2's kind, small."""
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [added(0, "<s>"), added(9, "<u>", special=False)],
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [{"type": "Digits", "individual_digits": True}, _BYTE_LEVEL],
        },
        "post_processor": None,
        "decoder": _BYTE_LEVEL,
        "model": _bpe(
            ["<s>", "a", "b", "\u0120", "ab", "\u0120a", "1", "2", "\u010a"],
            [["a", "b"], ["\u0120", "a"]],
        ),
    }


def sentencepiece() -> dict[str, Any]:
    """LLaMA's kind, small, and with everything that a file may ask for."""
    first = {"SpecialToken": {"id": "<s>", "type_id": 0}}
    text = {"Sequence": {"id": "A", "type_id": 0}}
    return {
        "version": "1.0",
        "truncation": {
            "direction": "Right",
            "max_length": 8,
            "strategy": "LongestFirst",
            "stride": 0,
        },
        "padding": {
            "strategy": {"Fixed": 16},
            "direction": "Right",
            "pad_to_multiple_of": None,
            "pad_id": 0,
            "pad_type_id": 0,
            "pad_token": "<unk>",
        },
        "added_tokens": [added(0, "<unk>"), added(1, "<s>"), added(2, "</s>")],
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                {"type": "Prepend", "prepend": "\u2581"},
                {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"},
            ],
        },
        "pre_tokenizer": {
            "type": "Metaspace",
            "replacement": "\u2581",
            "prepend_scheme": "first",
            "split": False,
        },
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [first, text],
            "pair": [first, text, {"Sequence": {"id": "B", "type_id": 0}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
        },
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": "\u2581"}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": 1, "stop": 0},
            ],
        },
        "model": _bpe(
            ["<unk>", "<s>", "</s>", "<0x0A>", "<0xC3>", "<0xA9>", "\u2581", "a", "b", "ab"],
            ["a b"],
            unk_token="<unk>",
            fuse_unk=True,
            byte_fallback=True,
        ),
    }


_CONFIG = {
    "add_bos_token": True,
    "bos_token": "<s>",
    "eos_token": {"content": "</s>", "lstrip": False},
    "chat_template": [{"name": "default", "template": "{{ messages }}"}],
    "tokenizer_class": "PreTrainedTokenizerFast",
}


def folders() -> Sequence[dict[str, Any]]:
    """Files of tokenizers."""
    words = byte_level() | {
        "model": {"type": "WordLevel", "vocab": {"a": 0, "b": 1, "?": 2}, "unk_token": "?"},
        "pre_tokenizer": {"type": "Whitespace"},
        "added_tokens": [],
        "decoder": None,
    }
    return [
        {"tokenizer.json": byte_level(), "tokenizer_config.json": _CONFIG},
        {
            "tokenizer.json": sentencepiece(),
            "tokenizer_config.json": _CONFIG | {"chat_template": "{{ messages }}"},
            "special_tokens_map.json": {"eos_token": "</s>", "bos_token": {"content": "<s>"}},
            "generation_config.json": {"eos_token_id": [2, 0], "bos_token_id": 1},
            "added_tokens.json": {"<u>": 9},
            "chat_template.jinja": "{{ messages }}",
        },
        {"tokenizer.json": words},
    ]


def use(files: TokenizerFiles) -> None:
    """Loads a tokenizer, and turns texts into ids and back."""
    tokenizer = load_tokenizer(files)
    for text in TEXTS:
        tokenizer.decode(tokenizer.encode(text))


def run(folder: Path) -> None:
    """Loads a tokenizer from a folder, and from its files."""
    load_tokenizer(str(folder))
    files = TokenizerFiles.of_folder(folder)
    if files is not None:
        use(files)


TARGET = Target("tokenizers", folders, run)
