"""LoRA by `rrope train`: small checkpoints, which are read merged, and exact resumption."""

import runpy
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx

from rrope_jax.__main__ import main
from rrope_jax.io import pretrained
from rrope_jax.io.orbax.checkpoint import Checkpoints
from rrope_jax.io.orbax.layout import description_to_json
from tests.jobs.test_train import CONFIG
from tests.jobs.tiny_checkpoint import write_checkpoint
from tests.jobs.training_run import read_records, saved_steps, write_text

STEPS = 60
LORA = {
    "rank": 4,
    "alpha": 8.0,
    "targets": ("q_proj", "v_proj", "down_proj"),
    "train_also": ("norm", "embed"),
    "dropout": 0.1,
}


def get_config() -> Any:
    """The config of the runs here; their base comes by --config.checkpoint.init_from."""
    config = runpy.run_path(str(CONFIG))["get_config"]()
    del config.model
    config.rope = {"scaling": "yarn", "factor": 2.0, "original_context": 64, "resonance": True}
    config.lora = LORA
    config.train.update({"steps": STEPS, "length": 32})
    config.train.positions = {}
    config.checkpoint.every_steps = STEPS // 2
    config.eval.every_steps = STEPS // 2
    return config


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def words(base: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    text = tmp_path_factory.mktemp("text")
    write_text(text)
    source, init = f"--config.data.source={text}", f"--config.checkpoint.init_from={base}"
    return ["train", f"--config={__file__}", source, init]


@pytest.fixture(scope="module")
def adapted(words: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The workdir of a whole run."""
    workdir = tmp_path_factory.mktemp("runs") / "adapted"
    assert main([*words, f"--workdir={workdir}"]) == 0
    return workdir


def _numbers(workdir: Path) -> list[tuple[float, ...]]:
    names = ("step", "loss", "gradient_norm", "eval_loss")
    return [tuple(record.get(name, 0) for name in names) for record in read_records(workdir)]


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def test_it_lowers_the_loss(adapted: Path) -> None:
    losses = [record["loss"] for record in read_records(adapted)]
    assert np.mean(losses[-5:]) < 0.7 * np.mean(losses[:5])
    assert read_records(adapted)[-1]["eval_loss"] < 0.8 * losses[0]


def test_checkpoints_hold_no_base_and_are_read_merged(adapted: Path, base: Path) -> None:
    decoder, description = pretrained.load(adapted)
    assert (description.rope.scaling, description.context) == ("yarn", 128)
    merged, original = (
        nnx.to_pure_dict(nnx.state(each)) for each in (decoder, pretrained.load(base)[0])
    )
    trained = {"query", "value", "down", "scale", "embedding"}
    for (path, one), other in zip(
        jax.tree.leaves_with_path(merged), jax.tree.leaves(original), strict=True
    ):
        assert bool((one != other).any()) == (path[-1].key in trained), path


def test_what_is_left_of_a_run_goes_on_bit_for_bit(
    adapted: Path, words: list[str], tmp_path: Path
) -> None:
    assert saved_steps(adapted) == [STEPS // 2, STEPS]
    shutil.copytree(adapted, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / str(STEPS))
    assert main([*words, f"--workdir={tmp_path / 'run'}"]) == 0
    assert _numbers(tmp_path / "run") == _numbers(adapted)
    one, other = (
        jax.tree.leaves(nnx.state(pretrained.load(workdir)[0]))
        for workdir in (tmp_path / "run", adapted)
    )
    for a, b in zip(one, other, strict=True):
        np.testing.assert_array_equal(a, b)


def test_another_base_is_refused_wherever_it_is_read(
    adapted: Path,
    words: list[str],
    base: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Of the same shapes, so that only its numbers tell."""
    decoder, description = pretrained.load(base)
    params = nnx.to_pure_dict(nnx.state(decoder, nnx.Param))
    params["blocks"]["feed_forward"]["up"] *= 1.001
    base.rename(tmp_path / "base")
    try:
        with pytest.raises(
            ValueError, match=r"is an adapter, and its base cannot be read: .* does"
        ):
            pretrained.load(adapted)
        Checkpoints(base / "checkpoints").save(
            1, {"params": params}, {"description": description_to_json(description)}
        )
        with pytest.raises(ValueError, match=r"was trained on, which was at .*up differs; bring"):
            pretrained.load(adapted)
        assert main([*words, f"--workdir={adapted}"]) == 2
        assert "is another model than the one that this run adapts" in capsys.readouterr().err
    finally:
        shutil.rmtree(base, ignore_errors=True)
        (tmp_path / "base").rename(base)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("--config.checkpoint.init_from=None", "there is no model to adapt: name its checkpoint"),
        ("--config.lora.rank=-1", "config.lora: rank=-1 must be at least 0"),
    ],
)
def test_bad_settings_are_one_line_and_write_nothing(
    override: str,
    message: str,
    words: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main([*words, override, f"--workdir={tmp_path / 'run'}"]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
