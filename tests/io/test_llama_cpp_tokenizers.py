"""llama.cpp itself on the tokenizers that are read from GGUF files, and on those written."""

import json
import random
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFWriter
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from rrope_jax.data.tokenizers import load_tokenizer
from rrope_jax.io.gguf import tokenizer as gguf_tokenizer
from rrope_jax.io.gguf import vocabulary as gguf_vocabulary
from rrope_jax.io.gguf.pre_tokenizers import PRE_TOKENIZERS
from rrope_jax.io.gguf.write import _add
from rrope_jax.io.tokenizer import probes as tokenizer_probes
from tests.io.vocabularies import byte_level, files, sentencepiece_json, size

pytestmark = [pytest.mark.peers, pytest.mark.slow]
xllamacpp = pytest.importorskip("xllamacpp", reason="needs llama.cpp (the package xllamacpp)")

Ids = list[int]
WIDTH = 32
# llama.cpp tells spaces and digits beyond ASCII apart in these, where the model's own does not
_SPACES_BEYOND_ASCII = {"deepseek-coder", "superbpe"}


def _server(folder: Path, metadata: dict[str, Any]) -> Any:
    """llama.cpp with a model of one layer and this tokenizer."""
    path = folder / "model.gguf"
    vocabulary = len(metadata["tokenizer.ggml.tokens"])
    writer = GGUFWriter(path, "llama")
    sizes = {
        "block_count": 1,
        "context_length": 64,
        "embedding_length": WIDTH,
        "feed_forward_length": WIDTH,
        "attention.head_count": 1,
        "attention.layer_norm_rms_epsilon": 1e-5,
    }
    _add(writer, {f"llama.{key}": value for key, value in sizes.items()} | metadata)
    norms = ("blk.0.attn_norm", "blk.0.ffn_norm", "output_norm")
    kernels = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
    shapes = {
        "token_embd": (vocabulary, WIDTH),
        **dict.fromkeys(norms, (WIDTH,)),
        **{f"blk.0.{name}": (WIDTH, WIDTH) for name in kernels},
    }
    for name, shape in shapes.items():
        writer.add_tensor(f"{name}.weight", np.zeros(shape, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(path)
    parameters.n_ctx = 64
    parameters.n_parallel = 1
    parameters.warmup = False
    parameters.verbosity = 0
    return xllamacpp.Server(parameters)


def _asker(folder: Path, metadata: dict[str, Any]) -> Callable[[str], Ids]:
    server = _server(folder, metadata)

    def ask(text: str) -> Ids:
        content = {"content": text, "parse_special": True, "add_special": True}
        request = urllib.request.Request(
            f"{server.listening_address}/tokenize",
            json.dumps(content).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request) as answer:
            ids: Ids = json.loads(answer.read())["tokens"]
        return ids

    return ask


def _texts() -> Sequence[str]:
    """Those of every kind, and some of the short sequences."""
    chosen = random.Random(0).sample(tokenizer_probes.PLAIN, 400)
    long = [text for text in tokenizer_probes.PLAIN if len(text) > 8]
    return [text for text in dict.fromkeys([*long, *chosen]) if "\x00" not in text]


@pytest.fixture(scope="module")
def joined() -> dict[str, Any]:
    """A vocabulary that joins whatever no pre-tokenizer keeps apart."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    trainer = trainers.BpeTrainer(
        vocab_size=6000,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        special_tokens=["<s>", "</s>"],
        max_token_length=60,
        show_progress=False,
    )
    tokenizer.train_from_iterator(list(tokenizer_probes.PLAIN) * 2, trainer)
    model = json.loads(tokenizer.to_str())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].__getitem__)
    return byte_level(
        tokens=tokens,
        merges=[" ".join(merge) for merge in model["merges"]],
        token_type=[3, 3] + [1] * (len(tokens) - 2),
        bos_token_id=0,
        eos_token_id=1,
    )


@pytest.mark.parametrize("pre", [n for n, row in PRE_TOKENIZERS.items() if n == row.names[0]])
def test_pre_tokenizers(pre: str, joined: dict[str, Any], tmp_path: Path) -> None:
    metadata = joined | {"tokenizer.ggml.pre": pre}
    ask = _asker(tmp_path, metadata)
    vocabulary = gguf_vocabulary.read(metadata)
    assert vocabulary is not None
    made = gguf_tokenizer.files_of(vocabulary, adapted=True)
    assert made is not None
    ours = tokenizer_probes.load(made.files["tokenizer.json"])
    texts = _texts()
    wrong = [text for text in texts if ask(text) != ours.encode(text).ids]
    if pre in _SPACES_BEYOND_ASCII:
        wrong = [text for text in wrong if text.isascii()]
    assert wrong == []


@pytest.mark.parametrize(
    "keys",
    [
        {"pre": "llama-bpe"},
        {"pre": "smollm"},
        {},
        {"pre": "llama-bpe", "bos_token_id": None},
        {"pre": "llama-bpe", "add_eos_token": True},
        {"pre": "gpt-2", "token_type": None},
        {"merges": ["[NO] [MERGE]"]},
    ],
)
def test_defaults_of_byte_level_vocabularies(keys: dict[str, Any], tmp_path: Path) -> None:
    metadata = byte_level(**keys)
    ask = _asker(tmp_path, metadata)
    made = gguf_tokenizer.tokenizer_files(metadata)
    assert made is not None
    ours = tokenizer_probes.load(made.files["tokenizer.json"])
    for text in ("abcd", "ab<|eot_id|>cd", "1234", "a 12 x"):
        assert ask(text) == ours.encode(text).ids


@pytest.mark.parametrize("seed", range(6))
def test_joining_by_scores(seed: int, tmp_path: Path) -> None:
    """Random vocabularies with scores that are all different, some equal, all equal or absent."""
    draw = random.Random(seed)
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    words = {
        "".join(draw.choices("▁abc", k=draw.randint(2, 5))) for _ in range(draw.randint(5, 40))
    }
    tokens = [*special, *"▁abc", *sorted(words), "[X]"]
    count = len(tokens)
    scores = (
        [-float(index) for index in draw.sample(range(count), count)],
        [-float(draw.randint(0, 4)) for _ in tokens],
        None,
    )[seed % 3]
    kinds = [2, 3, 3] + [6] * 256 + [1] * (count - 260) + [4]
    keys = {"model": "llama", "tokens": tokens, "token_type": kinds, "scores": scores}
    metadata = {f"tokenizer.ggml.{key}": value for key, value in keys.items() if value is not None}
    if seed > 2:
        metadata["tokenizer.ggml.add_space_prefix"] = False
    ask = _asker(tmp_path, metadata)
    made = gguf_tokenizer.tokenizer_files(metadata)
    assert made is not None
    ours = load_tokenizer(made)
    for _ in range(60):
        parts = ("a", "b", "c", " ", "  ", "[X]", "é", "\n", "aaa")
        text = "".join(draw.choices(parts, k=draw.randint(1, 14)))
        assert ask(text) == [1, *ours.encode(text)]


def test_what_is_written(tmp_path: Path) -> None:
    """The tokens of the source, and those that its limits make of it."""
    tokenizer = sentencepiece_json()
    source = files(tokenizer, bos_token="<s>", eos_token="</s>")
    ask = _asker(tmp_path, gguf_tokenizer.metadata_of(source, size(tokenizer)))
    ours = load_tokenizer(source)
    for text in ("ab", "a 12 b", " ab", "é 😀", "ab</s>ab"):
        assert ask(text) == ours.encode(text)


def test_whole_words_as_written(tmp_path: Path) -> None:
    made = gguf_tokenizer.tokenizer_files(byte_level(pre="smaug-bpe"))
    assert made is not None
    metadata = gguf_tokenizer.metadata_of(made, 18)
    assert _asker(tmp_path, metadata)("abcd") == load_tokenizer(made).encode("abcd")
