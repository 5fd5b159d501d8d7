"""Times of collectives, worked by hand."""

import itertools

import pytest

from rrope_jax.planning.roofline.network import HOP_SECONDS, seconds
from rrope_jax.planning.topology import DeviceLocation, Topology

V5P = Topology("v5p:4x4x4", "v5p", (4, 4, 4))  # rings of 9e10 bytes/s a link
V5P_SMALL = Topology("v5p:2x2x4", "v5p", (2, 2, 4))  # no rings: not made of whole cubes
V5E = Topology("v5e:16x16", "v5e", (16, 16))  # rings of 4.5e10 bytes/s a link
H100 = Topology("h100:1x2x8", "h100", (1, 2, 8))  # 4.5e11 on a host, 5e10 between hosts

LINE = [DeviceLocation(0, (0, 0, z)) for z in range(4)]
PLANE = [DeviceLocation(0, (0, y, z)) for y, z in itertools.product(range(4), range(4))]
EVERY_OTHER = [DeviceLocation(0, (0, 0, z)) for z in (0, 2)]
ROW = [DeviceLocation(0, (0, y)) for y in range(16)]
HALF_ROW = [DeviceLocation(0, (0, y)) for y in range(8)]
HOST = [DeviceLocation(0, (gpu,)) for gpu in range(8)]
HOSTS = [DeviceLocation(host, (gpu,)) for host in range(2) for gpu in range(8)]
TWINS = [DeviceLocation(host, (3,)) for host in range(2)]
SLICES = [DeviceLocation(island, (0, 0, z)) for island in range(2) for z in range(4)]

CASES = [
    # 3/4 of 1.8 GB over both links of a ring
    ("all-gather", LINE, V5P, 1.8e9, 0.75 * 1.8e9 / 1.8e11 + 2 * HOP_SECONDS),
    # over two rings at once
    ("all-gather", PLANE, V5P, 1.8e9, 15 / 16 * 1.8e9 / 3.6e11 + 4 * HOP_SECONDS),
    # the ends of a line have one link
    ("all-gather", LINE, V5P_SMALL, 1.8e9, 0.75 * 1.8e9 / 9e10 + 3 * HOP_SECONDS),
    # a part of a row is a line too, though the row is a ring
    ("reduce-scatter", HALF_ROW, V5E, 9e8, 7 / 8 * 9e8 / 4.5e10 + 7 * HOP_SECONDS),
    # the chips between have groups of their own on the same links
    ("all-gather", EVERY_OTHER, V5P, 1.8e9, 0.5 * 1.8e9 / 4.5e10 + 2 * HOP_SECONDS),
    ("all-reduce", ROW, V5E, 9e8, 2 * (15 / 16 * 9e8 / 9e10 + 8 * HOP_SECONDS)),
    # 4 of 16 chips on either side of a link send to 8 others: 16/8 of what each has
    ("all-to-all", ROW, V5E, 9e8, 9e8 * 2 / 4.5e10 + 8 * HOP_SECONDS),
    ("collective-permute", [ROW[3], ROW[4]], V5E, 9e8, 9e8 / 4.5e10 + HOP_SECONDS),
    ("all-gather", HOST, H100, 9e8, 7 / 8 * 9e8 / 4.5e11 + HOP_SECONDS),
    # every host brings in the half it lacks over 8 ports, in less time than it is handed on inside
    ("all-gather", HOSTS, H100, 8e9, 7 / 8 * 8e9 / 4.5e11 + HOP_SECONDS),
    ("all-reduce", TWINS, H100, 1e9, 2 * (0.5 * 1e9 / 5e10 + HOP_SECONDS)),
    # two slices: half of 8 GB over the network of 4 chips
    ("all-gather", SLICES, V5P, 8e9, 0.5 * 2e9 / 6.25e9 + HOP_SECONDS),
]


@pytest.mark.parametrize(("kind", "group", "topology", "size", "expected"), CASES)
def test_time(
    kind: str, group: list[DeviceLocation], topology: Topology, size: float, expected: float
) -> None:
    assert seconds(kind, size, group, topology) == pytest.approx(expected, rel=1e-12)


def test_devices_of_one_chip_share_a_link() -> None:
    topology = Topology("tpu7x:2x2x1", "tpu7x", (2, 2, 1))
    both = [DeviceLocation(0, (0, 0, 0)), DeviceLocation(0, (0, 0, 0))]
    assert seconds("all-gather", 4.5e10, both, topology) == pytest.approx(1.0)
