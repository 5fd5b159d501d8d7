"""Devices that are not there, as libtpu and CUDA describe them, and what meshes of them hold.

Run as a module it compares with libtpu's own descriptions, in a process of its own: they are read
before JAX has a backend. It prints what it finds as JSON.
"""

import dataclasses
import itertools
import json
import math
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any
from unittest import mock

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from rrope_jax.planning import topology
from rrope_jax.sharding import AXES, MeshConfig, make_mesh, parts, spec
from rrope_jax.train.sharded import Placement, rows_of_process

V5P = tuple(
    shape
    for shape in itertools.product((2, 4, 8), (2, 4, 8), (1, 2, 4, 8, 12, 16))
    if shape == (2, 2, 1) or (shape[0] <= shape[1] <= shape[2])
)
V5E = tuple(
    shape for shape in itertools.product((1, 2, 4, 8, 16), repeat=2) if shape[0] <= shape[1]
)
SHAPES = {"v5p": V5P, "v5e": V5E, "v6e": V5E}
_KINDS = {"v4": "TPU v4", "v5p": "TPU v5", "v5e": "TPU v5 lite", "v6e": "TPU v6 lite"}
_KINDS["tpu7x"] = "TPU7x"


@dataclasses.dataclass(frozen=True)
class Device:
    """What meshes ask of a device."""

    id: int
    process_index: int
    platform: str
    device_kind: str
    coords: tuple[int, ...] = ()
    core_on_chip: int = 0


@dataclasses.dataclass(frozen=True)
class DeviceOfSlice(Device):
    """One of several slices; libtpu's devices of one slice have no number of it."""

    slice_index: int = 0


def tpus(
    chip: str, shape: Sequence[int], num_slices: int = 1, host: Sequence[int] = (2, 2, 1)
) -> list[Any]:
    """The devices of slices, host by host; a host has a block of the torus."""
    whole = (*shape, 1)[:3]
    block = tuple(min(size, most) for size, most in zip(whole, host, strict=True))
    hosts = tuple(size // of for size, of in zip(whole, block, strict=True))
    cores = 2 if chip == "tpu7x" else 1

    def places(sizes: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
        """The first axis counts fastest."""
        return (place[::-1] for place in itertools.product(*map(range, sizes[::-1])))

    made: list[Any] = []
    for slice_index in range(num_slices):
        first = slice_index * math.prod(hosts)
        for number, corner in enumerate(places(hosts)):
            for within in places(block):
                x, y, z = (a * size + b for a, size, b in zip(corner, block, within, strict=True))
                chip_id = x + whole[0] * (y + whole[1] * z)
                for core in range(cores):
                    fields = (
                        chip_id * cores + core + 100_000 * (slice_index + 1) * (num_slices > 1),
                        first + number,
                        "tpu",
                        _KINDS[chip],
                        (x, y, z),
                        core,
                    )
                    made.append(
                        DeviceOfSlice(*fields, slice_index) if num_slices > 1 else Device(*fields)
                    )
    return made


def gpus(hosts: int, of_host: int, *, of_process: int, numbered: bool) -> list[Any]:
    """GPUs host by host; JAX may number the hosts as if each were a slice."""
    return [
        DeviceOfSlice(i, i // of_process, "gpu", "NVIDIA H100", slice_index=i // of_host)
        if numbered
        else Device(i, i // of_process, "gpu", "NVIDIA H100")
        for i in range(hosts * of_host)
    ]


_SIZES = (
    {},
    {"data": 4},
    {"seq": 2},
    {"seq": 4},
    {"tensor": 2},
    {"tensor": 4},
    {"seq": 2, "tensor": 2},
    {"data": 2, "seq": 2, "tensor": 2},
)


def meshes(devices: int, num_slices: int = 1) -> list[MeshConfig]:
    """The default mesh, and those with a few parts along other axes."""
    made = [MeshConfig(num_slices=num_slices, **sizes) for sizes in _SIZES]
    fitting = []
    for config in made[:: 3 if devices > 64 else 1]:
        within = config.data * config.seq * config.tensor
        fsdp, rest = divmod(devices, within)
        if not rest and (config.data % num_slices == 0 or fsdp % num_slices == 0):
            fitting.append(config)
    return fitting


def check(config: MeshConfig, devices: Sequence[Any]) -> Mesh:
    """Asserts that all processes together provide what all devices compute with.

    The reference is what JAX says that each device holds of a whole batch.
    """
    mesh = make_mesh(config, devices)
    assert dict(mesh.shape) == dict(zip(AXES, config.sizes(len(devices)), strict=True))
    assert {device.id for device in mesh.devices.flat} == {device.id for device in devices}
    of = parts("batch", mesh)
    batch_BT = np.arange(2 * of * 2 * mesh.shape["seq"]).reshape(2 * of, -1)
    rows = NamedSharding(mesh, spec(("batch", "length"), mesh))
    placement = Placement(mesh, None, rows, None, None)  # type: ignore[arg-type]
    held = placement.rows.devices_indices_map(batch_BT.shape)
    by_process: dict[int, list[Any]] = {}
    for device in devices:
        by_process.setdefault(device.process_index, []).append(device)

    covered: Counter[int] = Counter()
    for process, own in by_process.items():
        rows = rows_of_process(mesh, process, len(batch_BT))
        held_here = [range(len(batch_BT))[held[device][0]] for device in own]
        assert rows == tuple(sorted(set().union(*held_here)))
        covered.update(itertools.chain(*held_here))
    # every row is on as many devices as the mesh has along the axes that do not split rows
    assert covered == dict.fromkeys(range(len(batch_BT)), mesh.size // of)

    some = list(by_process)[:: max(1, len(by_process) // 8)]
    with mock.patch.object(jax, "make_array_from_callback", _of_each_device):
        for process in some:
            rows = rows_of_process(mesh, process, len(batch_BT))
            with mock.patch.object(jax, "process_index", return_value=process):
                here = dataclasses.replace(placement)
                lay: Any = here.put({"tokens": batch_BT[list(rows)]})["tokens"]
            for device in by_process[process]:
                assert np.array_equal(lay(device), batch_BT[held[device]]), (process, device)
    return mesh


def _of_each_device(shape: tuple[int, ...], sharding: NamedSharding, part: Any) -> Any:
    """What `make_array_from_callback` would lay onto a device."""
    held = sharding.devices_indices_map(shape)
    return lambda device: part(held[device])


def main() -> None:
    """Compares with libtpu; prints how many meshes were checked."""
    count = 0
    named = [(chip, shape) for chip, shapes in SHAPES.items() for shape in shapes]
    for chip, shape in (*named, ("v4", (4, 4, 4)), ("tpu7x", (4, 4, 4))):
        for num_slices in (1, 2):
            name = f"{chip}:{'x'.join(map(str, shape))}"
            place = topology.parse(name, num_slices)
            place.prepare()
            described, ours = place.devices(), tpus(chip, shape, num_slices)
            for theirs, own in zip(described, ours, strict=True):
                for field in dataclasses.fields(own):
                    there, here = getattr(theirs, field.name), getattr(own, field.name)
                    there = tuple(there) if field.name == "coords" else there
                    assert there == here, (name, num_slices, field.name, theirs, own)
            for config in meshes(len(described), num_slices):
                check(config, described)
                count += 1
    print(json.dumps({"meshes": count}))


if __name__ == "__main__":
    sys.exit(main())
