"""Our own model folder and training workdirs, and what devices and memory get of any checkpoint."""

import functools
import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx

from rrope_jax.io import conversion, pretrained
from rrope_jax.io.description import Description
from rrope_jax.io.orbax import layout
from rrope_jax.io.orbax.checkpoint import Checkpoints
from rrope_jax.io.tokenizer.files import TokenizerFiles
from rrope_jax.model import Decoder
from rrope_jax.rope import RopeSpec
from tests.io import tiny

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    "spec",
    [
        RopeSpec(head_dim=12),
        RopeSpec(head_dim=12, scaling="yarn", factor=4.0, original_context=64, resonance=True),
        RopeSpec(
            head_dim=12,
            scaling="longrope",
            short_factor=[1.0] * 6,
            long_factor=[2.0] * 6,
            original_context=64,
            attention_factor=1.5,
        ),
    ],
)
def test_description_as_json(spec: RopeSpec) -> None:
    files = TokenizerFiles({"tokenizer.json": b"{}"})
    description = Description(tiny.MODEL, spec, 256, files, {"eos_token_id": [1, 2]})
    value = layout.description_to_json(description)
    assert json.loads(json.dumps(value)) == value  # or a run could not be resumed
    assert layout.description_from_json(value, files) == description


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"contxt": 3}, "unknown key 'contxt'"),
        ({"context": None}, "context=None must be a positive integer"),
        ({"rope": {"head_dim": 3}}, "rope: head_dim=3 must be"),
        ({"rope": None}, "rope=None must be a group of fields of RopeSpec"),
        ({"model": {"vocab_size": 3}}, "model: .*missing"),
    ],
)
def test_description_that_is_wrong(change: dict[str, object], message: str) -> None:
    value = layout.description_to_json(Description(tiny.MODEL, RopeSpec(head_dim=12), 64))
    with pytest.raises(ValueError, match=message):
        layout.description_from_json(value | change)


def _parameters(decoder: Decoder) -> dict[str, np.ndarray]:
    flat = nnx.to_flat_state(nnx.state(decoder))
    return {".".join(map(str, path)): np.asarray(leaf[...]) for path, leaf in flat}


@pytest.fixture
def workdir(tmp_path: Path) -> Path:
    """A training run with two checkpoints, of which the later has all parameters doubled."""
    decoder = tiny.decoder(tie_embeddings=True)
    description = Description(decoder.config, decoder.rope, 64)
    metadata = {"description": layout.description_to_json(description), "step": 1}
    checkpoints = Checkpoints(tmp_path / "run" / layout.CHECKPOINTS, keep=3)
    for step, scale in ((9, 1.0), (10, 2.0)):
        state = jax.tree.map(functools.partial(np.multiply, scale), nnx.state(decoder))
        params = nnx.to_pure_dict(state)
        tree = {"params": params, "optimizer": {"mean": params, "count": np.int32(step)}}
        checkpoints.save(step, tree, metadata)
    TokenizerFiles({"tokenizer.json": b"{}"}).write(tmp_path / "run" / layout.TOKENIZER)
    return tmp_path / "run"


@pytest.mark.parametrize(("place", "scale"), [(".", 2.0), ("checkpoints/9", 1.0)])
def test_training_run(
    workdir: Path, place: str, scale: float, caplog: pytest.LogCaptureFixture
) -> None:
    (workdir / layout.CHECKPOINTS / "11.orbax-checkpoint-tmp").mkdir()  # a save that was killed
    back, description = pretrained.load(workdir / place)
    expected = _parameters(tiny.decoder(tie_embeddings=True))
    for name, array in _parameters(back).items():
        np.testing.assert_array_equal(array, scale * expected[name])
    assert description.tokenizer == TokenizerFiles({"tokenizer.json": b"{}"})
    assert description.model == back.config
    assert [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING] == []


def _flip_a_bit(folder: Path) -> None:
    """Of the numbers, which are most of the largest file."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    largest = max(files, key=lambda path: path.stat().st_size)
    data = bytearray(largest.read_bytes())
    data[len(data) // 2] ^= 4
    largest.write_bytes(data)


def _converted(folder: Path, new: Path) -> object:
    return conversion.convert(folder, new / "new", "hf")


def _loaded(folder: Path, new: Path) -> object:
    return pretrained.load(folder)


class TestFlippedBit:
    @pytest.mark.parametrize("read", [_loaded, _converted])
    def test_of_a_training_run(
        self, read: Callable[[Path, Path], object], workdir: Path, tmp_path: Path
    ) -> None:
        decoder = tiny.decoder(tie_embeddings=True)
        description = layout.description_to_json(Description(decoder.config, decoder.rope, 64))
        tree = {"params": nnx.to_pure_dict(nnx.state(decoder))}
        checkpoints = Checkpoints(workdir / layout.CHECKPOINTS, keep=3)
        checkpoints.save(11, tree, {"description": description})
        _flip_a_bit(workdir / "checkpoints" / "11" / "tree")
        with pytest.raises(
            ValueError, match=r"checkpoints/11/tree is damaged: params\..*another step"
        ):
            read(workdir, tmp_path / "a")
        assert read(workdir / "checkpoints" / "10", tmp_path / "b")

    @pytest.mark.parametrize("read", [_loaded, _converted])
    def test_of_a_model_folder(self, read: Callable[[Path, Path], object], tmp_path: Path) -> None:
        folder = tiny.save(tiny.decoder(), tmp_path / "a", "orbax")
        assert read(folder, tmp_path / "whole")
        _flip_a_bit(folder / "params")
        with pytest.raises(ValueError, match=r"is damaged: .* is not what was saved"):
            read(folder, tmp_path / "damaged")
        assert not (tmp_path / "damaged" / "new").exists()

    @pytest.mark.parametrize("place", ["model", "run"])
    def test_of_a_description(self, place: str, workdir: Path, tmp_path: Path) -> None:
        folder = tiny.save(tiny.decoder(), tmp_path / "model", "orbax")
        file = {"model": folder / "model.json", "run": workdir / "checkpoints/10/metadata/metadata"}
        text = file[place].read_text()
        assert text.count('"theta": 1') == 1
        file[place].write_text(text.replace('"theta": 1', '"theta": 3'))
        with pytest.raises(ValueError, match="not what was saved"):
            pretrained.describe(tmp_path / place)

    def test_folder_of_an_earlier_release(self, tmp_path: Path) -> None:
        folder = tiny.save(tiny.decoder(), tmp_path / "a", "orbax")
        (folder / "checksums.json").unlink()
        pretrained.load(folder)


def test_run_of_something_else(tmp_path: Path) -> None:
    Checkpoints(tmp_path / layout.CHECKPOINTS).save(1, {"params": {"a": np.ones(2)}}, {"step": 1})
    with pytest.raises(ValueError, match="describes no model"):
        pretrained.describe(tmp_path)


def test_parameters_of_another_model(workdir: Path) -> None:
    model = tiny.decoder(d_ff=24, tie_embeddings=True)
    folder = tiny.save(model, workdir.parent / "a", "orbax")
    text = (folder / layout.MODEL_JSON).read_text().replace('"d_ff": 24', '"d_ff": 56')
    (folder / layout.MODEL_JSON).write_text(text)
    (folder / layout.CHECKSUMS_JSON).unlink()
    with pytest.raises(ValueError, match=r"'blocks\.feed_forward.*config makes it"):
        pretrained.load(folder)


_SHARDED = """
import sys
import jax, numpy as np
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec as P
from rrope_jax.io import pretrained
from rrope_jax.model.decoder import abstract_decoder
from rrope_jax.sharding import MeshConfig, make_mesh
from rrope_jax.train.sharded import parameter_shardings

path = sys.argv[1]
tokens = np.arange(24).reshape(2, 12)
description = pretrained.describe(path)
mesh = jax.make_mesh((4,), ("x",))

def place(leaf):
    axes = [size % 4 == 0 for size in leaf.shape]
    last = len(axes) - 1 - axes[::-1].index(True)
    return NamedSharding(mesh, P(*["x" if axis == last else None for axis in range(len(axes))]))

state = nnx.state(abstract_decoder(description.model, description.rope))
sharded, _ = pretrained.load(path, shardings=jax.tree.map(place, state))
whole, _ = pretrained.load(path)
for one, other in zip(jax.tree.leaves(nnx.state(sharded)), jax.tree.leaves(nnx.state(whole))):
    assert len(one.addressable_shards) == 4
    assert {shard.data.size for shard in one.addressable_shards} == {one.size // 4}
    np.testing.assert_array_equal(np.asarray(one), np.asarray(other))

if sys.argv[2] != "gguf":
    rounded = {"weight_dtype": "int8"}
    model = description.model.changed(rounded)
    mesh = make_mesh(MeshConfig(fsdp=2, tensor=2))
    sharded, _ = pretrained.load(path, model=rounded, shardings=parameter_shardings(model, mesh))
    whole, _ = pretrained.load(path, model=rounded)
    for one, other in zip(jax.tree.leaves(nnx.state(sharded)), jax.tree.leaves(nnx.state(whole))):
        assert one.dtype == other.dtype
        assert len(one.addressable_shards) == 4
        np.testing.assert_array_equal(np.asarray(one), np.asarray(other))
    if sys.argv[2] == "hf":
        with jax.set_mesh(mesh):
            logits = sharded(tokens)
        np.testing.assert_allclose(logits, whole(tokens), rtol=0, atol=1e-4)
print("same")
"""


@pytest.mark.parametrize("target_format", ["hf", "orbax", "gguf"])
def test_each_device_gets_its_part(target_format: str, tmp_path: Path) -> None:
    path = tiny.save(tiny.decoder(), tmp_path / "a", target_format)
    environment = {"JAX_NUM_CPU_DEVICES": "4", "JAX_PLATFORMS": "cpu"}
    run = subprocess.run(
        [sys.executable, "-c", _SHARDED, path, target_format],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | environment | {"PYTHONPATH": str(ROOT)},
    )
    assert run.stdout == "same\n", run.stderr


_MEASURED = """
import sys
from rrope_jax.io import conversion, pretrained
import gguf, jax

def kilobytes(key):
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith(key))

jax.device_put(1.0).block_until_ready()
before = kilobytes("VmRSS")
source, target, target_format = sys.argv[1:]
if target_format == "load":
    pretrained.load(source, model={"weight_dtype": target or "float32"})
else:
    conversion.convert(source, target, target_format)
print(1024 * (kilobytes("VmHWM") - before))
"""
_SMOLLM2_BYTES = 4 * 134_515_008


@pytest.mark.long
@pytest.mark.heavy
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
def test_memory_stays_near_the_size_of_the_output(smollm2: Path, tmp_path: Path) -> None:
    """1.3 times the float32 parameters at most, over what the imports take."""

    def peak(source: Path, target: str | Path, target_format: str) -> float:
        run = subprocess.run(
            [sys.executable, "-c", _MEASURED, source, target, target_format],
            capture_output=True,
            text=True,
            check=True,
            env=os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"},
        )
        return int(run.stdout) / _SMOLLM2_BYTES

    peaks = {
        "load gguf": peak(smollm2, "", "load"),
        "gguf to orbax": peak(smollm2, tmp_path / "native", "orbax"),
        "load orbax": peak(tmp_path / "native", "", "load"),
        "orbax to hf": peak(tmp_path / "native", tmp_path / "hf", "hf"),
        "load hf": peak(tmp_path / "hf", "", "load"),
        "hf to gguf": peak(tmp_path / "hf", tmp_path / "a.gguf", "gguf"),
    }
    rounded = {
        dtype: [peak(smollm2, dtype, "load"), peak(tmp_path / "hf", dtype, "load")]
        for dtype in ("bfloat16", "int8")
    }
    print(peaks, rounded)
    assert max(rounded["bfloat16"]) <= 0.9
    assert max(rounded["int8"]) <= 0.7
    assert max(peaks.values()) <= 1.3
    assert peaks["hf to gguf"] <= 0.8
