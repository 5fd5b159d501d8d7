"""Tokenizers that travel between Hugging Face folders and GGUF files."""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from rrope_jax.io import pretrained
from rrope_jax.io.conversion import convert
from rrope_jax.io.gguf import tokenizer as gguf_tokenizer
from rrope_jax.io.gguf.pre_tokenizers import PRE_TOKENIZERS
from rrope_jax.io.tokenizer import probes as tokenizer_probes
from rrope_jax.io.tokenizer.files import TokenizerFiles
from tests.io import tiny

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "LICENSE").read_text()
SAMPLES = (
    TEXT[:2000],
    "in 2024, 12345 tokens\n\n\tDON'T we'll  x =  3;",
    "naïve 漢字 🙂",
    "<|im_start|>user\nHello<|im_end|> there",
)
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
VOCABULARY = 400


def _byte_level(pre: Mapping[str, Any], *, ignore_merges: bool = False) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([TEXT], trainer)
    value = json.loads(tokenizer.to_str())
    value |= {"pre_tokenizer": pre, "decoder": pre_tokenizers_decoder()}
    return Tokenizer.from_str(json.dumps(value))


def pre_tokenizers_decoder() -> dict[str, Any]:
    return {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}


def _sentencepiece() -> Tokenizer:
    """Like LLaMA 2's tokenizer.json."""
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY + 256, special_tokens=special, show_progress=False
    )
    tokenizer.train_from_iterator([TEXT.replace(" ", "▁")[:4000]], trainer)
    value = json.loads(tokenizer.to_str())
    # bytes are ordinary tokens of the vocabulary
    value["added_tokens"] = [entry for entry in value["added_tokens"] if entry["id"] < 3]
    return Tokenizer.from_str(json.dumps(value))


def _files(tokenizer: Tokenizer, **config: Any) -> TokenizerFiles:
    return TokenizerFiles(
        {
            "tokenizer.json": tokenizer.to_str().encode(),
            "tokenizer_config.json": json.dumps(config).encode(),
        }
    )


def _loaded(files: TokenizerFiles | None) -> Tokenizer:
    assert files is not None
    return Tokenizer.from_buffer(files.files["tokenizer.json"])


def _assert_same(one: Tokenizer, other: Tokenizer) -> None:
    for text in SAMPLES:
        ids = one.encode(text).ids
        assert other.encode(text).ids == ids
        assert other.decode(ids) == one.decode(ids)


@pytest.mark.parametrize("pre", [n for n, row in PRE_TOKENIZERS.items() if n == row.names[0]])
def test_byte_level_round_trip(pre: str) -> None:
    row = PRE_TOKENIZERS[pre]
    tokenizer = _byte_level(row.value, ignore_merges=row.ignore_merges)
    files = _files(tokenizer, eos_token="<|im_end|>", chat_template="{{ messages }}")
    metadata = gguf_tokenizer.metadata_of(files, VOCABULARY + 8)
    back = gguf_tokenizer.tokenizer_files(metadata)
    _assert_same(tokenizer, _loaded(back))
    written = PRE_TOKENIZERS[metadata["tokenizer.ggml.pre"]]
    assert (written.value, written.ignore_merges) == (row.value, row.ignore_merges)
    assert metadata["tokenizer.ggml.eos_token_id"] == 2
    assert len(metadata["tokenizer.ggml.tokens"]) == VOCABULARY + 8
    assert metadata["tokenizer.ggml.token_type"][:4] == [3, 3, 3, 1]
    config = json.loads(back.files["tokenizer_config.json"])
    assert (config["eos_token"], config["chat_template"]) == ("<|im_end|>", "{{ messages }}")


def test_no_two_ways_to_cut_are_taken_for_one_another() -> None:
    """The texts tell all of them apart but those that are alike."""
    found: dict[str, list[str]] = {}
    for name, row in PRE_TOKENIZERS.items():
        if name == row.names[0]:
            cuts = json.dumps(tokenizer_probes.cuts_of(row.value))
            found.setdefault(cuts, []).append(name)
    assert {tuple(names) for names in found.values() if len(names) > 1} == {
        ("llama-bpe", "smaug-bpe", "chatglm-bpe"),
        ("qwen2", "bailingmoe"),
    }


def test_a_pre_tokenizer_that_is_written_another_way() -> None:
    single = {
        "type": "Split",
        "pattern": {"Regex": r"\p{N}"},
        "behavior": "Isolated",
        "invert": False,
    }
    steps = [single, PRE_TOKENIZERS["gpt-2"].value]
    tokenizer = _byte_level({"type": "Sequence", "pretokenizers": steps})
    metadata = gguf_tokenizer.metadata_of(_files(tokenizer, eos_token="<|im_end|>"), VOCABULARY)
    assert metadata["tokenizer.ggml.pre"] == "smollm"


def test_pre_tokenizers_cut_text_differently() -> None:
    """Digits one by one, in threes, or all at once."""
    cuts = {}
    for name in ("smollm", "llama-bpe", "gpt-2"):
        value = {"pre_tokenizer": PRE_TOKENIZERS[name].value}
        made = json.loads(Tokenizer(models.BPE()).to_str()) | value
        pre = Tokenizer.from_str(json.dumps(made)).pre_tokenizer
        cuts[name] = [piece for piece, _ in pre.pre_tokenize_str("a 12345")]
    assert cuts == {
        "smollm": ["a", "Ġ", "1", "2", "3", "4", "5"],
        "llama-bpe": ["a", "Ġ", "123", "45"],
        "gpt-2": ["a", "Ġ12345"],
    }


def test_sentencepiece_round_trip() -> None:
    tokenizer = _sentencepiece()
    files = _files(tokenizer, bos_token={"content": "<s>"}, eos_token="</s>", unk_token="<unk>")
    metadata = gguf_tokenizer.metadata_of(files, tokenizer.get_vocab_size())
    _assert_same(tokenizer, _loaded(gguf_tokenizer.tokenizer_files(metadata)))
    assert metadata["tokenizer.ggml.model"] == "llama"
    assert metadata["tokenizer.ggml.token_type"][:4] == [2, 3, 3, 6]
    assert metadata["tokenizer.ggml.bos_token_id"] == 1
    assert metadata["tokenizer.ggml.add_bos_token"] is False
    # llama.cpp joins the pair with the highest score first: as tokenizer.json orders its merges
    scores = dict(
        zip(metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.scores"], strict=True)
    )
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    ranked = [scores["".join(merge)] for merge in merges]
    assert ranked == sorted(ranked, reverse=True)


def test_first_token_of_a_text_is_kept() -> None:
    """Where tokenizer.json puts a token before a text, so do the GGUF file and what it becomes."""
    tokenizer = _sentencepiece()
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    files = _files(tokenizer, bos_token="<s>")
    metadata = gguf_tokenizer.metadata_of(files, tokenizer.get_vocab_size())
    assert metadata["tokenizer.ggml.add_bos_token"] is True
    back = _loaded(gguf_tokenizer.tokenizer_files(metadata))
    assert back.encode("work").ids == tokenizer.encode("work").ids
    assert back.encode("work").ids[0] == 1


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (TokenizerFiles({"tokenizer.model": b""}), "no tokenizer.json"),
        (_files(Tokenizer(models.WordLevel({"a": 0}))), "model.type='WordLevel'"),
        (_files(Tokenizer(models.BPE({"a": 0, "b": 50}, []))), "token of id 50"),
        (TokenizerFiles({"tokenizer.json": b"[1]"}), "must hold a JSON object"),
        (TokenizerFiles({"tokenizer.json": b'{"model": {"type": "BPE"}}'}), "cannot be read"),
        (_files(Tokenizer(models.BPE({"a": 0}, []))), "no known name in llama.cpp"),
    ],
)
def test_tokenizers_without_a_form_in_gguf(files: TokenizerFiles, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        gguf_tokenizer.metadata_of(files, 40)


@pytest.mark.parametrize("keys", [{"model": "bert"}, {"model": "gpt2", "pre": "kimi-k2"}])
def test_unknown_tokenizers_are_left_out_with_a_warning(
    keys: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    metadata = {"tokenizer.ggml.tokens": ["a"]} | {
        f"tokenizer.ggml.{key}": value for key, value in keys.items()
    }
    with caplog.at_level(logging.WARNING):
        assert gguf_tokenizer.tokenizer_files(metadata) is None
    assert "left out" in caplog.text


def test_files_travel_through_all_formats(tmp_path: Path) -> None:
    tokenizer = _byte_level(PRE_TOKENIZERS["smollm"].value)
    files = _files(tokenizer, eos_token="<|im_end|>")
    made = tiny.decoder(vocab_size=VOCABULARY)
    previous = tiny.save(made, tmp_path / "first", "hf", tokenizer=files)
    for step, target_format in enumerate(("orbax", "gguf", "orbax", "hf")):
        following = tmp_path / str(step)
        convert(previous, following, target_format)
        previous = following
    back = pretrained.describe(previous).tokenizer
    _assert_same(tokenizer, _loaded(back))
    # without a GGUF file on the way, not a byte changes
    convert(tmp_path / "first", tmp_path / "native", "orbax")
    assert pretrained.describe(tmp_path / "native").tokenizer == files
