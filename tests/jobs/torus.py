"""`rrope`, whose CPU devices lie as the chips of a TPU slice do: `python -m tests.jobs.torus ...`.

Every process is a host that has a block of the torus, and the mesh goes along the links, so that
the devices of a host do not follow one another.
"""

import sys
from types import SimpleNamespace
from typing import Any

from jax.experimental import mesh_utils

import rrope_jax.sharding
from rrope_jax.__main__ import main
from tests.train import slices

# by processes and devices of each: the slice, and the block of a host
SHAPES = {(4, 2): ((4, 2, 1), (2, 1, 1)), (2, 4): ((4, 2, 1), (4, 1, 1))}


def create_device_mesh(sizes: Any, devices: Any, **options: Any) -> Any:
    """The mesh of a slice of the same size, with these devices in the places of its chips."""
    processes = {device.process_index for device in devices}
    shape, host = SHAPES[len(processes), len(devices) // len(processes)]
    chips = slices.tpus("v4", shape, host=host)
    of_chip = dict(zip(chips, sorted(devices, key=_host_by_host), strict=True))
    grid = mesh_utils.create_device_mesh(sizes, chips, **options)
    for chip, device in of_chip.items():
        assert chip.process_index == device.process_index
        grid[grid == chip] = device
    order = [device.process_index for device in grid.flat]
    assert order != sorted(order)
    return grid


def _host_by_host(device: Any) -> tuple[int, int]:
    return device.process_index, device.id


if __name__ == "__main__":
    rrope_jax.sharding.mesh_utils = SimpleNamespace(create_device_mesh=create_device_mesh)
    sys.exit(main(sys.argv[1:]))
