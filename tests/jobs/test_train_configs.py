"""The configs of `rrope train` in configs/ say what their docstrings promise."""

import dataclasses
import runpy
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from rrope_jax.cli.settings import from_config
from rrope_jax.io import pretrained
from rrope_jax.jobs.train_setting import TrainSetting
from rrope_jax.model.presets import PRESETS
from rrope_jax.train.step import Program

CONFIGS = Path(__file__).parents[2] / "configs"


def _config(name: str) -> ConfigDict:
    config: ConfigDict = runpy.run_path(str(CONFIGS / f"{name}.py"))["get_config"]()
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
        ("llama2_7b_resonance_yarn_32k", "llama2_7b", 8, 32768, 50),
        ("llama2_7b_resonance_yarn_32k_rows_4k", "llama2_7b", 8, 4096, 400),
        ("llama2_13b_resonance_yarn_16k", "llama2_13b", 4, 16384, 100),
        ("llama2_13b_resonance_yarn_16k_rows_4k", "llama2_13b", 4, 4096, 400),
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


def test_smollm2_reaches_32k(monkeypatch: pytest.MonkeyPatch) -> None:
    program, description = _planned("extend_smollm2", "smollm2_135m", monkeypatch)
    assert description.context == program.train.reach == 32768
    assert program.rope.original_context == 8192


def test_tiny_is_as_large_as_it_says() -> None:
    program, description = _program(_config("tiny_from_scratch"))
    assert (program.model.vocab_size, description.context) == (258, 256)


@pytest.mark.parametrize("name", ["tiny_from_scratch", "extend_smollm2"])
def test_every_group_is_read(name: str) -> None:
    assert from_config(TrainSetting, _config(name), "config").checkpoint.keep >= 1
