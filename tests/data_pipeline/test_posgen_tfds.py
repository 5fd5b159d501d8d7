"""PosGen's data sets hold what `posgen.generate` and an ablation make."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow_datasets as tfds

from rrope_jax import posgen
from rrope_jax.data.posgen_tfds import Posgen, PosgenConfig
from rrope_jax.model import ModelConfig
from rrope_jax.posgen.config import PosgenTrainConfig, TaskConfig
from rrope_jax.posgen.grid import Evaluation, Training
from rrope_jax.posgen.layout import AblationMeshConfig, Round, make_mesh
from rrope_jax.posgen.round_functions import RoundFunctions, inputs
from rrope_jax.posgen.training import PosgenProgram
from rrope_jax.rope import RopeSpec
from tests.data_pipeline.tfds_builders import prepare

SMALL = {"train_sequences": 30, "validation_sequences": 6, "test_sequences": 7}


def _tokens(folder: Path, split: str) -> list[np.ndarray]:
    source = tfds.builder_from_directory(folder).as_data_source(split=split)
    return [example["tokens"] for example in source]


@pytest.mark.parametrize("task", posgen.TASKS)
def test_rows_are_those_of_generate(task: str, tmp_path: Path) -> None:
    config = PosgenConfig(name=f"{task}_small", task=task, modulus=7, **SMALL)
    folder = prepare(Posgen, config=config, data_dir=str(tmp_path))
    assert folder == tmp_path / "posgen" / f"{task}_small" / "1.0.0"
    for split, count, length in (("train", 30, 64), ("validation", 6, 256), ("test", 7, 256)):
        rows = _tokens(folder, split)
        assert {row.dtype for row in rows} == {np.dtype(np.int32)}
        rows_BT = np.stack(rows)
        assert rows_BT.shape == (count, length)
        assert (rows_BT == posgen.generate(task, rows_BT[:, :4], length, modulus=7)).all()


def test_rows_are_those_that_an_ablation_with_the_seed_trains_and_tests_on(tmp_path: Path) -> None:
    fields: dict[str, Any] = {
        "modulus": 5,
        "train_length": 12,
        "test_length": 20,
        "combination": "sine_squared",
        "train_sequences": 30,
        "validation_sequences": 6,
        "test_sequences": 8,
    }
    config = PosgenConfig(name="mine", task="semi_recursive", seed=3, **fields)
    folder = prepare(Posgen, config=config, data_dir=str(tmp_path))
    program = PosgenProgram(
        TaskConfig(**fields),
        ModelConfig(vocab_size=6, d_model=8, num_layers=1, num_heads=1, d_ff=8),
        PosgenTrainConfig(steps=2, batch_size=4, validate_every=2, eval_batch_size=2),
    )
    spec = RopeSpec(head_dim=8)
    evaluation = Evaluation("scaled_training", "rope", spec)
    training = Training("semi_recursive", "rope", 3, spec, (evaluation,))
    functions = RoundFunctions(program, make_mesh(AblationMeshConfig(ablation=1)))
    data = functions.data(training.task, inputs(program, Round((training,))).data_key_S)
    for split in ("train", "validation", "test"):
        rows_BT = np.asarray(getattr(data, f"{split}_NT"))[0]
        assert np.array_equal(np.stack(_tokens(folder, split)), rows_BT)


def test_names_and_defaults_are_the_paper_s() -> None:
    assert set(Posgen.builder_configs) == set(posgen.TASKS)
    for name, config in Posgen.builder_configs.items():
        setting = config.setting()
        assert (setting.pop("task"), setting.pop("seed")) == (name, 0)
        assert setting == dataclasses.asdict(TaskConfig())


def test_found_by_name_and_says_what_it_holds(tmp_path: Path) -> None:
    config = PosgenConfig(name="mine", task="cot", modulus=7, **SMALL)
    prepare(Posgen, config=config, data_dir=str(tmp_path))
    found = tfds.builder("posgen/mine", data_dir=tmp_path)
    assert found.info.metadata == config.setting()
    assert found.info.metadata["modulus"] == 7
