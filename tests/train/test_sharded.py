"""The same numbers on every mesh, and what a mesh cannot divide is refused by name."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import pytest

from rrope_jax.model.presets import PRESETS
from rrope_jax.sharding import AXES
from rrope_jax.train import sharded
from rrope_jax.train.config import TrainConfig
from rrope_jax.train.step import Program

ROOT = Path(__file__).parents[2]


def _on_8_devices(what: str, **environment: str) -> Any:
    run = subprocess.run(
        [sys.executable, "-m", "tests.train.meshes", what],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "JAX_PLATFORMS": "cpu", **environment},
    )
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


@pytest.mark.heavy
@pytest.mark.parametrize(
    "what",
    [
        "chunked",
        *(
            pytest.param(each, marks=pytest.mark.long)
            for each in ("others", "xla", "splash", "layers")
        ),
    ],
)
def test_every_mesh_computes_the_same(what: str) -> None:
    """Attention and all gradients, for packed rows and grouped queries, in both token orders."""
    # at any level of optimization, and compiling is most of the time
    found = _on_8_devices(what, JAX_DISABLE_MOST_OPTIMIZATIONS="1")
    for of, differences in found.items():
        for sizes, difference in differences.items():
            assert difference < 1e-5, (of, sizes)


@pytest.mark.heavy
def test_the_step_that_is_trained_with() -> None:
    found = _on_8_devices("step")
    assert found["loss"] < 1e-5
    assert found["rounding"] == 0
    memory = {int(T): size for T, size in found["memory"].items()}
    for T in (4096, 16_384):  # linear in the length
        assert memory[131_072] < 131_072 / T * memory[T]


@pytest.mark.long
@pytest.mark.heavy
def test_adapters_of_every_matrix_are_sharded_like_it() -> None:
    assert _on_8_devices("lora")["loss"] < 1e-5


@pytest.mark.long
def test_the_step_with_state_in_bfloat16() -> None:
    """A number near a threshold is rounded the other way where sums have another order."""
    for difference in _on_8_devices("state", JAX_DISABLE_MOST_OPTIMIZATIONS="1").values():
        assert difference < 1e-4


def _mesh(**sizes: int) -> jax.sharding.AbstractMesh:
    return jax.sharding.AbstractMesh(tuple(sizes.get(name, 1) for name in AXES), AXES)


@pytest.mark.parametrize(
    ("sizes", "train", "message"),
    [
        ({"fsdp": 3}, {}, r"^batch_size=8 in accumulation=1 parts is 8 rows .* data=1 x fsdp=3"),
        (
            {"fsdp": 8},
            {"accumulation": 2},
            r"is 4 rows at a time, which .* multiple of 8, such as by accumulation=1$",
        ),
        ({"seq": 5}, {}, r"^length=32 is not a multiple of 10: over seq=5 of the mesh"),
        ({"tensor": 3}, {}, r"^the parameter \S+ has \S+=\d+, which tensor=3 of the mesh does not"),
    ],
)
def test_what_a_mesh_cannot_divide_is_named(
    sizes: dict[str, int], train: dict[str, int], message: str
) -> None:
    tiny = PRESETS["tiny"]
    program = Program(tiny.model, tiny.rope, TrainConfig(steps=1, batch_size=8, length=32, **train))
    with pytest.raises(ValueError, match=message):
        sharded.make_placement(program, _mesh(**sizes))  # type: ignore[arg-type]
