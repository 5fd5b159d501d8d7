"""Layer plans through the commands: windows and NoPE from a flag, a preset or a checkpoint."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flax import nnx

from rrope_jax.__main__ import main
from rrope_jax.io import pretrained
from rrope_jax.io.orbax import layout
from rrope_jax.model import Decoder, ModelConfig
from rrope_jax.rope import RopeSpec
from tests.evaluation.tiny import byte_decoder, logits
from tests.jobs.tiny_checkpoint import write_checkpoint
from tests.jobs.training_run import read_records, write_text
from tests.posgen.conftest import quick_compilation as quick_compilation

ROOT = Path(__file__).parents[2]
PLAN = ("sliding_attention", "nope")
FLAGS = ["--config.model.layer_types=sliding_attention,nope", "--config.model.sliding_window=4"]
PROMPT = "It was a dark night"


@pytest.fixture(autouse=True, scope="module")
def _quick(quick_compilation: None) -> None:
    pass


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("model"))


def _changed(decoder: Decoder, **fields: Any) -> Decoder:
    """The same weights with other fields of the model."""
    made = Decoder(decoder.config.changed(fields), decoder.rope, rngs=nnx.Rngs(0))
    nnx.update(made, nnx.state(decoder, nnx.Param))
    return made


def _greedy(decoder: Decoder, prompt: str, count: int) -> str:
    tokens = list(prompt.encode())
    for _ in range(count):
        tokens.append(int(logits(decoder, np.array(tokens, np.int32))[-1].argmax()))
    written = bytes(token for token in tokens if token < 256)
    return written.decode(errors="replace").removeprefix(prompt)


def test_generate_takes_a_plan(checkpoint: Path, capfd: pytest.CaptureFixture[str]) -> None:
    words = ["generate", f"--checkpoint={checkpoint}", "--tokenizer=bytes", f"--prompt={PROMPT}"]
    assert main([*words, "--max_tokens=6", *FLAGS]) == 0
    expected = _greedy(_changed(byte_decoder(), layer_types=PLAN, sliding_window=4), PROMPT, 6)
    assert capfd.readouterr().out == expected + "\n"
    assert expected != _greedy(byte_decoder(), PROMPT, 6)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (FLAGS[:1], "config.model: sliding_window is not set, but layer_types has"),
        (FLAGS[1:], "config.model: sliding_window=4 has no effect without sliding_attention"),
        (["--config.model.layer_types=sliding,nope"], "unknown name 'sliding'; choose from full_"),
        (["--config.model.layer_types="], "config.model: layer_types has 0 entries but"),
        (["--config.model.layer_types=1"], "config.model.layer_types = (1,): it has to be a seq"),
        (["--config.model.sliding_window=0"], "config.model: sliding_window=0 must be at least 1"),
        (["--config.model.qk_norm=head"], "config.model has no key 'qk_norm'"),
    ],
)
@pytest.mark.parametrize("command", ["generate", "evaluate"])
def test_a_wrong_plan_is_refused(
    command: str,
    flags: list[str],
    message: str,
    checkpoint: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = {
        "generate": ["--tokenizer=bytes", "--prompt=a"],
        "evaluate": [
            f"--config={ROOT / 'configs' / 'evaluate_smollm2.py'}",
            "--config.data.tokenizer=bytes",
            f"--workdir={tmp_path / 'run'}",
        ],
    }[command]
    assert main([command, f"--checkpoint={checkpoint}", *words, *flags]) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]
    assert not list(tmp_path.iterdir())


CONFIG = f"""
import runpy

from ml_collections import ConfigDict


def get_config(base=""):
    config = runpy.run_path({str(Path(__file__).with_name("train_tiny.py"))!r})["get_config"]()
    config.model.update(dropout=0.0, num_layers=3)
    config.train.update(steps=2)
    config.eval.update(every_steps=2)
    if base:
        config.checkpoint.init_from = base
        config.model, config.rope = ConfigDict(), ConfigDict()
    return config
"""


def _train(folder: Path, name: str, *flags: str, base: str = "") -> int:
    config = folder / "config.py"
    config.write_text(CONFIG)
    text = f"--config.data.source={folder / 'text'}"
    return main(["train", f"--config={config}:{base}", text, f"--workdir={folder / name}", *flags])


@pytest.mark.slow
def test_train_begins_with_a_plan_and_continues_with_another(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "text").mkdir()
    write_text(tmp_path / "text")
    more = ["--config.model.activation=geglu", "--config.model.embedding_scale=4"]
    assert _train(tmp_path, "first", *FLAGS, *more) == 0
    first = pretrained.describe(tmp_path / "first").model
    assert (first.layer_types, first.sliding_window, first.activation) == (PLAN, 4, "geglu")
    metadata = next((tmp_path / "first" / "checkpoints" / "2" / "metadata").glob("metadata"))
    saved = json.loads(metadata.read_text())["description"]["model"]
    assert saved["layer_types"] == list(PLAN)
    assert "qkv_bias" not in saved
    records = read_records(tmp_path / "first")

    # the same command goes on; another plan is another run
    shutil.rmtree(tmp_path / "first" / "checkpoints" / "2")
    assert _train(tmp_path, "first", *FLAGS, *more) == 0
    assert [r["loss"] for r in read_records(tmp_path / "first")] == [r["loss"] for r in records]
    capsys.readouterr()
    assert _train(tmp_path, "first", "--config.model.layer_types=nope", *more) == 2
    assert "model.layer_types" in capsys.readouterr().err.splitlines()[-1]

    # the weights continue without windows
    other = "--config.model.layer_types=nope,full_attention"
    assert _train(tmp_path, "second", other, base=str(tmp_path / "first")) == 0
    second = pretrained.describe(tmp_path / "second").model
    assert second == first.changed({"layer_types": ("nope", "full_attention")})
    assert second.sliding_window is None
    capsys.readouterr()
    fixed = "--config.model.qk_norm=none"
    assert _train(tmp_path, "third", fixed, base=str(tmp_path / "first")) == 2
    assert "config.model.qk_norm = 'none': a checkpoint" in capsys.readouterr().err.splitlines()[-1]


def test_an_own_embedding_of_sliding_layers_travels_through_metadata() -> None:
    model = ModelConfig(
        vocab_size=8,
        d_model=8,
        num_layers=3,
        num_heads=2,
        d_ff=8,
        layer_types=PLAN,
        sliding_window=2,
    )
    rope = RopeSpec(
        head_dim=4,
        theta=1e6,
        scaling="yarn",
        factor=2.0,
        original_context=8,
        sliding_attention=RopeSpec(head_dim=4, theta=1e4),
    )
    description = pretrained.Description(model, rope, 16)
    value = json.loads(json.dumps(layout.description_to_json(description)))
    assert layout.description_from_json(value) == description


@pytest.mark.slow
def test_plan_counts_windows(tmp_path: Path) -> None:
    config = tmp_path / "config.py"
    config.write_text(CONFIG)

    def planned(name: str, *flags: str) -> dict[str, Any]:
        words = ["plan", f"--config={config}", "--topology=cpu:1", f"--workdir={tmp_path / name}"]
        source = f"--config.data.source={tmp_path}"
        # in a process of its own: the number of CPU devices is set only once
        command = [sys.executable, "-m", "rrope_jax", *words, source, "--config.train.length=64"]
        subprocess.run([*command, *flags], cwd=ROOT, check=True, capture_output=True)
        results: dict[str, Any] = json.loads((tmp_path / name / "results.json").read_text())
        return results

    plain, windows = planned("plain"), planned("windows", *FLAGS)
    # two of three layers have windows of 4; a query sees 32.5 keys of a row of 64 on average
    pairs = 64 * 65 // 2 - (4 * 5 // 2 + 60 * 4)
    saved = 3 * 2 * 2 * (2 * pairs * 16) * 2  # forward and backward; q.k and weights.v; two rows
    assert plain["model_flops_per_device"] - windows["model_flops_per_device"] == saved
    cache = "cache of a row when decoding, bytes"
    of_token = 2 * 16 * 4  # keys and values of 16 numbers, float32
    assert plain["details"][cache] == of_token * 3 * 64 + 4
    assert windows["details"][cache] == of_token * (64 + 2 * 4) + 4
