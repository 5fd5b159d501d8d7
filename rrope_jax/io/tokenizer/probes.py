# ruff: noqa: RUF001  lookalike characters are intended
"""Compares two tokenizers on probe texts before one replaces the other on export."""

import functools
import itertools
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import tokenizers

from rrope_jax.io.tokenizer import errors as tokenizers_errors
from rrope_jax.io.tokenizer import sentencepiece
from rrope_jax.io.tokenizer.files import SCORES, TokenizerFiles

_TOKENIZER = "tokenizer.json"
# Maximum number of added tokens to probe with text around them; some vocabularies have thousands.
_ADDED_TOKENS = 300

_WORDS = (
    "a",
    "ab",
    "Hello world",
    "HELLO World hELLO helloWorld iPhone XMLHttpRequest",
    "The quick brown fox jumps over the lazy dog.",
    "don't DON'T Don'T we'll WE'LL I'm I'M you've they'd it's IT'S 're 'tis O'Neil rock'n'roll",
    "don’t we’ll ‘quoted’ “quoted” «quoted» „quoted“",
    "'s't're've'm'll'd 'S'T'RE'VE'M'LL'D ''''",
    "snake_case camelCase kebab-case dot.case path/to/file.txt C:\\dir\\file",
    "user@example.com https://example.com/a?b=c&d=e#f",
)
_DIGITS = (
    *("1234567890123456789"[:count] for count in range(1, 20)),
    *(f"a{'9' * count}b" for count in range(1, 8)),
    *(f" {'0' * count} " for count in range(1, 8)),
    "1 22 333 4444 55555 666666 7777777",
    "3.14159 1,000,000 1.000.000 1_000 1e-5 0x1F 10% $100 €50 №5 #6 (7) [8] {9}",
    "12:34:56 2024-01-31 31/01/2024 +49 30 123456",
    "٠١٢٣٤٥٦٧٨٩ १२३४५ ০১২৩৪ ๑๒๓๔ ０１２３４５ ⅷ ½ ¾ ² ³ ⁴ ① ㈠ 〇",
    "x1 x12 x123 x1234 1x 12x 123x 1234x 1a2b3c 1st 2nd 3rd 4th",
)
_SPACES = (
    *(" " * count for count in range(1, 18)),
    *(f"{' ' * count}a" for count in range(1, 10)),
    *(f"a{' ' * count}" for count in range(1, 10)),
    *(f"a{' ' * count}b" for count in range(1, 10)),
    *("\t" * count for count in range(1, 5)),
    *(f"a{space}b" for space in ("\t", "\v", "\f", "\u00a0", "\u2003", "\u202f", "\u3000")),
    *(f"a {space} b" for space in ("\t", "\u00a0", "\u3000")),
    "\u200b a\u200bb a\u200db \ufeffa a\u2028b a\u2029b a\u0085b",
    " a b  c   d    e     f ",
    "\ta\t\tb \tc\t d \t e",
)
_LINES = (
    *("\n" * count for count in range(1, 8)),
    *(f"a{line * count}b" for line in ("\n", "\r\n", "\r") for count in range(1, 5)),
    *(f"a {line} b" for line in ("\n", "\n\n", "\r\n", " \n ", "\t\n\t")),
    *(f"{line}a{line}" for line in ("\n", " \n", "\n ", "\n\n ", " \n\n", "\n \n")),
    "a.\nb,\n\nc!\n\n\nd?\r\ne;\n f:\n\tg",
    "def f(x):\n    if x:\n        return x + 1\n\n\treturn None\n",
    "1\n2\n\n3\r\n4",
)
_PUNCTUATION = (
    *"!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~",
    *(f"a{mark}b" for mark in "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~"),
    *(f" {mark} " for mark in "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~"),
    *(mark * count for mark in ".-=#*!?" for count in (2, 3, 4, 5, 8)),
    "... !!! ??? ?! --- === *** ### ~~~ ``` >>> <<< ||| &&& $$$ ^^^ ___",
    "a...b !a ?b (c) [d] {e} <f> /g/ *h* _i_ `j` ~k~ |l| -m- =n= +o+",
    'if (a == b && c != d || e <= f) { g[h] += i->j; } // k /* l */ "m\\n"',
    '<p class="q">r &amp; s</p> $\\frac{x}{y}$ {{t}} ${u} %v @w',
    "—–‐…•·¡¿§¶†‡°′″‰€£¥¢©®™×÷±≤≥≠≈∞∑∏√∫∂∇∈∉⊂⊃∪∩∧∨¬∀∃→←↑↓⇒⇔■□▲△●○★☆♠♥♦♣♪",
    "，。、；：？！“”‘’（）【】《》…—～·￥，。a，b。c",
    "。」「・ー〜！？…。日本",
)
_SCRIPTS = (
    "Ça où élève naïve façade Noël garçon œuvre ÀÉÎÕÜ École CAFÉ caféÉtude",
    "Straße Größe ÄÖÜ ß ẞ Ærø Øre Åse þing ðe İstanbul ıIiİ ŁódźŻÓŁĆ",
    "e\u0301cole cafe\u0301 n\u0303 A\u030a o\u0308 \u0301 a\u0301\u0302b",
    "ﬁ ﬂ ﬃ Ｆｕｌｌ ｗｉｄｔｈ ｶﾀｶﾅ ㎏ ℃ ℡ Ω K Å ² ª º",
    "Ελληνικά ΑΒΓ αβγ Άέήίόύώ ς Σ",
    "Русский язык МОСКВА москва Ёё йЙ Україна їЇ",
    "עברית שלום שָׁלוֹם",
    "العربية السلام عليكم مُحَمَّد ۔ ؟ ، ؛",
    "فارسی می‌خواهم اردو",
    "हिन्दी नमस्ते दुनिया क्षत्रिय ज्ञान । ॥",
    "বাংলা নমস্কার বিশ্ব ক্ষ",
    "தமிழ் வணக்கம் తెలుగు ನಮಸ್ಕಾರ മലയാളം ગુજરાતી ਪੰਜਾਬੀ සිංහල",
    "ภาษาไทย สวัสดีชาวโลก ๆ ฯ ลาว ພາສາລາວ ភាសាខ្មែរ မြန်မာ",
    "한국어 안녕하세요 세계 ㄱㄴㄷ ㅏㅑ \u1112\u1161\u11ab",
    "日本語 こんにちは世界 カタカナ ひらがな 東京タワー々〆ヶ",
    "中文 你好世界 中文abc中文 繁體中文 㐀㐁 𠀀𠀁",
    "ქართული Հայերեն አማርኛ ᏣᎳᎩ ᠮᠣᠩᠭᠣᠯ བོད་ཡིག ⵜⴰⵎⴰⵣⵉⵖⵜ",
    "Tiếng Việt Nguyễn Đặng ươ Ệ",
    "𝒜𝓫𝕔 𝟙𝟚𝟛 𐍈𐌰 𓀀 🄰",
    "😀 😀😀 👍🏽 👨‍👩‍👧 🇩🇪🇫🇷 ❤️ ☺ ✈️ a😀b 1😀2 #️⃣",
    "\x01\x02\x1f\x7f a\x00b \ue000 \uffff \U0010ffff \ufffd",
    "▁ a▁b ▁▁ Ġ Ċ ĠĠ âĢĻ <0x0A> <0xFF> [UNK] [PAD0]",
)
_TEXTS = (*_WORDS, *_DIGITS, *_SPACES, *_LINES, *_PUNCTUATION, *_SCRIPTS)
# All short sequences of the kinds of characters that pre-tokenizer expressions distinguish.
_SEQUENCES = tuple(
    "".join(parts)
    for kinds, length in (
        (("a", "B", "1", " ", "\n", ".", "'s", "\t", "\r", "é", "中"), 3),
        (("a", "B", "1", " ", "\n", ".", "'s"), 4),
    )
    for parts in itertools.product(kinds, repeat=length)
)
PLAIN = tuple(dict.fromkeys((*_TEXTS, "".join(_TEXTS), *_SEQUENCES)))
"""Texts of every kind, without special tokens."""
_AROUND = (
    "{0}a",
    "a{0}",
    "a{0}b",
    "a {0} b",
    "A{0}B",
    "{0} a",
    "a\n{0}\nb",
    "1{0}2",
    "{0}{0}",
    "a{0}\n\nb",
)


class Probes(NamedTuple):
    """Texts to compare tokenizers on.

    Attributes:
      plain: texts without added tokens, and each added token alone.
      around_added: texts with an added token next to other text.
    """

    plain: Sequence[str]
    around_added: Sequence[str]


def probes(files: TokenizerFiles) -> Probes:
    """Returns the probes for a tokenizer: `PLAIN`, the text of each token, and added tokens."""
    source = load(files.files[_TOKENIZER])
    added = [
        token.content
        for _, token in sorted(source.get_added_tokens_decoder().items())
        if token.content
    ]
    usual = {(False, False, False)}
    flags = source.get_added_tokens_decoder().values()
    odd = [t.content for t in flags if (t.lstrip, t.rstrip, t.single_word) not in usual]
    some = list(dict.fromkeys([*odd, *added]))[:_ADDED_TOKENS]
    spelled = source.decode_batch([[index] for index in source.get_vocab().values()])
    special = re.compile("|".join(map(re.escape, some)) or "(?!)")
    plain = dict.fromkeys([*PLAIN, *(text for text in spelled if "\ufffd" not in text)])
    return Probes(
        [*added, *(text for text in plain if not special.search(text))],
        [form.format(token) for token in some for form in _AROUND],
    )


def differences(
    source: TokenizerFiles, other: TokenizerFiles, texts: Sequence[str], vocab_size: int
) -> Iterator[str]:
    """Yields a message for each text for which two tokenizers give different ids.

    Texts with ids of `vocab_size` or more are skipped, since the model has no embedding for them.
    """
    ours, theirs = _encode(source, texts), _encode(other, texts)
    for text, one, two in zip(texts, ours, theirs, strict=True):
        if one != two and max(one, default=0) < vocab_size:
            yield f"{text[:60]!r} has the ids {_short(one)} and would have {_short(two)}"


def _short(ids: Sequence[int]) -> str:
    more = ", ..." if len(ids) > 12 else ""
    return f"[{', '.join(map(str, ids[:12]))}{more}]"


def load(data: bytes) -> tokenizers.Tokenizer:
    """Loads a tokenizer.json, with truncation and padding turned off.

    Raises:
      ValueError: the file is damaged.
    """
    with tokenizers_errors.explained():
        inner = tokenizers.Tokenizer.from_buffer(data)
        inner.no_truncation()
        inner.no_padding()
        _check_growth(inner)
        around(inner)  # some damage only shows up in use
    return inner


# Limit on how many times longer normalizers and pre-tokenizers may make a text; real ones stay
# below ten.
_MOST_GROWTH = 4096


def _check_growth(tokenizer: tokenizers.Tokenizer) -> None:
    """Raises ValueError if a text can grow too much: a few dozen doublings would never finish."""
    steps = [*_steps(tokenizer.normalizer), *_steps(tokenizer.pre_tokenizer)]
    if math.prod(map(_growth, steps)) > _MOST_GROWTH:
        raise ValueError(
            f"its {len(steps)} normalizers and pre_tokenizers can make a text more than "
            f"{_MOST_GROWTH} times longer"
        )


def _steps(component: Any) -> Iterator[Mapping[str, Any]]:
    """Yields the steps of a component as parsed JSON, with sequences flattened."""
    waiting = [] if component is None else [json.loads(component.__getstate__())]
    while waiting:
        step = waiting.pop()
        parts = step.get("normalizers", step.get("pretokenizers"))
        if parts is None:
            yield step
        else:
            waiting += parts


def _growth(step: Mapping[str, Any]) -> float:
    """An upper bound on the factor by which a step lengthens a text, in bytes."""
    if step["type"] == "ByteLevel":
        return 2
    if step["type"] == "Metaspace":
        return 3
    if step["type"] != "Replace":
        return 1
    content = len(step["content"].encode())
    literal = step["pattern"].get("String")
    return max(1, content / len(literal.encode())) if literal else 1 + content


def _encode(files: TokenizerFiles, texts: Sequence[str]) -> list[list[int]]:
    inner = load(files.files[_TOKENIZER])
    if SCORES not in files.files:
        return [each.ids for each in inner.encode_batch_fast(list(texts))]
    scores = sentencepiece.scores_of(files.files[SCORES])
    exact = sentencepiece.LeftmostFirst(json.loads(files.files[_TOKENIZER]), scores)
    first, last = around(inner)
    return [[*first, *exact.encode(text), *last] for text in texts]


def around(tokenizer: tokenizers.Tokenizer) -> tuple[list[int], list[int]]:
    """Returns the ids of the special tokens that a tokenizer adds before and after a text."""
    for text in ("a", "1", " ", ""):
        bare = tokenizer.encode(text, add_special_tokens=False).ids
        whole = tokenizer.encode(text).ids
        if bare or not text:
            break
    for start in range(len(whole) - len(bare) + 1):
        if bare and whole[start : start + len(bare)] == bare:
            return whole[:start], whole[start + len(bare) :]
    return whole, []


def cuts(pre: Any) -> list[list[str]] | None:
    """Splits each text of `PLAIN` with a pre-tokenizer; returns None if `pre` is None."""
    if pre is None:
        return None
    return [[piece for piece, _ in pre.pre_tokenize_str(text)] for text in PLAIN]


def cuts_of(value: Mapping[str, Any]) -> list[list[str]] | None:
    """Like `cuts`, for the `pre_tokenizer` value of a tokenizer.json."""
    return _cuts_of_text(json.dumps(value))


@functools.cache
def _cuts_of_text(value: str) -> list[list[str]] | None:
    shell = json.loads(tokenizers.Tokenizer(tokenizers.models.BPE()).to_str())
    shell["pre_tokenizer"] = json.loads(value)
    return cuts(tokenizers.Tokenizer.from_str(json.dumps(shell)).pre_tokenizer)
