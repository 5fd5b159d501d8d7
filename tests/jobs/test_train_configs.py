"""The configs of `rrope train` in configs/ say what their docstrings promise."""

import dataclasses
import hashlib
import json
import runpy
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from rrope_jax.__main__ import main
from rrope_jax.cli.settings import from_config
from rrope_jax.io import pretrained
from rrope_jax.io.huggingface.read import HuggingFaceSource
from rrope_jax.jobs.train_setting import TrainSetting
from rrope_jax.model.presets import PRESETS
from rrope_jax.train.config import TrainConfig
from rrope_jax.train.step import Program
from tests.io import tiny

CONFIGS = Path(__file__).parents[2] / "configs"


def _config(name: str) -> ConfigDict:
    file, *argument = name.split(":")
    config: ConfigDict = runpy.run_path(str(CONFIGS / file))["get_config"](*argument)
    return config


def _program(config: ConfigDict) -> tuple[Program, pretrained.Description]:
    setting = from_config(TrainSetting, config, "config")
    description = setting.describe()
    return setting.program(description), description


def _planned(
    name: str, preset: str, monkeypatch: pytest.MonkeyPatch
) -> tuple[Program, pretrained.Description]:
    """The program of a config that continues a checkpoint, without the checkpoint."""
    known = PRESETS[preset]

    class Source:
        description = pretrained.Description(known.model, known.rope, known.context)

        def check(self) -> None:
            pass

    monkeypatch.setattr(pretrained, "open_source", lambda path: Source())
    return _program(_config(name))


@pytest.mark.parametrize(
    ("name", "preset", "factor", "rows", "steps"),
    [
        ("llama.py:7b,32k", "llama2_7b", 8, 32768, 50),
        ("llama.py:7b,32k,rows_4k", "llama2_7b", 8, 4096, 400),
        ("llama.py:13b,16k", "llama2_13b", 4, 16384, 100),
        ("llama.py:13b,16k,rows_4k", "llama2_13b", 4, 4096, 400),
    ],
)
def test_llama2_is_trained_as_in_the_paper(
    name: str,
    preset: str,
    factor: int,
    rows: int,
    steps: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    program, description = _planned(name, preset, monkeypatch)
    assert description.context == factor * 4096
    assert program.rope == dataclasses.replace(
        PRESETS[preset].rope, scaling="yarn", factor=factor, original_context=4096, resonance=True
    )
    setting = program.train
    assert (setting.steps, setting.length, setting.learning_rate) == (steps, rows, 2e-5)
    assert setting.steps * setting.batch_size * setting.length == 104_857_600  # "about 100M"
    assert setting.weight_decay == 1e-2
    assert setting.warmup_steps == -(-steps // 20)  # "the first 5 %"
    assert setting.gradient_clip is None
    assert program.model.compute_dtype == "bfloat16"


@pytest.mark.parametrize(
    ("argument", "digest"),
    [
        ("7b,32k", "841a3e06f601d7b4"),
        ("7b,32k,rows_4k", "1d0dc6bbece32a3c"),
        ("13b,16k", "527e8b34458e9c6a"),
        ("13b,16k,rows_4k", "aabac8db2e4e815e"),
        ("llama3_8b,128k", "d0e0699aaf53b79e"),
    ],
)
def test_llama_continues_workdirs_of_the_five_configs_it_replaces(
    argument: str, digest: str
) -> None:
    """A workdir belongs to the content of a config; the digests are of the five former files."""
    content = json.dumps(_config(f"llama.py:{argument}").to_dict(), sort_keys=True)
    assert hashlib.blake2b(content.encode(), digest_size=8).hexdigest() == digest


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        (
            "70b,32k",
            "'70b,32k' is not MODEL,LENGTH or MODEL,LENGTH,rows_4k, such as 7b,32k;",
        ),
        ("7b", "lengths 8k, 16k, 32k, 64k, 128k"),
        ("7b,4k", "lengths 8k, 16k, 32k, 64k, 128k"),
        ("7b,32k,rows_8k", "is not MODEL,LENGTH"),
        ("llama3_8b,8k", "llama3_8b has a context of 8k already"),
    ],
)
def test_a_wrong_argument_is_one_line(
    argument: str, message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    workdir = tmp_path / "run"
    config = f"--config={CONFIGS / 'llama.py'}:{argument}"
    assert main(["train", config, f"--workdir={workdir}"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert not workdir.exists()


@pytest.mark.parametrize(
    ("argument", "original", "factor", "rows"),
    [
        ("qwen3_8b,128k", 32_768, 4, 16),
        ("gemma3_27b,256k", 16_384, 16, 8),  # a linear scaling by 8 reached its 128k
        ("olmo3_7b,128k", 8192, 16, 16),
        ("phi4_mini,256k", 4096, 64, 8),
        ("smollm2_135m,32k", 8192, 4, 64),
    ],
)
def test_any_preset_is_continued(argument: str, original: int, factor: int, rows: int) -> None:
    setting = from_config(TrainSetting, _config(f"pretrained.py:{argument}"), "config")
    description = setting.describe(elsewhere=True)
    preset = PRESETS[argument.partition(",")[0]]
    expected = dataclasses.replace(preset.model, compute_dtype="bfloat16", remat="full")
    assert description.model == expected
    rope = description.rope
    assert (rope.scaling, rope.resonance) == ("yarn", True)
    assert (rope.original_context, rope.factor) == (original, factor)
    assert rope.of("sliding_attention") == (preset.rope.sliding_attention or rope)
    assert description.context == setting.train.length == original * factor
    assert setting.train.batch_size == rows


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("qwen3_9b,128k", "'qwen3_9b,128k' is not PRESET,LENGTH, such as qwen3_8b,128k; presets"),
        ("qwen3_8b", "lengths 16k, 32k"),
        ("gemma3_27b,128k", "'gemma3_27b,128k': gemma3_27b has a context of 131072 already"),
    ],
)
def test_a_preset_is_refused_in_one_line(
    argument: str, message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    config = f"--config={CONFIGS / 'pretrained.py'}:{argument}"
    assert main(["train", config, f"--workdir={tmp_path / 'run'}"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


@pytest.mark.parametrize("length", ["8k", "16k", "32k", "64k", "128k"])
def test_llama_sees_as_many_tokens_at_every_length(length: str) -> None:
    config = _config(f"llama.py:7b,{length}")
    train = from_config(TrainConfig, config.train, "config.train")
    assert train.steps * train.batch_size * train.length == 104_857_600
    assert config.rope.factor * 4096 == train.length


def test_smollm2_reaches_32k(monkeypatch: pytest.MonkeyPatch) -> None:
    program, description = _planned("extend_smollm2.py", "smollm2_135m", monkeypatch)
    assert description.context == program.train.reach == 32768
    assert program.rope.original_context == 8192


def test_tiny_is_as_large_as_it_says() -> None:
    program, description = _program(_config("tiny_from_scratch.py"))
    assert (program.model.vocab_size, description.context) == (258, 256)


@pytest.mark.parametrize(
    "name", ["tiny_from_scratch.py", "mixture_from_scratch.py", "extend_smollm2.py"]
)
def test_every_group_is_read(name: str) -> None:
    assert from_config(TrainSetting, _config(name), "config").checkpoint.keep >= 1


def test_a_checkpoint_is_opened_and_checked_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tiny.save(tiny.decoder(), tmp_path / "a", "hf")
    config = _config("extend_smollm2.py")
    config.checkpoint.init_from, config.data.tokenizer = str(path), "bytes"
    setting = from_config(TrainSetting, config, "config")
    opened: list[str] = []
    checked: list[HuggingFaceSource] = []
    open_source, check = pretrained.open_source, HuggingFaceSource._check
    monkeypatch.setattr(pretrained, "open_source", lambda p: opened.append(p) or open_source(p))
    monkeypatch.setattr(
        HuggingFaceSource, "_check", lambda source: checked.append(source) or check(source)
    )
    assert setting.describe().model.num_heads == tiny.MODEL.num_heads
    assert setting.source is not None
    pretrained.load_params(setting.source)
    assert opened == [str(path)]
    assert checked == [setting.source]
