"""Converts tokenizers between GGUF metadata and the files of a Hugging Face folder."""

import json
import logging
import re
from collections.abc import Mapping, Sequence
from typing import Any

import tokenizers

from rrope_jax.io import json_text
from rrope_jax.io.gguf import vocabulary as gguf_vocabulary
from rrope_jax.io.gguf.pre_tokenizers import PRE_TOKENIZERS, PreTokenizer
from rrope_jax.io.gguf.vocabulary import (
    BYTE,
    BYTE_LEVEL,
    CONTROL,
    NORMAL,
    PREFIX,
    SENTENCEPIECE,
    TEMPLATE,
    TEMPLATE_NAMES,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    Vocabulary,
)
from rrope_jax.io.tokenizer import chat_templates, sentencepiece
from rrope_jax.io.tokenizer import probes as tokenizer_probes
from rrope_jax.io.tokenizer.files import SCORES, TokenizerFiles

_log = logging.getLogger(__name__)

_TOKENIZER, _CONFIG = "tokenizer.json", "tokenizer_config.json"
_BYTE_TOKEN = re.compile("<0x[0-9A-F]{2}>")
# Special tokens: GGUF's names and those in tokenizer_config.json.
_SPECIAL = {"bos": "bos", "eos": "eos", "unknown": "unk", "padding": "pad"}


def tokenizer_files(metadata: Mapping[str, Any]) -> TokenizerFiles | None:
    """Returns the tokenizer of a GGUF file as Hugging Face files.

    Returns None if the metadata have no tokenizer, and None with a logged warning if its kind is
    unknown: a tokenizer that splits text differently would be silently wrong.

    Args:
      metadata: the metadata of the GGUF file.

    Raises:
      ValueError: the tokenizer is damaged.
    """
    vocabulary = gguf_vocabulary.read(metadata)
    if vocabulary is None:
        return None
    for note in vocabulary.notes:
        _log.warning("%s", note)
    return files_of(vocabulary)


def files_of(vocabulary: Vocabulary, *, adapted: bool = False) -> TokenizerFiles | None:
    """Like `tokenizer_files`, from a vocabulary.

    Args:
      vocabulary: the tokenizer as read from metadata.
      adapted: whether to split text as llama.cpp does, rather than as the model's own tokenizer.
    """
    tokens, kinds = vocabulary.tokens, vocabulary.kinds
    more: dict[str, Any] = {}
    if vocabulary.model == SENTENCEPIECE:
        built, tied = _sentencepiece_bpe(vocabulary)
        if tied:
            more[SCORES] = {"scores": list(vocabulary.scores)}
    elif vocabulary.row is not None:
        built = _byte_level_bpe(vocabulary, vocabulary.row, adapted)
    else:
        key = "pre" if vocabulary.model == BYTE_LEVEL else "model"
        value = getattr(vocabulary, key)
        _log.warning("%s%s=%r is not known; the tokenizer is left out", PREFIX, key, value)
        return None
    added = [
        {
            "id": index,
            "content": token,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": kinds[index] != USER_DEFINED,
        }
        for index, token in enumerate(tokens)
        if kinds[index] in (UNKNOWN, CONTROL, USER_DEFINED)
    ]
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": None,
        "post_processor": _post_processor(vocabulary),
        **built,
    }
    files = {_TOKENIZER: tokenizer, _CONFIG: _tokenizer_config(vocabulary), **more}
    try:
        return TokenizerFiles(
            {name: json.dumps(data, ensure_ascii=False).encode() for name, data in files.items()}
        )
    except UnicodeEncodeError as error:
        _log.warning("the tokenizer has text that is not UTF-8 (%s); it is left out", error.reason)
        return None


def _byte_level_bpe(vocabulary: Vocabulary, row: PreTokenizer, adapted: bool) -> dict[str, Any]:
    """Builds a GPT-2 style tokenizer, whose tokens spell bytes as printable characters."""
    return {
        "pre_tokenizer": row.adapted if adapted and row.adapted is not None else row.value,
        "decoder": {
            "type": "ByteLevel",
            "add_prefix_space": False,
            "trim_offsets": True,
            "use_regex": True,
        },
        "model": _bpe(vocabulary.tokens, [list(pair) for pair in vocabulary.merges])
        | {"ignore_merges": row.ignore_merges},
    }


def _sentencepiece_bpe(vocabulary: Vocabulary) -> tuple[dict[str, Any], bool]:
    """Builds a LLaMA style tokenizer: merges ordered by score, and byte fallback.

    Returns:
      Parts of a tokenizer.json, and whether some merged tokens have equal scores, whose order
      tokenizer.json cannot express.
    """
    tokens, scores = vocabulary.tokens, vocabulary.scores
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
    tied = sentencepiece.has_ties([(score, "".join(pair)) for score, pair in merges])
    prepends = vocabulary.prepends_space
    spaces: list[Any] = [{"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]
    strip = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}]
    unknown = vocabulary.ids.get("unknown")
    built = {
        "normalizer": {
            "type": "Sequence",
            "normalizers": [{"type": "Prepend", "prepend": "▁"}] * prepends + spaces,
        },
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
    return built, tied


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


def _post_processor(vocabulary: Vocabulary) -> dict[str, Any] | None:
    """Builds the step that adds the model's special tokens around a text; None if it has none."""
    around = {
        name: vocabulary.tokens[vocabulary.ids[name]]
        for name, added in (("bos", vocabulary.adds_bos), ("eos", vocabulary.adds_eos))
        if added
    }
    if not around:
        return None
    special = {
        name: [{"SpecialToken": {"id": token, "type_id": 0}}] for name, token in around.items()
    }
    first, last = special.get("bos", []), special.get("eos", [])
    text, second = ({"Sequence": {"id": name, "type_id": 0}} for name in "AB")
    return {
        "type": "TemplateProcessing",
        "single": [*first, text, *last],
        "pair": [*first, text, second, *last],
        "special_tokens": {
            token: {"id": token, "ids": [vocabulary.ids[name]], "tokens": [token]}
            for name, token in around.items()
        },
    }


def _tokenizer_config(vocabulary: Vocabulary) -> dict[str, Any]:
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_bos_token": vocabulary.adds_bos,
        "add_eos_token": vocabulary.adds_eos,
        "clean_up_tokenization_spaces": False,
    }
    for theirs, name in _SPECIAL.items():
        if theirs in vocabulary.ids:
            config[f"{name}_token"] = vocabulary.tokens[vocabulary.ids[theirs]]
    template = chat_templates.for_config(vocabulary.templates)
    return config if template is None else config | {"chat_template": template}


def metadata_of(files: TokenizerFiles | None, vocab_size: int) -> dict[str, Any]:
    """Returns a tokenizer as GGUF metadata: the inverse of `tokenizer_files`.

    The metadata, as llama.cpp interprets them, are compared with the tokenizer on many texts (see
    `io.tokenizer.probes`). If the two differ only around special tokens or leading spaces, which is
    a limit of the format, a warning shows the first such text.

    Args:
      files: the tokenizer; with None, llama.cpp can only work with token ids.
      vocab_size: the model's. Ids beyond the tokenizer's become unused tokens; added tokens beyond
        the model's are dropped with a warning.

    Raises:
      ValueError: tokenizer.json is missing or damaged, its kind has no name in llama.cpp, it
        belongs to another model, or llama.cpp would tokenize a text differently.
    """
    if files is None:
        return {f"{PREFIX}model": "no_vocab"}
    if _TOKENIZER not in files.files:
        raise ValueError(
            f"the tokenizer has no {_TOKENIZER} (only {', '.join(files.files)}), from which a "
            "GGUF file is written; save it once with AutoTokenizer of transformers"
        )
    tokenizer, config = (
        json_text.parse_object(files.files.get(name, b"{}"), name) for name in (_TOKENIZER, _CONFIG)
    )
    try:
        source = tokenizer_probes.load(files.files[_TOKENIZER])
    except ValueError as error:
        raise ValueError(f"{_TOKENIZER} cannot be read: {error}") from error
    model = tokenizer["model"]
    if model.get("type") != "BPE":
        raise ValueError(
            f"tokenizer.json: model.type={model.get('type')!r} has no form in GGUF here; only "
            "'BPE' has"
        )
    added = {entry["content"]: entry for entry in tokenizer.get("added_tokens") or []}
    vocab = model["vocab"] | {token: entry["id"] for token, entry in added.items()}
    if beyond := sorted((index, token) for token, index in vocab.items() if index >= vocab_size):
        if ordinary := [index for index, token in beyond if token not in added]:
            raise ValueError(
                f"the tokenizer has a token of id {ordinary[-1]}, but the model's vocab_size is "
                f"{vocab_size}; they do not belong together"
            )
        _log.warning(
            "the tokenizer has %d tokens beyond the model's vocab_size of %d, such as %r of id %d; "
            "they are left out",
            len(beyond),
            vocab_size,
            *reversed(beyond[0]),
        )
        vocab = {token: index for token, index in vocab.items() if index < vocab_size}
    tokens = [f"[PAD{index}]" for index in range(vocab_size)]
    kinds = [UNUSED] * vocab_size
    for token, index in vocab.items():
        tokens[index], kinds[index] = token, NORMAL
    for token, entry in added.items():
        if token in vocab:
            kinds[entry["id"]] = CONTROL if entry.get("special") else USER_DEFINED
    pairs = [merge.split(" ", 1) if isinstance(merge, str) else merge for merge in model["merges"]]
    merges = [pair for pair in pairs if {*pair, "".join(pair)} <= vocab.keys()]
    write = _write_sentencepiece if model.get("byte_fallback") else _write_byte_level
    metadata = {
        f"{PREFIX}tokens": tokens,
        **write(tokenizer, source, tokens, kinds, merges),
        f"{PREFIX}token_type": kinds,
        **_special_tokens(source, config, vocab),
        **_templates(files, config),
    }
    if SCORES in files.files:
        scores = sentencepiece.scores_of(files.files[SCORES])[:vocab_size]
        metadata[f"{PREFIX}scores"] = scores + [0.0] * (vocab_size - len(scores))
    _check_read_back(files, metadata, vocab_size)
    return metadata


def _write_byte_level(
    tokenizer: Mapping[str, Any],
    source: tokenizers.Tokenizer,
    tokens: Sequence[str],
    kinds: list[int],
    merges: list[list[str]],
) -> dict[str, Any]:
    del tokens, kinds
    ignores = bool(tokenizer["model"].get("ignore_merges"))
    rows = {name: row for name, row in PRE_TOKENIZERS.items() if name == row.names[0]}
    pre_tokenizer = _without_offsets(tokenizer.get("pre_tokenizer"))
    fitting = [name for name, row in rows.items() if _without_offsets(row.value) == pre_tokenizer]
    if not fitting:  # it may be written differently but split the same way
        cuts = tokenizer_probes.cuts(source.pre_tokenizer)
        fitting = [n for n, row in rows.items() if tokenizer_probes.cuts_of(row.value) == cuts]
    if not fitting:
        raise ValueError(
            "tokenizer.json: its pre_tokenizer cuts texts in a way that has no known name in "
            f"llama.cpp; known are those of {', '.join(PRE_TOKENIZERS)}"
        )
    # A row with another `ignore_merges` may still work; `_check_read_back` finds out.
    fitting.sort(key=lambda name: PRE_TOKENIZERS[name].ignore_merges != ignores)  # stable
    return {
        f"{PREFIX}model": BYTE_LEVEL,
        f"{PREFIX}pre": fitting[0],
        f"{PREFIX}merges": [" ".join(merge) for merge in merges] or [gguf_vocabulary.NO_MERGE],
    }


def _without_offsets(value: Any) -> Any:
    """Drops `trim_offsets`, which does not affect how text is split."""
    if isinstance(value, dict):
        return {k: _without_offsets(v) for k, v in value.items() if k != "trim_offsets"}
    return [_without_offsets(each) for each in value] if isinstance(value, list) else value


def _write_sentencepiece(
    tokenizer: Mapping[str, Any],
    source: tokenizers.Tokenizer,
    tokens: Sequence[str],
    kinds: list[int],
    merges: list[list[str]],
) -> dict[str, Any]:
    """Builds the metadata with scores that keep tokenizer.json's order of merges."""
    del source
    rank: dict[str, int] = {}
    for index, pair in enumerate(merges):
        rank.setdefault("".join(pair), index)
    for index, token in enumerate(tokens):
        if _BYTE_TOKEN.fullmatch(token):
            kinds[index] = BYTE
    unknown = tokenizer["model"].get("unk_token")
    if unknown in tokens:
        kinds[tokens.index(unknown)] = UNKNOWN
    return {
        f"{PREFIX}model": SENTENCEPIECE,
        # Tokens that no merge produces come last, each with a different score.
        f"{PREFIX}scores": [
            -float(rank.get(token, len(merges) + index)) for index, token in enumerate(tokens)
        ],
        f"{PREFIX}add_space_prefix": _prepends_space(tokenizer),
    }


def _prepends_space(tokenizer: Mapping[str, Any]) -> bool:
    normalizer = tokenizer.get("normalizer") or {}
    steps = normalizer.get("normalizers", [normalizer])
    scheme = (tokenizer.get("pre_tokenizer") or {}).get("prepend_scheme", "never")
    return scheme != "never" or any(step.get("type") == "Prepend" for step in steps)


def _special_tokens(
    source: tokenizers.Tokenizer, config: Mapping[str, Any], vocab: Mapping[str, int]
) -> dict[str, Any]:
    metadata: dict[str, Any] = {}
    for theirs, name in _SPECIAL.items():
        token = config.get(f"{name}_token")
        if isinstance(token, Mapping):
            token = token.get("content")
        if isinstance(token, str) and token in vocab:
            metadata[f"{PREFIX}{theirs}_token_id"] = vocab[token]
    # The post-processor decides, as in transformers, not `add_bos_token` of tokenizer_config.json.
    first, last = tokenizer_probes.around(source)
    for theirs, ids in (("bos", first), ("eos", last)):
        key = f"{PREFIX}{theirs}_token_id"
        if key not in metadata and len(ids) == 1:
            metadata[key] = ids[0]
        metadata[f"{PREFIX}add_{theirs}_token"] = key in metadata and ids == [metadata[key]]
    return metadata


def _templates(files: TokenizerFiles, config: Mapping[str, Any]) -> dict[str, Any]:
    templates = chat_templates.read(files, config)
    metadata: dict[str, Any] = {}
    others = []
    for name, text in templates.items():
        if name == chat_templates.DEFAULT:
            metadata[TEMPLATE] = text
        else:
            plain = re.sub("[^A-Za-z0-9]", "_", name)
            others.append(plain)
            metadata[f"{TEMPLATE}.{plain}"] = text
    return metadata | ({TEMPLATE_NAMES: others} if others else {})


def _check_read_back(files: TokenizerFiles, metadata: Mapping[str, Any], vocab_size: int) -> None:
    """Compares the written metadata, as llama.cpp interprets them, with the source tokenizer."""
    vocabulary = gguf_vocabulary.read(metadata)
    assert vocabulary is not None  # it was just written
    written = files_of(vocabulary)
    assert written is not None
    for note in vocabulary.notes:
        _log.warning("%s", note)
    probes = tokenizer_probes.probes(files)

    def difference(other: TokenizerFiles, texts: Sequence[str]) -> str | None:
        return next(tokenizer_probes.differences(files, other, texts, vocab_size), None)

    # llama.cpp prepends a space even to a text that already begins with one.
    limited = [
        text for text in probes.plain if vocabulary.prepends_space and text.startswith((" ", "▁"))
    ]
    apart = set(limited)
    plain = [text for text in probes.plain if text not in apart]
    if (example := difference(written, plain)) is not None:
        raise ValueError(f"llama.cpp would make other tokens of a text: {example}")
    if (example := difference(written, [*probes.around_added, *limited])) is not None:
        _log.warning(
            "llama.cpp makes other tokens of some texts, since GGUF has no place for what becomes "
            "of spaces beside special tokens and at the beginning: %s",
            example,
        )
    if vocabulary.row is not None and vocabulary.row.adapted is not None:
        adapted = files_of(vocabulary, adapted=True)
        assert adapted is not None
        if (example := difference(adapted, probes.plain)) is not None:
            _log.warning(
                "llama.cpp's own form of %r cuts some texts otherwise: %s", vocabulary.pre, example
            )
