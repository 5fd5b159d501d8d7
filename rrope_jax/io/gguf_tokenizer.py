"""The tokenizer inside a GGUF file, from and to the files of a Hugging Face folder."""

import json
import logging
from collections.abc import Mapping, Sequence
from typing import Any

from rrope_jax.io.tokenizer_files import TokenizerFiles

_log = logging.getLogger(__name__)

_PREFIX = "tokenizer.ggml."
_TEMPLATE = "tokenizer.chat_template"
# kinds of tokens in llama.cpp
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = 1, 2, 3, 4, 5, 6
# special tokens by their keys there and in tokenizer_config.json
_SPECIAL = {"bos": "bos", "eos": "eos", "unknown": "unk", "padding": "pad"}


def _byte_level(use_regex: bool) -> dict[str, Any]:
    return {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": use_regex,
    }


def _split(pattern: str) -> dict[str, Any]:
    split = {
        "type": "Split",
        "pattern": {"Regex": pattern},
        "behavior": "Isolated",
        "invert": False,
    }
    return {"type": "Sequence", "pretokenizers": [split, _byte_level(use_regex=False)]}


_SINGLE_DIGITS = {
    "type": "Sequence",
    "pretokenizers": [{"type": "Digits", "individual_digits": True}, _byte_level(use_regex=True)],
}
# How a text is cut into words before merging, by llama.cpp's names for it (`tokenizer.ggml.pre`).
# The first name with an equal entry is the one that is written.
PRE_TOKENIZERS: dict[str, dict[str, Any]] = {
    "smollm": _SINGLE_DIGITS,
    "starcoder": _SINGLE_DIGITS,
    "refact": _SINGLE_DIGITS,
    "command-r": _SINGLE_DIGITS,
    "gpt-2": _byte_level(use_regex=True),
    "default": _byte_level(use_regex=True),
    "llama-bpe": _split(
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
        r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    ),
}


def tokenizer_files(metadata: Mapping[str, Any]) -> TokenizerFiles | None:
    """The files of the tokenizer that a GGUF file describes.

    None, with a warning in the log, where it is of a kind that is not known here: a tokenizer that
    cuts text another way would be wrong without anyone noticing.
    """
    kind = metadata.get(f"{_PREFIX}model")
    tokens = metadata.get(f"{_PREFIX}tokens")
    if kind not in _MODELS or not tokens:
        if kind not in (None, "no_vocab"):
            _log.warning("tokenizer.ggml.model=%r is not known; the tokenizer is left out", kind)
        return None
    built = _MODELS[kind](metadata, tokens)
    if built is None:
        return None
    kinds = metadata.get(f"{_PREFIX}token_type") or [_NORMAL] * len(tokens)
    added = [
        {
            "id": index,
            "content": token,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": kinds[index] != _USER_DEFINED,
        }
        for index, token in enumerate(tokens)
        if kinds[index] in (_UNKNOWN, _CONTROL, _USER_DEFINED)
    ]
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        **built,
    }
    files = {
        "tokenizer.json": tokenizer,
        "tokenizer_config.json": _tokenizer_config(metadata, tokens, kind),
    }
    return TokenizerFiles(
        {name: json.dumps(data, ensure_ascii=False).encode() for name, data in files.items()}
    )


def _byte_level_bpe(metadata: Mapping[str, Any], tokens: Sequence[str]) -> dict[str, Any] | None:
    """GPT-2's kind: tokens spell bytes as printable characters."""
    pre = metadata.get(f"{_PREFIX}pre", "default")
    if pre not in PRE_TOKENIZERS:
        _log.warning("tokenizer.ggml.pre=%r is not known; the tokenizer is left out", pre)
        return None
    return {
        "normalizer": None,
        "pre_tokenizer": PRE_TOKENIZERS[pre],
        "post_processor": _post_processor(metadata, tokens),
        "decoder": _byte_level(use_regex=True),
        "model": _bpe(
            tokens, [merge.split(" ", 1) for merge in metadata.get(f"{_PREFIX}merges", [])]
        ),
    }


def _sentencepiece_bpe(metadata: Mapping[str, Any], tokens: Sequence[str]) -> dict[str, Any]:
    """LLaMA's kind: scores order the merges, and unknown characters fall back to bytes."""
    scores = metadata[f"{_PREFIX}scores"]
    index_of = {token: index for index, token in enumerate(tokens)}
    merges = []
    for token, index in index_of.items():
        halves = [
            (token[:cut], token[cut:])
            for cut in range(1, len(token))
            if token[:cut] in index_of and token[cut:] in index_of
        ]
        halves.sort(key=lambda pair: (index_of[pair[0]], index_of[pair[1]]))
        merges += [(scores[index], pair) for pair in halves]
    merges.sort(key=lambda merge: merge[0], reverse=True)  # stable
    prepends = metadata.get(f"{_PREFIX}add_space_prefix", True)
    spaces = [{"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]
    strip = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}]
    unknown = metadata.get(f"{_PREFIX}unknown_token_id")
    return {
        "normalizer": {
            "type": "Sequence",
            "normalizers": [{"type": "Prepend", "prepend": "▁"}] * prepends + spaces,
        },
        "pre_tokenizer": None,
        "post_processor": _post_processor(metadata, tokens),
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                *(strip if prepends else []),
            ],
        },
        "model": _bpe(tokens, [list(pair) for _, pair in merges])
        | {
            "unk_token": None if unknown is None else tokens[unknown],
            "fuse_unk": True,
            "byte_fallback": True,
        },
    }


_MODELS = {"gpt2": _byte_level_bpe, "llama": _sentencepiece_bpe}


def _bpe(tokens: Sequence[str], merges: list[list[str]]) -> dict[str, Any]:
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": False,
        "vocab": {token: index for index, token in enumerate(tokens)},
        "merges": merges,
    }


def _post_processor(metadata: Mapping[str, Any], tokens: Sequence[str]) -> dict[str, Any] | None:
    """Puts the token of the beginning before a text, where the model expects it."""
    bos = metadata.get(f"{_PREFIX}bos_token_id")
    if bos is None or not _adds_bos(metadata):
        return None
    token = tokens[bos]
    first = {"SpecialToken": {"id": token, "type_id": 0}}
    text, second = ({"Sequence": {"id": name, "type_id": 0}} for name in "AB")
    return {
        "type": "TemplateProcessing",
        "single": [first, text],
        "pair": [first, text, second],
        "special_tokens": {token: {"id": token, "ids": [bos], "tokens": [token]}},
    }


def _adds_bos(metadata: Mapping[str, Any]) -> bool:
    default = metadata[f"{_PREFIX}model"] == "llama"  # as llama.cpp takes it
    return bool(metadata.get(f"{_PREFIX}add_bos_token", default))


def _tokenizer_config(
    metadata: Mapping[str, Any], tokens: Sequence[str], kind: str
) -> dict[str, Any]:
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_bos_token": _adds_bos(metadata),
        "clean_up_tokenization_spaces": False,
    }
    for theirs, name in _SPECIAL.items():
        index = metadata.get(f"{_PREFIX}{theirs}_token_id")
        if index is not None:
            config[f"{name}_token"] = tokens[index]
    if _TEMPLATE in metadata:
        config["chat_template"] = metadata[_TEMPLATE]
    return config
