"""The tokenizer inside a GGUF file, from and to the files of a Hugging Face folder."""

import json
import logging
import re
from collections.abc import Mapping, Sequence
from typing import Any

from tokenizers import Tokenizer

from rrope_jax.io.tokenizer_files import TokenizerFiles

_log = logging.getLogger(__name__)

_PREFIX = "tokenizer.ggml."
_TEMPLATE = "tokenizer.chat_template"
# kinds of tokens in llama.cpp
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = 1, 2, 3, 4, 5, 6
_BYTE_TOKEN = re.compile("<0x[0-9A-F]{2}>")
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
    _check(metadata, tokens)
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


def _check(metadata: Mapping[str, Any], tokens: Sequence[str]) -> None:
    for key in ("token_type", "scores"):
        values = metadata.get(f"{_PREFIX}{key}")
        if values is not None and len(values) != len(tokens):
            raise ValueError(
                f"{_PREFIX}{key} has {len(values)} entries for {len(tokens)} tokens; the file is "
                "damaged"
            )
    for name in _SPECIAL:
        key = f"{_PREFIX}{name}_token_id"
        index = metadata.get(key)
        if index is not None and not (isinstance(index, int) and 0 <= index < len(tokens)):
            raise ValueError(f"{key}={index!r} is not one of the {len(tokens)} tokens")


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


def metadata_of(files: TokenizerFiles | None, vocab_size: int) -> dict[str, Any]:
    """The metadata of a GGUF file for a tokenizer: the inverse of `tokenizer_files`.

    Args:
      files: the tokenizer; without one, llama.cpp takes and gives token ids only.
      vocab_size: of the model; ids beyond the tokenizer's become tokens that no text has.

    Raises:
      ValueError: the tokenizer has no tokenizer.json, or is of a kind that llama.cpp has no name
        for.
    """
    if files is None:
        return {f"{_PREFIX}model": "no_vocab"}
    if "tokenizer.json" not in files.files:
        raise ValueError(
            f"the tokenizer has no tokenizer.json (only {', '.join(files.files)}), from which a "
            "GGUF file is written; save it once with AutoTokenizer of transformers"
        )
    tokenizer = json.loads(files.files["tokenizer.json"])
    config = json.loads(files.files.get("tokenizer_config.json", b"{}"))
    model = tokenizer["model"]
    if model.get("type") != "BPE":
        raise ValueError(
            f"tokenizer.json: model.type={model.get('type')!r} has no form in GGUF here; only "
            "'BPE' has"
        )
    added = {entry["content"]: entry for entry in tokenizer.get("added_tokens", [])}
    vocab = model["vocab"] | {token: entry["id"] for token, entry in added.items()}
    if (largest := max(vocab.values())) >= vocab_size:
        raise ValueError(
            f"the tokenizer has a token of id {largest}, but the model's vocab_size is "
            f"{vocab_size}; they do not belong together"
        )
    tokens = [f"[PAD{index}]" for index in range(vocab_size)]
    kinds = [_UNUSED] * vocab_size
    for token, index in vocab.items():
        tokens[index], kinds[index] = token, _NORMAL
    for entry in added.values():
        kinds[entry["id"]] = _CONTROL if entry.get("special") else _USER_DEFINED
    merges = [merge.split(" ", 1) if isinstance(merge, str) else merge for merge in model["merges"]]
    write = _write_sentencepiece if model.get("byte_fallback") else _write_byte_level
    metadata = {
        f"{_PREFIX}tokens": tokens,
        **write(tokenizer, tokens, kinds, merges),
        f"{_PREFIX}token_type": kinds,
    }
    return metadata | _special_tokens(files, config, vocab)


def _write_byte_level(
    tokenizer: Mapping[str, Any], tokens: Sequence[str], kinds: list[int], merges: list[list[str]]
) -> dict[str, Any]:
    wanted = _without_offsets(tokenizer.get("pre_tokenizer"))
    name = next((n for n, pre in PRE_TOKENIZERS.items() if _without_offsets(pre) == wanted), None)
    if name is None or tokenizer.get("normalizer") is not None:
        raise ValueError(
            "tokenizer.json: its normalizer and pre_tokenizer have no known name in llama.cpp; "
            f"known are those of {', '.join(PRE_TOKENIZERS)}"
        )
    return {
        f"{_PREFIX}model": "gpt2",
        f"{_PREFIX}pre": name,
        f"{_PREFIX}merges": [" ".join(merge) for merge in merges],
    }


def _without_offsets(value: Any) -> Any:
    """What decides how text is cut: offsets do not."""
    if isinstance(value, dict):
        return {k: _without_offsets(v) for k, v in value.items() if k != "trim_offsets"}
    return [_without_offsets(each) for each in value] if isinstance(value, list) else value


def _write_sentencepiece(
    tokenizer: Mapping[str, Any], tokens: Sequence[str], kinds: list[int], merges: list[list[str]]
) -> dict[str, Any]:
    """Scores that put the merges in the order in which tokenizer.json has them."""
    rank: dict[str, int] = {}
    for index, pair in enumerate(merges):
        rank.setdefault("".join(pair), index)
    for index, token in enumerate(tokens):
        if _BYTE_TOKEN.fullmatch(token):
            kinds[index] = _BYTE
    unknown = tokenizer["model"].get("unk_token")
    if unknown in tokens:
        kinds[tokens.index(unknown)] = _UNKNOWN
    return {
        f"{_PREFIX}model": "llama",
        f"{_PREFIX}scores": [-float(rank.get(token, 0)) for token in tokens],
        f"{_PREFIX}add_space_prefix": _prepends_space(tokenizer),
    }


def _prepends_space(tokenizer: Mapping[str, Any]) -> bool:
    normalizer = tokenizer.get("normalizer") or {}
    steps = normalizer.get("normalizers", [normalizer])
    scheme = (tokenizer.get("pre_tokenizer") or {}).get("prepend_scheme", "never")
    return scheme != "never" or any(step.get("type") == "Prepend" for step in steps)


def _special_tokens(
    files: TokenizerFiles, config: Mapping[str, Any], vocab: Mapping[str, int]
) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for theirs, name in _SPECIAL.items():
        token = config.get(f"{name}_token")
        if isinstance(token, Mapping):
            token = token.get("content")
        if isinstance(token, str) and token in vocab:
            found[f"{_PREFIX}{theirs}_token_id"] = vocab[token]
    # what it does counts, not what tokenizer_config.json says: transformers does not read that
    encoded = Tokenizer.from_buffer(files.files["tokenizer.json"]).encode("a").ids
    bos = found.get(f"{_PREFIX}bos_token_id")
    found[f"{_PREFIX}add_bos_token"] = bos is not None and encoded[:1] == [bos]
    template = files.files.get("chat_template.jinja", b"").decode() or config.get("chat_template")
    if isinstance(template, str):
        found[_TEMPLATE] = template
    return found
