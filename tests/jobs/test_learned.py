"""`rrope train` with learned frequencies, from the first step to an export."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from rrope_jax.__main__ import main
from rrope_jax.io import pretrained
from rrope_jax.rope import RopeSpec, frequencies, from_hf
from tests.jobs.training_run import write_text

CONFIG = Path(__file__).with_name("train_tiny.py")


@pytest.mark.heavy
def test_resumed_and_exported(tmp_path: Path) -> None:
    (tmp_path / "text").mkdir()
    write_text(tmp_path / "text")
    run, exported = tmp_path / "run", tmp_path / "hf"
    fields = {
        "data.source": tmp_path / "text",
        "train.steps": 8,
        "train.frequency_rate": 2.0,
        "checkpoint.every_steps": 4,
        "eval.every_steps": 8,
        "eval.max_rows": 1,
    }
    words = [f"--config.{name}={value}" for name, value in fields.items()]
    command = ["train", f"--config={CONFIG}", f"--workdir={run}", *words]
    assert main(command) == 0
    # of all arrays and of what describes the model, as read back from the disk
    sums = run / "checkpoints" / "8" / "checksums" / "metadata"
    unbroken = sums.read_bytes()
    shutil.rmtree(run / "checkpoints" / "8")
    assert main(command) == 0
    assert sums.read_bytes() == unbroken

    spec = pretrained.open_source(str(run)).description.rope
    plain, learned = frequencies(RopeSpec(head_dim=8, resonance=True)), frequencies(spec)
    assert (spec.scaling, spec.resonance) == ("longrope", True)
    assert (learned.periods > 0).all()
    assert (learned.periods[2:] != plain.periods[2:]).any()
    assert main(["convert", f"--from={run}", f"--to={exported}", "--format=hf"]) == 0
    read = frequencies(from_hf(json.loads((exported / "config.json").read_text())))
    np.testing.assert_array_equal(read.periods, learned.periods)
    np.testing.assert_allclose(read.inv_freq, learned.inv_freq, rtol=1e-12)
