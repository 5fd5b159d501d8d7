# ruff: noqa: RUF001  lookalike characters are intended
"""llama.cpp's pre-tokenizers (`tokenizer.ggml.pre`), which split text into words before BPE.

The names and the defaults that go with them are from llama.cpp's src/llama-vocab.cpp. The regular
expressions are from the tokenizer.json of the model that each name stands for.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

# llama.cpp's default `bos_token_id` for byte-level vocabularies.
_FALCON_BOS = 11


@dataclasses.dataclass(frozen=True)
class PreTokenizer:
    """One way to split text, with llama.cpp's defaults for it.

    Attributes:
      spellings: llama.cpp's names for it, separated by spaces; the first one is used for writing.
      value: the equivalent `pre_tokenizer` of a tokenizer.json.
      ignore_merges: whether a word that is a token becomes that token regardless of the merges.
      adds_bos: the default of `add_bos_token`.
      default_bos: the default of `bos_token_id`; None for no token.
      adapted: a `pre_tokenizer` that splits as llama.cpp does, if that differs from the model's own
        tokenizer; None otherwise. Tokenizers that are read use `value`, since the model was trained
        on text split that way.
    """

    spellings: str
    value: Mapping[str, Any]
    ignore_merges: bool = False
    adds_bos: bool = False
    default_bos: int | None = _FALCON_BOS
    adapted: Mapping[str, Any] | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """llama.cpp's names as a tuple."""
        return tuple(self.spellings.split())


def _byte_level(use_regex: bool) -> dict[str, Any]:
    return {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": use_regex,
    }


def _sequence(*steps: Mapping[str, Any], use_regex: bool = False) -> dict[str, Any]:
    return {"type": "Sequence", "pretokenizers": [*steps, _byte_level(use_regex)]}


def _split(pattern: str) -> dict[str, Any]:
    return {
        "type": "Split",
        "pattern": {"Regex": pattern},
        "behavior": "Isolated",
        "invert": False,
    }


def _splits(*patterns: str) -> dict[str, Any]:
    return _sequence(*map(_split, patterns))


_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_CJK = "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"
_PUNCTUATED = r" ?[^(\s|.,!?…。，、।۔،)]+"


def _letters(digits: str, *, letters: str = r"\p{L}", contractions: str = _CONTRACTIONS) -> str:
    """Llama 3's expression; many others are variants of it."""
    first = f"{contractions}|" if contractions else ""
    other = r"[^\s" + letters.strip("[]") + r"\p{N}]+"
    return rf"{first}[^\r\n\p{{L}}\p{{N}}]?{letters}+|\p{{N}}{digits}| ?{other}[\r\n]*|{_SPACES}"


def _cased(digits: str, contractions: str) -> str:
    """Splits at changes from lower to upper case, as in GPT-4o and Mistral's Tekken."""
    upper, lower = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
    return _by_case(upper, lower, digits, contractions)


def _cased_in_ascii(digits: str, contractions: str) -> str:
    """llama.cpp's form of `_cased`: letters outside ASCII count as both upper and lower case."""
    return _by_case(r"[\p{L}&&[^a-z]]", r"[\p{L}&&[^A-Z]]", digits, contractions)


def _by_case(upper: str, lower: str, digits: str, contractions: str) -> str:
    before = r"[^\r\n\p{L}\p{N}]?"
    return (
        rf"{before}{upper}*{lower}+{contractions}|{before}{upper}+{lower}*{contractions}"
        rf"|\p{{N}}{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACES}"
    )


_LLAMA3 = _splits(_letters("{1,3}"))
_ROWS = (
    PreTokenizer(
        "smollm starcoder refact command-r codeshell exaone minerva-7b mellum2",
        _sequence({"type": "Digits", "individual_digits": True}, use_regex=True),
    ),
    PreTokenizer(
        "gpt-2 phi-2 mpt olmo jais trillion granite-docling exaone4 gigachat a.x-4.0 mellum "
        "modern-bert jina-es jina-de jina-v2-es jina-v2-de",
        _byte_level(use_regex=True),
    ),
    PreTokenizer(
        "llama-bpe llama3 llama-v3 falcon3 falcon-h1 pixtral midm-2.0 lfm2 jina-v5-nano",
        _LLAMA3,
        ignore_merges=True,
        adds_bos=True,
    ),
    PreTokenizer("smaug-bpe dbrx", _LLAMA3),
    PreTokenizer("chatglm-bpe glm4", _LLAMA3, default_bos=None),
    PreTokenizer(
        "qwen2 deepseek-r1-qwen megrez stablelm2 hunyuan solar-open grok-2 kormo f2llmv2",
        _splits(_letters("")),
    ),
    PreTokenizer("qwen35", _splits(_letters("", letters=r"[\p{L}\p{M}]"))),
    PreTokenizer("ufakzeka", _splits(_letters("", contractions=""))),
    PreTokenizer("minicpm5", _splits(r"\p{N}{1,3}", _letters("+")), ignore_merges=True),
    PreTokenizer(
        "tekken",
        _splits(_cased("", "")),
        ignore_merges=True,
        adds_bos=True,
        adapted=_splits(_cased_in_ascii("", "")),
    ),
    PreTokenizer(
        "gpt-4o llama4 kanana2 talkie minimax-m2",
        _splits(_cased("{1,3}", f"{_CONTRACTIONS}?")),
        adapted=_splits(_cased_in_ascii("{1,3}", f"{_CONTRACTIONS}?")),
    ),
    PreTokenizer(
        "bailingmoe bailingmoe2 llada-moe",
        _splits(
            r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*"
            r"|\s*[\r\n]|\s+(?!\S)|\s+"
        ),
    ),
    PreTokenizer(
        "seed-coder",
        _splits(
            rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1}}"
            rf"| ?[^\s\p{{L}}\p{{N}}\r\n]+|{_SPACES}"
        ),
    ),
    PreTokenizer(
        "deepseek-v3 hunyuan-dense joyai-llm hy_v4",
        _splits(
            r"\p{N}{1,3}",
            "[一-龥\u3040-ゟ゠-ヿ]+",
            r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
            rf"| ?[\p{{P}}\p{{S}}]+[\r\n]*|{_SPACES}",
        ),
    ),
    PreTokenizer(
        "deepseek-coder",
        _splits(r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _CJK, r"\p{N}"),
    ),
    PreTokenizer("superbpe", _splits(r"\p{N}+", r"(?=(\d{3})+(?!\d))")),
    PreTokenizer("bloom poro-chat gpt3-finnish", _splits(_PUNCTUATED)),
    PreTokenizer("viking", _splits(_PUNCTUATED, r"\p{N}")),
    PreTokenizer("falcon", _splits(r"[\p{P}$+<=>^~|`]+", _GPT2, "[0-9][0-9][0-9]")),
    PreTokenizer("default", _splits(r"[\p{P}$+<=>^~|]+", _GPT2, r"\p{N}+", "[0-9][0-9][0-9]")),
)
PRE_TOKENIZERS: Mapping[str, PreTokenizer] = {name: row for row in _ROWS for name in row.names}
"""Pre-tokenizers by each of their names; when several fit, the first is preferred for writing."""
DEFAULT = "default"
"""The name that llama.cpp assumes if a file has none."""
