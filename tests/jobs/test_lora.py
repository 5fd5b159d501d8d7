"""LoRA by `rrope train`: small checkpoints, which are read merged, and exact resumption."""

import json
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
from rrope_jax.io.adapters import start
from rrope_jax.io.adapters.config import LoraConfig
from rrope_jax.io.orbax.checkpoint import Checkpoints
from rrope_jax.io.orbax.layout import description_to_json
from rrope_jax.io.weights import parameter_shapes
from tests.jobs.test_train import CONFIG
from tests.jobs.tiny_checkpoint import write_checkpoint
from tests.jobs.training_run import read_records, saved_steps, write_text
from tests.posgen.conftest import quick_compilation as quick_compilation

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


@pytest.fixture(autouse=True, scope="module")
def _quick(quick_compilation: None) -> None:
    pass


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


EVALUATION = """
from ml_collections import ConfigDict


def get_config():
    config = ConfigDict()
    config.data = ConfigDict({"tokenizer": "bytes", "heldout": ("*",), "source": ""})
    config.eval = ConfigDict({"perplexity": {"contexts": (32,), "documents": 2}})
    return config
"""


def test_evaluate_and_generate_take_an_adapter(
    adapted: Path, base: Path, words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Base and adapter are the model that `rrope convert` merges them to."""
    (tmp_path / "config.py").write_text(EVALUATION)
    assert (
        main(["convert", f"--from={adapted}", f"--to={tmp_path / 'merged'}", "--format=orbax"]) == 0
    )
    models = [
        [f"--checkpoint={base}", f"--adapter={adapted}"],
        [f"--checkpoint={tmp_path / 'merged'}"],
    ]
    losses, texts = [], []
    for number, flags in enumerate(models):
        workdir, config = tmp_path / str(number), f"--config={tmp_path / 'config.py'}"
        (source,) = (word for word in words if "data.source" in word)
        assert main(["evaluate", config, source, f"--workdir={workdir}", *flags]) == 0
        results = json.loads((workdir / "results.json").read_text())
        losses.append([each["loss"] for each in results["perplexity_by_document"]])
        assert results["rope"]["scaling"] == "yarn"
        assert results.get("adapter") == (None if number else str(adapted))
        capsys.readouterr()
        assert (
            main(["generate", "--tokenizer=bytes", "--prompt=The ", "--max_tokens=4", *flags]) == 0
        )
        texts.append(capsys.readouterr().out)
    np.testing.assert_allclose(*losses, rtol=1e-5)
    assert texts[0] == texts[1]


@pytest.fixture(scope="module")
def onward(words: list[str], adapted: Path) -> list[str]:
    """The words of a run that goes on with the adapter, at a rate that changes nothing."""
    return [
        *(*words, f"--config.checkpoint.adapter_from={adapted}", "--config.lora.dropout=0.0"),
        *("--config.train.learning_rate=1e-12", "--config.train.steps=4", "--config.train.seed=7"),
        *("--config.checkpoint.every_steps=2", "--config.eval.every_steps=2"),
    ]


@pytest.mark.heavy
def test_a_run_from_an_adapter_starts_where_that_ended_and_goes_on_bit_for_bit(
    adapted: Path, onward: list[str], tmp_path: Path
) -> None:
    """The loss is that of the adapter's last evaluation, and nothing is left of its optimizer."""
    workdir = tmp_path / "onward"
    assert main([*onward, f"--workdir={workdir}"]) == 0
    numbers = _numbers(workdir)
    ended = read_records(adapted)[-1]["eval_loss"]
    assert read_records(workdir)[1]["eval_loss"] == pytest.approx(ended, rel=1e-6)
    assert saved_steps(workdir) == [2, 4]
    shutil.rmtree(workdir / "checkpoints" / "4")
    assert main([*onward, f"--workdir={workdir}"]) == 0
    assert _numbers(workdir) == numbers
    one, other = (nnx.to_pure_dict(nnx.state(pretrained.load(w)[0])) for w in (workdir, adapted))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-9), one, other)


def test_an_adapter_starts_the_same_from_peft(adapted: Path, base: Path, tmp_path: Path) -> None:
    """Also what is trained in full beside it, with the rotary embedding of either.

    But for rounding twice, as a temperature is folded in and out again.
    """
    peft = tmp_path / "peft"
    assert main(["convert", f"--from={adapted}", f"--to={peft}", "--format=peft"]) == 0
    config = LoraConfig(**LORA)
    ours, theirs = (pretrained.open_adapted(base, folder) for folder in (adapted, peft))
    assert ours.description.rope == theirs.description.rope
    model = ours.description.model
    for each in (ours, theirs):
        start.check_trainable(each.adapter, config, model)
    one, other = (start.factors(each.adapter, config, model) for each in (ours, theirs))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=5e-7), one, other)
    for weight in parameter_shapes(model):
        if weight.path in config.trained_in_full:
            np.testing.assert_array_equal(ours.parameter(weight), theirs.parameter(weight))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["rank=8", "targets=q_proj,v_proj"],
            "was trained with rank=4, targets=q_proj,v_proj,down_proj, and config.lora has rank=8, "
            "targets=q_proj,v_proj; give it the adapter's",
        ),
        (["alpha=16.0", "rslora=True"], "with alpha=8, rslora=False, and config.lora has alpha=16"),
        (["base_dtype=bfloat16"], "trained with base_dtype=float32, and config.lora has base_dty"),
        (["train_also=norm"], "with train_also=norm,embed, and config.lora has train_also=norm;"),
        (["rank=0"], "config.lora.rank=0 trains no adapter; give config.lora the adapter's rank"),
    ],
)
def test_an_adapter_that_the_config_does_not_train_is_refused(
    overrides: list[str],
    message: str,
    onward: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    flags = [f"--config.lora.{override}" for override in overrides]
    assert main([*onward, *flags, f"--workdir={tmp_path / 'run'}"]) == 2
    said = capsys.readouterr().err
    assert "config.checkpoint.adapter_from" in said
    assert message in said
    assert not (tmp_path / "run").exists()


def test_another_base_is_refused_wherever_it_is_read(
    adapted: Path,
    words: list[str],
    onward: list[str],
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
        assert main([*onward, f"--workdir={tmp_path / 'onward'}"]) == 2
        assert "one that config.checkpoint.adapter_from was trained on" in capsys.readouterr().err
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
