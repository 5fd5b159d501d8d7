"""A process reads of a checkpoint what its devices need, and no more."""

import dataclasses
import json
import math
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, quants
from safetensors.numpy import load_file, save_file

from rrope_jax.io import pretrained
from rrope_jax.io.gguf import container
from rrope_jax.io.orbax import write as orbax_export
from rrope_jax.io.source import read_parameter
from rrope_jax.io.weights import parameter_shapes
from rrope_jax.model import ModelConfig
from tests.io import tiny

ROOT = Path(__file__).parents[2]
MODEL = ModelConfig(
    vocab_size=512,
    d_model=256,
    num_layers=4,
    num_heads=8,
    num_kv_heads=4,
    d_ff=1024,
    tie_embeddings=False,
)
BYTES = 4


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("checkpoints")
    made = tiny.decoder(**dataclasses.asdict(MODEL))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(orbax_export, "_CHUNK_BYTES", 1 << 14)  # of models that have more than one
        return [
            tiny.save(made, folder / name, target_format)
            for name, target_format in (("hf", "hf"), ("a.gguf", "gguf"), ("orbax", "orbax"))
        ]


def _load(axis: str, paths: list[Path]) -> list[dict[str, dict[str, int]]]:
    """What each of two processes, with two devices each, says of each checkpoint."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {"JAX_NUM_CPU_DEVICES": "2", "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.io.loading_process", str(n), str(port), axis, *paths],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | environment,
            cwd=ROOT,
        )
        for n in range(2)
    ]
    outputs = [process.communicate(timeout=200) for process in processes]
    for process, (_, errors) in zip(processes, outputs, strict=True):
        assert process.returncode == 0, errors
    return [
        {
            line["path"]: line
            for line in map(json.loads, re.findall(r"^\{.*\}$", output, re.MULTILINE))
        }
        for output, _ in outputs
    ]


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="needs Linux's /proc")
@pytest.mark.parametrize("axis", ["layers", "rows", "columns"])
def test_a_process_reads_half_where_its_devices_need_half(
    axis: str, checkpoints: list[Path]
) -> None:
    size = {weight: BYTES * math.prod(shape) for weight, shape in parameter_shapes(MODEL).items()}
    uncut = {
        "layers": [weight for weight in size if not weight.stacked],
        "rows": [],
        "columns": [weight for weight in size if weight.path.endswith("scale")],
    }[axis]
    whole = sum(map(size.__getitem__, uncut))
    needed = whole + (sum(size.values()) - whole) // 2
    for process in _load(axis, checkpoints):
        assert {name: line["same"] for name, line in process.items()} == dict.fromkeys(
            process, True
        )
        assert process["hf"]["asked"] == needed
        assert process["a.gguf"]["asked"] == needed
        # Orbax also reads where the chunks are, for each parameter, and does not cut them at heads.
        # Its bytes are those of the whole process, which also differ between machines (by 1.0 MB of
        # 2.5 MB seen); a process that read everything would be half of all above what it needs.
        heads = [weight for weight in size if axis == "rows" and ".attention." in weight.path]
        uncut_heads = sum(size[weight] // 2 for weight in heads)
        assert needed <= process["orbax"]["asked"] < needed + uncut_heads + sum(size.values()) // 4


def _part(shape: tuple[int, ...], random: np.random.Generator) -> tuple[range, ...]:
    bounds = (sorted(random.choice(size + 1, 2, replace=False).tolist()) for size in shape)
    return tuple(range(start, stop) for start, stop in bounds)


@pytest.mark.parametrize("target_format", ["hf", "gguf", "orbax"])
def test_parts_are_those_of_the_whole(target_format: str, tmp_path: Path) -> None:
    path = tiny.save(tiny.decoder(), tmp_path / "a", target_format)
    source = pretrained.open_source(path)
    random = np.random.default_rng(0)
    for weight, shape in parameter_shapes(tiny.MODEL).items():
        whole = read_parameter(source, weight)
        for _ in range(10):
            part = _part(shape, random)
            np.testing.assert_array_equal(
                read_parameter(source, weight, part), whole[np.ix_(*part)]
            )


@pytest.mark.parametrize("kind", ["Q4_1", "Q8_0", "Q6_K", "BF16", "F16", "F32"])
def test_only_the_blocks_of_a_part_are_decoded(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    number = GGMLQuantizationType[kind]
    block, block_bytes = GGML_QUANT_SIZES[number]
    shape = (6, 1024)
    row = 1024 // block * block_bytes
    data = np.random.default_rng(0).integers(0, 60, 6 * row, np.uint8)  # no NaN
    (tmp_path / "a").write_bytes(bytes(7) + data.tobytes())
    tensor = container.Tensor(tmp_path / "a", shape, int(number), 7, data.size)
    whole = container.read_tensor("a", tensor)
    decode, decoded = quants.dequantize, []
    monkeypatch.setattr(
        quants,
        "dequantize",
        lambda stored, kind: decoded.append(stored.nbytes) or decode(stored, kind),
    )
    for start, stop in ((0, 1024), (256, 512), (100, 300), (255, 257)):
        part = range(2, 5), range(start, stop)
        np.testing.assert_array_equal(
            container.read_tensor("a", tensor, part), whole[2:5, start:stop]
        )
        blocks = -(-stop // block) - start // block
        assert decoded.pop() == 3 * blocks * block_bytes


def test_tied_matrices_are_compared_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tiny.save(tiny.decoder(tie_embeddings=True), tmp_path / "a", "hf")
    weights = load_file(folder / "model.safetensors")
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    source = pretrained.open_source(folder)
    source.check()
    monkeypatch.setattr(np, "array_equal", None)
    pretrained.load(source)
