"""Evaluations over meshes: the same results as on one device."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from rrope_jax.evaluation.devices import Devices, check_lengths, every_nth
from rrope_jax.rope import RopeSpec
from rrope_jax.sharding import AXES, LayoutError
from tests.closeness import without_seconds
from tests.evaluation import meshes, test_batches
from tests.evaluation.tiny import tiny_decoder

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    "names",
    [
        pytest.param(meshes.SOME, marks=pytest.mark.heavy),
        pytest.param(meshes.OTHERS, marks=pytest.mark.long),
    ],
)
def test_every_mesh_has_the_results_of_one_device(names: tuple[str, ...], tmp_path: Path) -> None:
    """Prompts, losses of rows that the mesh does not divide, embeddings that follow the length."""
    run = subprocess.run(
        [sys.executable, "-m", "tests.evaluation.meshes", *names],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "JAX_PLATFORMS": "cpu", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"},
    )
    assert run.returncode == 0, run.stderr
    found: dict[str, Any] = json.loads(run.stdout)
    assert found.keys() == set(names)
    for name, of_mesh in found.items():
        expected = meshes.results(name, meshes.decoder_for(name), tmp_path)
        assert of_mesh.keys() == {"x".join(map(str, sizes)) for sizes in meshes.MESHES}
        for results in of_mesh.values():
            test_batches.assert_alike(without_seconds(results), without_seconds(expected))


def test_what_a_mesh_does_not_divide_is_rounded_up() -> None:
    mesh = jax.sharding.AbstractMesh((2, 2, 2, 1), AXES)
    devices = Devices(mesh)  # type: ignore[arg-type]
    assert [devices.rows(count) for count in (1, 4, 5)] == [4, 4, 8]
    assert [devices.length(count) for count in (1, 4, 5)] == [4, 4, 8]
    assert (Devices(None).rows(3), Devices(None).length(3)) == (3, 3)


def test_every_nth_element_is_in_memory_order() -> None:
    x = np.arange(60).reshape(3, 4, 5)
    assert every_nth(jax.numpy.asarray(x), 7).tolist() == x.reshape(-1)[::7].tolist()


def test_rows_with_far_positions_cannot_be_split() -> None:
    mesh = jax.sharding.AbstractMesh((1, 1, 2, 1), AXES)
    decoder = tiny_decoder(vocab_size=258)
    rope = RopeSpec(head_dim=8, far_positions="self_extend", far_window=16, far_group=4)
    check_lengths(decoder.config, decoder.rope, mesh, (30,))  # type: ignore[arg-type]
    check_lengths(decoder.config, rope, mesh, (16,))  # type: ignore[arg-type]
    with pytest.raises(LayoutError, match=r"far_positions cannot be split over seq; set mesh\.seq"):
        check_lengths(decoder.config, rope, mesh, (30,))  # type: ignore[arg-type]
