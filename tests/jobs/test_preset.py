"""`config.model.preset`: a new model's start, a check of a checkpoint, and planning without one."""

import dataclasses
import runpy
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from rrope_jax.cli.errors import UsageError
from rrope_jax.cli.settings import from_config
from rrope_jax.io import pretrained
from rrope_jax.jobs.train_setting import TrainSetting
from rrope_jax.model.presets import PRESETS

CONFIGS = Path(__file__).parents[2] / "configs"


def _config(name: str) -> ConfigDict:
    file, *argument = name.split(":")
    config: ConfigDict = runpy.run_path(str(CONFIGS / file))["get_config"](*argument)
    return config


def _setting(config: ConfigDict) -> TrainSetting:
    return from_config(TrainSetting, config, "config")


@pytest.mark.parametrize(
    ("name", "preset", "rows"),
    [
        ("llama.py:7b,32k", "llama2_7b", 32_768),
        ("llama.py:13b,16k", "llama2_13b", 16_384),
        ("llama.py:llama3_8b,128k", "llama3_8b", 131_072),
    ],
)
def test_a_config_is_planned_without_its_checkpoint(name: str, preset: str, rows: int) -> None:
    setting = _setting(_config(name))
    description = setting.describe(elsewhere=True)
    program = setting.program(description)
    known = PRESETS[preset]
    assert program.model == dataclasses.replace(known.model, compute_dtype="bfloat16", remat="full")
    assert description.context == program.train.length == rows
    assert program.rope.theta == known.rope.theta
    assert program.rope.original_context == known.context
    assert description.tokenizer is None


def test_here_the_checkpoint_has_to_be_there() -> None:
    with pytest.raises(UsageError, match=r"config.checkpoint.init_from.* does not exist"):
        _setting(_config("llama.py:7b,32k")).describe()


def test_a_checkpoint_of_another_model_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    larger = PRESETS["llama2_13b"]

    class Source:
        description = pretrained.Description(larger.model, larger.rope, larger.context)

        def check(self) -> None:
            pass

    monkeypatch.setattr(pretrained, "open_source", lambda path: Source())
    with pytest.raises(UsageError, match="its d_model is 5120, not 4096"):
        _setting(_config("llama.py:7b,32k")).describe()


def test_a_new_model_starts_from_a_preset() -> None:
    config = _config("tiny_from_scratch.py")
    config.model = ConfigDict({"preset": "tiny", "vocab_size": 300, "num_layers": 3})
    config.rope = ConfigDict({"resonance": True})
    description = _setting(config).describe()
    program = _setting(config).program(description)
    tiny = PRESETS["tiny"]
    assert program.model == dataclasses.replace(tiny.model, vocab_size=300, num_layers=3)
    assert description.rope == dataclasses.replace(tiny.rope, resonance=True)
    assert description.tokenizer is None  # bytes are their own
    assert description.extras


def test_an_unknown_preset_is_refused() -> None:
    config = _config("tiny_from_scratch.py")
    config.model = ConfigDict({"preset": "llama9"})
    with pytest.raises(UsageError, match=r"config.model.preset = 'llama9' is unknown; .*llama3_8b"):
        _setting(config)
