"""Which rows of a batch each process provides, on every slice and cluster that docs speak of."""

import dataclasses
import importlib.util
import json
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from jax.sharding import Mesh

from rrope_jax.sharding import AXES, LayoutError, MeshConfig, make_mesh
from rrope_jax.train.sharded import rows_of_process
from tests.train import slices

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
NAMES = re.compile(r"\b(v4|v5p|v5e|v6e|tpu7x|a100|h100|h200):(\d+(?:x\d+)+)")
NAMED = sorted({found for page in PAGES for found in NAMES.findall(page.read_text())})
# v5p-128 counts cores, two a chip; v5litepod-8 and v6e-8 count chips
TYPES = {
    "v5p-8": "2x2x1",
    "v5p-128": "4x4x4",
    "v5litepod-8": "2x4",
    "v6e-8": "2x4",
    "v6e-16": "4x4",
}
PLANS = [  # but those of PosGen, whose devices share no rows
    path
    for path in sorted((ROOT / "docs" / "results" / "plans").glob("*/results.json"))
    if json.loads(path.read_text())["mesh"].keys() == set(AXES)
]


def _devices(chip: str, shape: str, num_slices: int = 1) -> list[slices.Device]:
    sizes = tuple(map(int, shape.split("x")))
    if chip in ("a100", "h100", "h200"):
        islands, hosts, of_host = sizes
        return slices.gpus(islands * hosts, of_host, of_process=of_host, numbered=True)
    return slices.tpus(chip, sizes, num_slices)


@pytest.mark.parametrize("num_slices", [1, 2])
@pytest.mark.parametrize("chip", sorted(slices.SHAPES))
def test_every_shape_of_a_slice(chip: str, num_slices: int) -> None:
    for shape in slices.SHAPES[chip]:
        devices = slices.tpus(chip, shape, num_slices)
        for config in slices.meshes(len(devices), num_slices):
            slices.check(config, devices)


@pytest.mark.parametrize("host", [(1, 1, 1), (2, 4, 1), (4, 2, 1)])
def test_hosts_of_other_sizes(host: tuple[int, ...]) -> None:
    """As of a v5litepod-8, one host of which has all chips."""
    for shape in ((2, 4), (4, 4), (4, 8), (8, 8)):
        devices = slices.tpus("v5e", shape, host=host)
        for config in slices.meshes(len(devices)):
            slices.check(config, devices)


@pytest.mark.parametrize("numbered", [True, False], ids=["numbered", "plain"])
@pytest.mark.parametrize("of_process", [1, 4, 8])
@pytest.mark.parametrize("num_slices", [1, 2, 4])
def test_islands_of_gpus(num_slices: int, of_process: int, numbered: bool) -> None:
    """Processes have a host's GPUs, half of them, or one; an island may have several hosts."""
    devices = slices.gpus(8, 8, of_process=of_process, numbered=numbered)
    for config in slices.meshes(len(devices), num_slices):
        slices.check(config, devices)


@pytest.mark.parametrize(("chip", "shape"), NAMED, ids=[":".join(named) for named in NAMED])
def test_topologies_that_pages_name(chip: str, shape: str) -> None:
    devices = _devices(chip, shape)
    for config in slices.meshes(len(devices)):
        slices.check(config, devices)


def test_slices_that_launchers_name() -> None:
    text = "".join(page.read_text() for page in PAGES)
    found = set(re.findall(r"\b(?:v5p|v5litepod|v6e)-\d+\b", text))
    assert found <= TYPES.keys()
    for name in found:
        chip = name.partition("-")[0].replace("v5litepod", "v5e")
        slices.check(MeshConfig(), _devices(chip, TYPES[name]))


@pytest.mark.parametrize("argument", ["7b,32k", "13b,16k", "llama3_8b,128k"])
def test_meshes_of_configs(argument: str) -> None:
    group = runpy.run_path(str(ROOT / "configs" / "llama.py"))["get_config"](argument).mesh
    config = MeshConfig(**{name: value for name, value in group.items() if value is not None})
    for chip, shape in (("v5p", "4x4x4"), ("v5e", "16x16"), ("v6e", "16x16"), ("h100", "1x8x8")):
        slices.check(config, _devices(chip, shape))


@pytest.mark.parametrize("path", PLANS, ids=[path.parent.name for path in PLANS])
def test_meshes_of_published_plans(path: Path) -> None:
    plan = json.loads(path.read_text())
    chip, shape = plan["topology"].split(":")
    config = MeshConfig(num_slices=plan["num_slices"], **plan["mesh"])
    slices.check(config, _devices(chip, shape, plan["num_slices"]))


def test_a_process_of_a_torus_has_rows_from_all_over() -> None:
    """The README's pod: 16 hosts, each a block of 2 x 2 x 1 chips."""
    mesh = make_mesh(MeshConfig(), slices.tpus("v5p", (4, 4, 4)))
    assert rows_of_process(mesh, 0, 64) == (0, 4, 16, 20)
    assert rows_of_process(mesh, 0, 128) == (0, 1, 8, 9, 32, 33, 40, 41)


@dataclasses.dataclass(frozen=True)
class _Device:
    process_index: int


@pytest.mark.parametrize(
    ("sizes", "processes", "expected"),
    [
        ((1, 8, 1, 1), 2, [(0, 1, 2, 3), (4, 5, 6, 7)]),
        ((2, 2, 2, 1), 4, [(0, 1), (2, 3), (4, 5), (6, 7)]),
        # two processes have the same rows, and different parts of them
        ((1, 2, 4, 1), 4, [(0, 1, 2, 3), (0, 1, 2, 3), (4, 5, 6, 7), (4, 5, 6, 7)]),
        ((1, 1, 4, 2), 2, [tuple(range(8))] * 2),
    ],
)
def test_worked_by_hand(
    sizes: tuple[int, ...], processes: int, expected: list[tuple[int, ...]]
) -> None:
    devices = np.array([_Device(i * processes // 8) for i in range(8)]).reshape(sizes)
    mesh = Mesh(devices, AXES)
    assert [rows_of_process(mesh, process, 8) for process in range(processes)] == expected
    assert rows_of_process(mesh, processes, 8) == ()


def test_rows_in_no_equal_parts_are_refused() -> None:
    mesh = make_mesh(MeshConfig(), slices.tpus("v5e", (2, 2)))
    with pytest.raises(LayoutError, match="6 rows of a batch are not a multiple of its 4 parts"):
        rows_of_process(mesh, 0, 6)


@pytest.mark.parametrize(("asked", "there"), [(1, 2), (2, 1), (4, 2)])
def test_slices_that_are_not_there_are_refused(asked: int, there: int) -> None:
    devices = slices.tpus("v5e", (4, 4), there)
    with pytest.raises(ValueError, match=f"num_slices={asked}, but .* {there} slices?; it has to"):
        make_mesh(MeshConfig(num_slices=asked), devices)


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="needs libtpu, which describes TPU slices"
)
def test_devices_as_libtpu_describes_them() -> None:
    """That those above are the same, and all meshes over the real ones."""
    run = subprocess.run(
        [sys.executable, "-m", "tests.train.slices"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout)["meshes"] > 500
