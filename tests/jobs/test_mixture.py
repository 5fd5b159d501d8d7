"""`rrope train` on several texts: what it writes, and that it goes on exactly.

Parameters are in bfloat16 and moments factored, since these have to go on exactly, too.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import chex
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from rrope_jax.__main__ import main
from rrope_jax.io import conversion, pretrained
from tests.jobs.training_run import read_records, write_text

pytestmark = pytest.mark.heavy

CONFIG = Path(__file__).with_name("train_tiny.py")
# documents of the tiny text: `b` is long, `a` and `c` are short
MIXED = f"""
import runpy

from ml_collections import ConfigDict


def get_config():
    config = runpy.run_path({str(CONFIG)!r})["get_config"]()
    config.train.update(steps=4)
    with config.unlocked():
        config.train.update(param_dtype="bfloat16", optimizer="adafactor")
    config.eval.every_steps = 2
    config.checkpoint.every_steps = 2
    config.data = ConfigDict(
        {{
            "tokenizer": "bytes",
            "sources": {{
                "short": {{"source": "", "weight": 3.0, "max_tokens": 1000, "heldout": ("c.txt",)}},
                "long": {{"source": "", "weight": 1.0, "min_tokens": 1001}},
                "code": {{"source": "", "weight": 1.0, "heldout_share": 0.5}},
            }},
        }}
    )
    return config
"""


def _words(folder: Path, *overrides: str) -> list[str]:
    config = folder / "config.py"
    config.write_text(MIXED)
    places = {"short": "text", "long": "text", "code": "code"}
    return [
        "train",
        f"--config={config}",
        *(f"--config.data.sources.{name}.source={folder / at}" for name, at in places.items()),
        f"--workdir={folder / 'run'}",
        *overrides,
    ]


def _numbers(folder: Path) -> list[dict[str, Any]]:
    timed = ("tokens_per_second", "waiting", "time")
    records = read_records(folder / "run")
    return [{name: each[name] for name in each if name not in timed} for each in records]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mixture")
    (folder / "text").mkdir()
    write_text(folder / "text")
    lines = "\n".join(json.dumps({"text": f"def f{i}(): return {i}"}) for i in range(60))
    (folder / "code").mkdir()
    (folder / "code" / "all.jsonl").write_text(lines)
    assert main(_words(folder)) == 0
    return folder


def test_what_it_writes(whole: Path) -> None:
    evaluated = [record for record in _numbers(whole) if "eval_loss" in record]
    assert [record["step"] for record in evaluated] == [2, 4]
    for record in evaluated:
        losses = sorted(record[f"eval_loss_{name}"] for name in ("short", "code"))
        assert losses[0] < record["eval_loss"] < losses[1]
        assert "eval_loss_long" not in record  # none of its documents is held out
    table = json.loads((whole / "run" / "sources.json").read_text())
    assert [each["name"] for each in table] == ["code", "long", "short"]
    assert sum(each["rows"] for each in table) == 8
    assert sum(each["targets"] for each in table) == sum(r["targets"] for r in _numbers(whole))


def test_goes_on_exactly_though_texts_have_moved(whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "moved"
    shutil.copytree(whole, folder)
    for name in ("checkpoints/4", "sources.json"):
        path = folder / "run" / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert main(_words(folder, "--config.data.sources.long.max_epochs=9")) == 0
    assert _numbers(folder) == _numbers(whole)
    assert (folder / "run" / "sources.json").read_text() == (
        whole / "run" / "sources.json"
    ).read_text()


def test_what_reads_checkpoints_reads_those_of_bfloat16(whole: Path, tmp_path: Path) -> None:
    decoder, _ = pretrained.load(whole / "run")
    conversion.convert(whole / "run", tmp_path / "hf", "hf")
    converted, _ = pretrained.load(tmp_path / "hf")
    here, there = (nnx.to_pure_dict(nnx.state(each)) for each in (decoder, converted))
    chex.assert_trees_all_equal(here, there)
    up = here["blocks"]["feed_forward"]["up"]
    assert up.dtype == jnp.float32
    np.testing.assert_array_equal(up, up.astype(jnp.bfloat16).astype(jnp.float32))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            "--config.data.sources.long.weight=2",
            "belongs to another config: data.sources.long.weight is 1.0 there and 2",
        ),
        (
            "--config.data.sources.long.weight=None",
            "config.data.sources.long.weight has no value: give one with --config.data.sources.lo",
        ),
        (
            "--config.data.sources.long.packing=best",
            "config.data.sources.long: packing='best' is unknown",
        ),
        ("--config.data.sources.shrt.weight=2", "config.data.sources.shrt"),
        ("--config.data.source=x", "config.data.source = 'x': there is no such key; did you mean"),
    ],
)
def test_refused(
    whole: Path, change: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(_words(whole, change)) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]
