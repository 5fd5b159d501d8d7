"""The roofline's sums, by hand."""

import pytest

from rrope_jax.planning.roofline.collectives import Collective
from rrope_jax.planning.roofline.network import HOP_SECONDS
from rrope_jax.planning.roofline.step_time import Roofline, network_seconds
from rrope_jax.planning.topology import DeviceLocation, Topology


def test_transfers_of_parameters_hide_behind_products_and_others_do_not() -> None:
    network = {"fsdp+seq": 0.7, "seq": 0.2, "tensor": 0.1}
    roofline = Roofline(compute=1.0, memory=0.4, network=network)
    assert roofline.step == pytest.approx(1.0 + 0.3)
    assert roofline.bounds == pytest.approx((1.0, 2.4))
    assert roofline.bound_by == "compute"


def test_transfers_that_take_longer_than_products_bound_the_step() -> None:
    roofline = Roofline(compute=1.0, memory=0.4, network={"data": 1.5})
    assert roofline.step == 1.5
    assert roofline.bound_by == "interconnect"


def test_times_add_up_by_axes() -> None:
    """Eight chips: four along a ring, two along another one."""
    topology = Topology("v5p:4x4x4", "v5p", (4, 4, 4))
    mesh = {"data": 1, "fsdp": 4, "seq": 1, "tensor": 2}
    places = [
        DeviceLocation(0, (0, y, z)) for z in range(4) for y in range(2)
    ]  # tensor is innermost
    fsdp = tuple(tuple(range(start, 8, 2)) for start in range(2))
    pairs = tuple((i, i + 1) for i in range(0, 8, 2))
    collectives = (
        Collective("all-gather", 1_800_000_000, fsdp, times=3),
        Collective("all-reduce", 900_000_000, pairs, times=1),
        Collective("all-gather", 10, ((0,),), times=5),  # within a device: nothing to send
    )
    assert network_seconds(collectives, mesh, places, topology) == pytest.approx(
        {
            "fsdp": 3 * (0.75 * 1.8e9 / 1.8e11 + 2 * HOP_SECONDS),
            "tensor": 2 * (0.5 * 9e8 / 9e10 + HOP_SECONDS),
        }
    )
