"""Vocabularies of a few tokens, as GGUF files and tokenizer.json have them."""

import json
from typing import Any

from rrope_jax.io.tokenizer.files import TokenizerFiles

LETTERS = ["a", "b", "c", "d", "x", "Ġ", "1", "2", "3", "4", "ab", "cd", "abcd", "12", "123"]
CONTROL = ["<|begin|>", "<|stop|>", "<|eot_id|>"]
PIECES = ["▁", "a", "b", "c", "d", "bc", "ab", "cd", "▁a"]


def byte_level(**keys: Any) -> dict[str, Any]:
    """Metadata of GPT-2's kind; keys without their prefix, None for one that is left out."""
    tokens = [*LETTERS, *CONTROL]
    given = {
        "model": "gpt2",
        "tokens": tokens,
        "token_type": [1] * len(LETTERS) + [3] * len(CONTROL),
        "merges": ["a b", "c d"],
        "bos_token_id": tokens.index("<|begin|>"),
        "eos_token_id": tokens.index("<|stop|>"),
    }
    return _prefixed(given | keys)


def sentencepiece(**keys: Any) -> dict[str, Any]:
    """Metadata of LLaMA's kind, without bytes."""
    tokens = ["<unk>", "<s>", "</s>", *PIECES]
    given = {
        "model": "llama",
        "tokens": tokens,
        "token_type": [2, 3, 3] + [1] * len(PIECES),
        "scores": [float(-index) for index in range(len(tokens))],
    }
    return _prefixed(given | keys)


def _prefixed(keys: dict[str, Any]) -> dict[str, Any]:
    return {f"tokenizer.ggml.{key}": value for key, value in keys.items() if value is not None}


def added(index: int, content: str, **flags: Any) -> dict[str, Any]:
    """An entry of `added_tokens` of a tokenizer.json."""
    off = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": index, "content": content, **off, "special": True, **flags}


def sentencepiece_json(**parts: Any) -> dict[str, Any]:
    """A tokenizer.json like LLaMA 2's: 3 special tokens, 256 bytes, and pieces."""
    special = ["<unk>", "<s>", "</s>"]
    pieces = ["▁", *"abAB12", "12", "ab"]
    tokens = [*special, *(f"<0x{byte:02X}>" for byte in range(256)), *pieces]
    model = {
        "type": "BPE",
        "dropout": None,
        "unk_token": "<unk>",
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": True,
        "byte_fallback": True,
        "ignore_merges": False,
        "vocab": {token: index for index, token in enumerate(tokens)},
        "merges": [["1", "2"], ["a", "b"]],
    }
    spaces = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    prepend = {"type": "Prepend", "prepend": "▁"}
    steps = [
        {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
        {"type": "Strip", "content": " ", "start": 1, "stop": 0},
    ]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [added(index, token) for index, token in enumerate(special)],
        "normalizer": {"type": "Sequence", "normalizers": [prepend, spaces]},
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": {"type": "Sequence", "decoders": steps},
        "model": model,
        **parts,
    }


def size(tokenizer: dict[str, Any]) -> int:
    """One more than the largest id."""
    ids = [*tokenizer["model"]["vocab"].values(), *(e["id"] for e in tokenizer["added_tokens"])]
    return 1 + max(ids)


def files(tokenizer: dict[str, Any], **config: Any) -> TokenizerFiles:
    """The files of a Hugging Face folder."""
    contents = {"tokenizer.json": tokenizer, "tokenizer_config.json": config}
    return TokenizerFiles({name: json.dumps(each).encode() for name, each in contents.items()})
