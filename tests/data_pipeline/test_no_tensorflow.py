"""Text and data sets are made and read without TensorFlow, also where it is installed."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

SCRIPT = """
import sys
from pathlib import Path
import tensorflow_datasets as tfds
from rrope_jax.data.pipeline import DataConfig, Text
from rrope_jax.data.posgen_tfds import Posgen, PosgenConfig
from rrope_jax.data.text import documents
from rrope_jax.data.tokenizers import load_tokenizer
from tests.data_pipeline.tfds_builders import prepare

folder, data_dir = sys.argv[1:]
tokenizer = load_tokenizer("bytes")
text = Text(DataConfig(source=folder, heldout=("b*",)), tokenizer)
with text.batches(batch_size=2, length=8) as batches:
    print(next(batches)["tokens"].shape)
print(text.heldout[0][0])
sizes = {"train_sequences": 9, "validation_sequences": 1, "test_sequences": 1}
small = PosgenConfig(name="x", task="cot", **sizes)
made = prepare(Posgen, config=small, data_dir=data_dir)
print(len(tfds.builder_from_directory(made).as_data_source(split="train")))
try:
    documents(DataConfig(source="tfds:pg19", data_dir=data_dir))
except ValueError as error:
    print("tfds build pg19" in str(error))
print([name for name in sys.modules if name.partition(".")[0] in ("tensorflow", "torch")])
"""


@pytest.mark.slow
def test_nothing_tries_to_import_it(folder: Path, tmp_path: Path) -> None:
    # a TensorFlow that tells whenever somebody imports it
    for name in ("tensorflow", "torch"):
        fake = tmp_path / "fake" / name
        fake.mkdir(parents=True)
        (fake / "__init__.py").write_text(f"print('{name} was imported')\n")
    path = [str(tmp_path / "fake"), str(ROOT), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(folder), str(tmp_path / "data")],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(path), "TFDS_DATA_DIR": str(tmp_path)},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["(2, 8)", "b.txt", "9", "True", "[]"]
    assert done.stderr == ""
