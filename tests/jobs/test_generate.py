"""`rrope generate` as a user runs it, on a tiny model of bytes."""

import json
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from rrope_jax.__main__ import main
from rrope_jax.evaluation.generation import Generator
from rrope_jax.io.conversion import convert
from rrope_jax.io.memory import DecoderSource
from rrope_jax.io.pretrained import Description
from rrope_jax.io.tokenizer.files import TokenizerFiles
from tests.evaluation.tiny import byte_decoder, logits
from tests.jobs.tiny_checkpoint import write_checkpoint
from tests.posgen.conftest import quick_compilation as quick_compilation

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True, scope="module")
def _quick(quick_compilation: None) -> None:
    pass


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("model"))


def generate(checkpoint: Path, *words: str) -> int:
    return main(["generate", f"--checkpoint={checkpoint}", "--tokenizer=bytes", *words])


def greedy(prompt: str, count: int) -> str:
    tokens = list(prompt.encode())
    for _ in range(count):
        tokens.append(int(logits(byte_decoder(), np.array(tokens, np.int32))[-1].argmax()))
    written = [token for token in tokens[len(prompt) :] if token < 256]
    text = bytes([*prompt.encode(), *written]).decode(errors="replace")
    return text.removeprefix(prompt)


def test_prints_the_greedy_continuation(
    checkpoint: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert generate(checkpoint, "--prompt=Once upon", "--max_tokens=4") == 0
    captured = capfd.readouterr()
    assert captured.out == greedy("Once upon", 4) + "\n"
    assert "read 9 tokens" in captured.err


def test_weights_in_int8_take_less_memory_and_keep_a_clear_choice(
    checkpoint: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    rounded = ["--config.model.weight_dtype=int8", "--config.model.compute_dtype=bfloat16"]
    rounded.append("--chunk=4")  # the prompt in three parts
    assert generate(checkpoint, "--prompt=Once upon", "--max_tokens=1", *rounded) == 0
    assert capfd.readouterr().out == greedy("Once upon", 1) + "\n"
    assert generate(checkpoint, "--prompt=a", "--config.model.weight_dtype=int4") == 2
    assert "choose one of float32, bfloat16, int8" in capfd.readouterr().err


@pytest.mark.parametrize("when", ["before", "during"])
def test_memory_that_is_too_small_is_one_line_with_what_helps(
    when: str, checkpoint: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def exhausted(*_: object, **__: object) -> None:
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes")

    if when == "before":

        class Small:
            def memory_stats(self) -> dict[str, int]:
                return {"bytes_limit": 10_000}

        monkeypatch.setattr(jax, "local_devices", lambda: [Small()])
    else:
        monkeypatch.setattr(Generator, "read", exhausted)
    assert generate(checkpoint, "--prompt=Once upon") == 2
    error = capfd.readouterr().err.splitlines()[-1]
    assert "config.model.weight_dtype=bfloat16 takes" in error
    assert "config.model.weight_dtype=int8 takes" in error


def test_draws_by_seed(checkpoint: Path, capfd: pytest.CaptureFixture[str]) -> None:
    def text(seed: int) -> str:
        words = ["--prompt=a", "--max_tokens=12", "--temperature=3", f"--seed={seed}"]
        assert generate(checkpoint, *words) == 0
        return capfd.readouterr().out

    assert text(1) == text(1) != text(2)


def test_rope_overrides_change_the_text(
    checkpoint: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    prompt = ["--prompt=" + "It was a dark and stormy night. " * 3, "--max_tokens=8"]
    assert generate(checkpoint, *prompt) == 0
    plain = capfd.readouterr()
    assert "the model is meant for 64" in plain.err
    assert (
        generate(checkpoint, *prompt, "--config.rope.scaling=linear", "--config.rope.factor=4") == 0
    )
    scaled = capfd.readouterr()
    assert "meant for" not in scaled.err
    assert scaled.out != plain.out


def test_as_a_process(checkpoint: Path) -> None:
    words = [f"--checkpoint={checkpoint}", "--prompt=Once upon", "--max_tokens=2"]
    done = subprocess.run(
        [sys.executable, "-m", "rrope_jax", "generate", *words, "--tokenizer=bytes"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=True,
    )
    assert done.stdout == greedy("Once upon", 2) + "\n"
    assert "read 9 tokens" in done.stderr.splitlines()[-1]


@pytest.fixture(scope="module")
def padded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model of 258 ids, and a tokenizer with a padding token of id 258."""
    folder = tmp_path_factory.mktemp("padded")
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = Tokenizer(models.BPE({token: index for index, token in enumerate(alphabet)}, []))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens(["<s>", "</s>", "<pad>"])
    config = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    decoder = byte_decoder()
    files = TokenizerFiles(
        {
            "tokenizer.json": inner.to_str().encode(),
            "tokenizer_config.json": json.dumps(config).encode(),
        }
    )
    description = Description(decoder.config, decoder.rope, 64, tokenizer=files)
    convert(DecoderSource(decoder, description), folder / "hf", "hf")
    return folder / "hf"


def test_an_added_token_beyond_the_embedding(
    padded: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    words = ["generate", f"--checkpoint={padded}", "--max_tokens=2"]
    assert main([*words, "--prompt=Once"]) == 0
    assert "ids up to 258 ('<pad>'), the model embeddings for 258" in caplog.text
    capsys.readouterr()
    assert main([*words, "--prompt=Once<pad>"]) == 2
    assert "--prompt: a text has the token '<pad>' of id 258" in capsys.readouterr().err
    for target in ("a.gguf", "a"):
        to = padded.parent / target
        assert main(["convert", f"--from={padded}", f"--to={to}"]) == 0
        assert main(["generate", f"--checkpoint={to}", "--prompt=a", "--max_tokens=1"]) == 0


def test_stops_at_every_end_of_a_text(padded: Path, capfd: pytest.CaptureFixture[str]) -> None:
    words = ["generate", f"--checkpoint={padded}", "--max_tokens=6", "--prompt=Once"]
    assert main(words) == 0
    assert "wrote 6 in" in capfd.readouterr().err
    file = padded / "generation_config.json"
    file.write_text(json.dumps({"eos_token_id": list(range(256))}))
    try:
        assert main(words) == 0
    finally:
        file.unlink()
    assert "wrote 0 in" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--prompt="], "--prompt is empty"),
        (["--prompt=a", "--max_tokens=0"], "--max_tokens=0: it has to be at least 1"),
        (["--prompt=a", "--top_p=2"], "--top_p=2.0 must be above 0"),
        (["--prompt=a", "--temperature=nan"], "--temperature=nan must be finite"),
        (["--prompt=a", f"--seed={2**70}"], "must be from 0 to 2^32 - 1"),
        (["--prompt=a", "--chunk=0"], "--chunk=0: it has to be at least 1"),
        (["--prompt=a\udcff"], "--prompt is not UTF-8 text"),
        (["--prompt=a", "--config.rope.scaling=yern"], "scaling='yern' is unknown"),
        (["--prompt=a", "--config.rope.sclaing=yarn"], "did you mean 'scaling'?"),
        (["--prompt=a", "--tokenizer=absent"], "tokenizer='absent' does not exist"),
    ],
)
def test_bad_usage_is_one_line(
    words: list[str], said: str, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert generate(checkpoint, *words) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("rrope generate: ")
    assert said in captured.err
    assert captured.err.count("\n") == 1
    assert captured.out == ""
