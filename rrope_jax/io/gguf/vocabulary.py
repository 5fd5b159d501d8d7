# ruff: noqa: RUF001  lookalike characters are intended
"""The tokenizer described by GGUF metadata, with llama.cpp's defaults for missing keys.

The keys are from docs/gguf.md of ggml-org/ggml. The defaults, and the spellings of tokens that end
a text, are from src/llama-vocab.cpp of ggml-org/llama.cpp.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from rrope_jax.io.gguf.pre_tokenizers import DEFAULT, PRE_TOKENIZERS, PreTokenizer

PREFIX = "tokenizer.ggml."
TEMPLATE = "tokenizer.chat_template"
TEMPLATE_NAMES = "tokenizer.chat_templates"
# Values of `tokenizer.ggml.token_type`.
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6

NO_MERGE = "[NO] [MERGE]"
"""The placeholder for an empty list of merges, since llama.cpp requires at least one."""
SENTENCEPIECE, BYTE_LEVEL = "llama", "gpt2"
"""The two supported values of `tokenizer.ggml.model`."""

# Default ids of special tokens by `tokenizer.ggml.model`. For byte-level vocabularies, the default
# of `bos` depends on `pre`.
_DEFAULT_IDS: Mapping[str, Mapping[str, int]] = {
    SENTENCEPIECE: {"bos": 1, "eos": 2, "unknown": 0},
    BYTE_LEVEL: {"eos": 11},
}
ENDS = ("eos", "eot", "eom", "fim_pad", "fim_rep", "fim_sep")
"""The special tokens that end a text, most important first."""


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


# If a file has no key for one of these tokens, the first token with one of these spellings is used
# and becomes a control token.
_SPELLINGS = {
    "fim_pre": _words(
        "<|fim_prefix|> <fim-prefix> <fim_prefix> <｜fim▁begin｜> <PRE> ▁<PRE> "
        "<|code_prefix|> <|prefix|>"
    ),
    "fim_suf": _words(
        "<|fim_suffix|> <fim-suffix> <fim_suffix> <｜fim▁hole｜> <SUF> ▁<SUF> "
        "<|code_suffix|> <|suffix|>"
    ),
    "fim_mid": _words(
        "<|fim_middle|> <fim-middle> <fim_middle> <｜fim▁end｜> <MID> ▁<MID> "
        "<|code_middle|> <|middle|>"
    ),
    "fim_pad": _words("<|fim_pad|> <fim-pad> <fim_pad> <PAD> [PAD]"),
    "fim_rep": _words("<|fim_repo|> <|repo_name|> <fim-repo> <REPO> <reponame>"),
    "fim_sep": _words("<|file_sep|>"),
}
# Tokens with these spellings also end a text, regardless of the file's keys.
_END_SPELLINGS = frozenset(
    _words(
        "<|eot_id|> <|eom_id|> <|im_end|> <|end|> <|return|> <|call|> <|calls|> <|flush|> "
        "<|endoftext|> <|end_of_text|> <end_of_turn> <end_of_utterance> <｜end▁of▁sentence｜> "
        "</s> <eos> <EOT> _<EOT> [EOT] [EOS] <turn|> <|tool_response> [e~["
    )
)
# Tokens that do not end a text if the vocabulary also has a token from each of the sets, with the
# type that they then get: they end a turn that continues with a call, or another model's texts.
_NOT_BESIDE = (
    ("<|end|>", USER_DEFINED, {"<|return|>"}, {"<|call|>", "<|calls|>"}),
    ("<|end|>", USER_DEFINED, {"<|flush|>"}, {"<|call|>", "<|calls|>"}),
    ("</s>", NORMAL, {"<|tool_response>"}, {"<|tool_response>"}),
)
# Control tokens that are printed nevertheless.
_SHOWN = ("<|channel|>", "<|message|>", "<|start|>", "<|constrain|>")
_SPECIAL = ("bos", "unknown", "padding", *ENDS, *_SPELLINGS)


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """The tokenizer of a GGUF file.

    Attributes:
      model: `SENTENCEPIECE`, `BYTE_LEVEL` or an unsupported name.
      pre: the name of the pre-tokenizer.
      row: the pre-tokenizer; None if it is unknown or the model does not use one.
      tokens: the tokens by id; no two are equal.
      kinds: the type of each token, such as `CONTROL`.
      scores: the score of each token.
      merges: pairs of tokens to merge, in order of priority.
      ids: ids of special tokens by their names in GGUF keys, such as `bos`.
      ends: ids of all tokens that end a text, that of `eos` first.
      adds_bos, adds_eos: whether `bos` is added before a text and `eos` after it.
      prepends_space: whether a space is added before a text and after special tokens.
      templates: chat templates by name; the one used by default is called `default`.
      notes: messages for the user about keys that are wrong or missing.
    """

    model: str
    pre: str
    row: PreTokenizer | None
    tokens: Sequence[str]
    kinds: Sequence[int]
    scores: Sequence[float]
    merges: Sequence[tuple[str, str]]
    ids: Mapping[str, int]
    ends: tuple[int, ...]
    adds_bos: bool
    adds_eos: bool
    prepends_space: bool
    templates: Mapping[str, str]
    notes: Sequence[str]


def read(metadata: Mapping[str, Any]) -> Vocabulary | None:
    """Reads the tokenizer from GGUF metadata; returns None if they have none.

    Raises:
      ValueError: a key has the wrong type or contradicts another key.
    """
    model = _get(metadata, "model", _STRING, None)
    tokens = _list(metadata, "tokens", _STRING)
    if model in (None, "no_vocab", "none") or tokens is None:
        return None
    tokens = [token or f"[EMPTY_{index}]" for index, token in enumerate(tokens)]
    place = {token: index for index, token in enumerate(tokens)}
    if len(place) < len(tokens):
        twice = next(token for index, token in enumerate(tokens) if place[token] != index)
        raise ValueError(f"{PREFIX}tokens has {twice!r} twice; the file is damaged")
    pre = _get(metadata, "pre", _STRING, None) or DEFAULT
    row = PRE_TOKENIZERS.get(pre) if model == BYTE_LEVEL else None
    ids, notes = _special_ids(metadata, model, row, tokens)
    kinds = _list(metadata, "token_type", _INT, tokens) or [NORMAL] * len(tokens)
    scores = _list(metadata, "scores", _NUMBER, tokens) or [0.0] * len(tokens)
    if not all(math.isfinite(score) for score in scores):
        raise ValueError(f"{PREFIX}scores holds a number that is not finite; the file is damaged")
    ends = _ends(tokens, place, ids, kinds)
    adds = {
        name: _get(metadata, f"add_{name}_token", _BOOL, default)
        for name, default in (
            ("bos", model == SENTENCEPIECE or (row is not None and row.adds_bos)),
            ("eos", False),
        )
    }
    for name, used in (("bos", adds["bos"]), ("eos", True)):
        if used and name in ids and metadata.get(f"{PREFIX}{name}_token_id") is None:
            notes.append(
                f"{PREFIX}{name}_token_id is left out; llama.cpp then takes {ids[name]} "
                f"({tokens[ids[name]]!r})"
            )
    for name, added in adds.items():
        if added and name not in ids and model in _DEFAULT_IDS:
            raise ValueError(
                f"{PREFIX}add_{name}_token is true, but there is no {PREFIX}{name}_token_id"
            )
    return Vocabulary(
        model=model,
        pre=pre,
        row=row,
        tokens=tokens,
        kinds=kinds,
        scores=scores,
        merges=_merges(metadata, place) if row is not None else (),
        ids=ids,
        ends=ends,
        adds_bos=adds["bos"],
        adds_eos=adds["eos"],
        prepends_space=_get(metadata, "add_space_prefix", _BOOL, model == SENTENCEPIECE),
        templates=_templates(metadata),
        notes=notes,
    )


def ids_alone(metadata: Mapping[str, Any]) -> dict[str, int]:
    """Ids of special tokens, by their names in GGUF keys, for a file without a vocabulary."""
    return {
        name: value
        for name in _SPECIAL
        if (value := _get(metadata, f"{name}_token_id", _INT, None)) is not None
    }


_Check = tuple[str, Callable[[Any], bool]]
_STRING: _Check = ("a string", lambda value: isinstance(value, str))
_BOOL: _Check = ("a bool", lambda value: isinstance(value, bool))
_INT: _Check = ("an integer", lambda value: isinstance(value, int) and not isinstance(value, bool))
_NUMBER: _Check = (
    "a number",
    lambda value: isinstance(value, int | float) and not isinstance(value, bool),
)


def _get(metadata: Mapping[str, Any], name: str, check: _Check, default: Any) -> Any:
    value = metadata.get(f"{PREFIX}{name}")
    if value is None:
        return default
    if not check[1](value):
        raise ValueError(f"{PREFIX}{name}={str(value)[:80]} must be {check[0]}")
    return value


def _list(
    metadata: Mapping[str, Any], name: str, check: _Check, tokens: Sequence[str] | None = None
) -> list[Any] | None:
    """Reads an array, truncated to the number of tokens; raises ValueError if it is shorter."""
    values = metadata.get(f"{PREFIX}{name}")
    if values is None:
        return None
    if not isinstance(values, list) or not all(map(check[1], values)):
        raise ValueError(f"{PREFIX}{name} must be an array, and each entry {check[0]}")
    if tokens is None:
        return values
    if len(values) < len(tokens):
        raise ValueError(
            f"{PREFIX}{name} has {len(values)} entries for {len(tokens)} tokens; the file is "
            "damaged"
        )
    return values[: len(tokens)]


def _special_ids(
    metadata: Mapping[str, Any], model: str, row: PreTokenizer | None, tokens: Sequence[str]
) -> tuple[dict[str, int], list[str]]:
    defaults = dict(_DEFAULT_IDS.get(model, {}))
    if row is not None and row.default_bos is not None:
        defaults["bos"] = row.default_bos
    ids: dict[str, int] = {}
    notes: list[str] = []
    for name in _SPECIAL:
        key = f"{PREFIX}{name}_token_id"
        index = _get(metadata, f"{name}_token_id", _INT, None)
        default = defaults.get(name)
        if default is not None and default >= len(tokens):
            default = None
        if index is not None and not 0 <= index < len(tokens):
            notes.append(f"{key}={index} is not one of the {len(tokens)} tokens and is passed over")
            index = None
        value = default if index is None else index
        if value is not None:
            ids[name] = value
    return ids, notes


def _ends(
    tokens: Sequence[str], place: Mapping[str, int], ids: dict[str, int], kinds: list[int]
) -> tuple[int, ...]:
    """Finds the ids of the tokens that end a text, by key and by spelling.

    Tokens found by spelling become control tokens in `kinds` regardless of the file's types, since
    many files mark them as ordinary text. Those of `_SPELLINGS` are added to `ids`.
    """
    control = {place[each] for each in _END_SPELLINGS if each in place}
    ends = sorted(control)
    for name, spellings in _SPELLINGS.items():
        if name not in ids and (
            spelled_ids := [place[each] for each in spellings if each in place]
        ):
            ids[name] = spelled_ids[0]
            control.add(spelled_ids[0])
    for index in control:
        kinds[index] = CONTROL
    for each in _SHOWN:
        if each in place:
            kinds[place[each]] = USER_DEFINED
    ends = list(dict.fromkeys([*(ids[name] for name in ENDS if name in ids), *ends]))
    spelled = {tokens[index] for index in ends}
    for spelling, kind, *others in _NOT_BESIDE:
        if spelling in spelled and all(each & spelled for each in others):
            kinds[place[spelling]] = kind
            ends = [index for index in ends if tokens[index] != spelling]
    return tuple(ends)


def _merges(metadata: Mapping[str, Any], place: Mapping[str, int]) -> list[tuple[str, str]]:
    lines = _list(metadata, "merges", _STRING)
    if lines is None:
        raise ValueError(
            f"the file has no {PREFIX}merges, without which a text falls into single bytes; "
            "convert the model again with its merges"
        )
    pairs = []
    for line in lines:
        cut = line.find(" ", 1)  # a token may be a space
        if cut < 0:
            raise ValueError(f"{PREFIX}merges: {line!r} is no pair; the file is damaged")
        pairs.append((line[:cut], line[cut + 1 :]))
    joined = {"".join(pair) for pair in pairs}
    # The other merges can never apply: no merge produces one of their parts.
    merges = [pair for pair in pairs if all(len(part) == 1 or part in joined for part in pair)]
    for pair in merges:
        if not {*pair, "".join(pair)} <= place.keys():
            raise ValueError(
                f"{PREFIX}merges: {' '.join(pair)!r} is no pair of tokens that make a third; the "
                "file is damaged"
            )
    return merges


def _templates(metadata: Mapping[str, Any]) -> Mapping[str, str]:
    templates = {}
    for key, value in metadata.items():
        name = "default" if key == TEMPLATE else key.removeprefix(f"{TEMPLATE}.")
        if key in (TEMPLATE, f"{TEMPLATE}.{name}"):
            if not isinstance(value, str):
                raise ValueError(f"{key}={str(value)[:80]} must be a string")
            templates[name] = value
    return MappingProxyType(templates)
