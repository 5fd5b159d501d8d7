"""A roofline estimate of a step's time from its FLOPs, memory traffic and transfers.

Each of the three takes some time at the chip's published rate. A step overlaps them as follows:

- Products overlap with memory traffic, so the slower one counts.
- Transfers over `data` or `fsdp` move parameters and gradients of layers other than the one being
  computed, so they count only if they take longer than the computation.
- Transfers over only `seq` or `tensor` move activations that the next product waits for, so they
  are added.

The estimate lies between two bounds, with everything overlapped and with nothing overlapped. It
ignores products too small to fill a chip, imperfect kernels and waiting for hosts. A real step
takes longer, often by a third.
"""

import dataclasses
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from rrope_jax.planning.roofline import network
from rrope_jax.planning.roofline.collectives import Collective, from_summary, sum_by_axis
from rrope_jax.planning.roofline.rules import expected
from rrope_jax.planning.roofline.traffic import traffic_of_call
from rrope_jax.planning.topology import DeviceLocation, Topology
from rrope_jax.planning.workload import Demands, Workload

_HIDDEN_AXES = ("data", "fsdp")


@dataclasses.dataclass(frozen=True)
class Roofline:
    """Seconds of a step by resource, at the chip's published rates.

    Attributes:
      compute: time of matrix products.
      memory: time of reading and writing the device's memory.
      network: mesh axes that are crossed, joined by `+` -> time of transfers.
    """

    compute: float
    memory: float
    network: Mapping[str, float]

    @property
    def hidden(self) -> float:
        """Seconds of transfers that overlap with products."""
        return sum(s for axes, s in self.network.items() if _is_hidden(axes))

    @property
    def exposed(self) -> float:
        """Seconds of transfers that products wait for."""
        return sum(s for axes, s in self.network.items() if not _is_hidden(axes))

    @property
    def step(self) -> float:
        """The estimated seconds of a step."""
        return max(self.compute, self.memory, self.hidden) + self.exposed

    @property
    def bounds(self) -> tuple[float, float]:
        """Seconds of a step with everything overlapped, and with nothing overlapped."""
        transfers = self.hidden + self.exposed
        parts = (self.compute, self.memory, transfers)
        return max(parts), sum(parts)

    @property
    def bound_by(self) -> str:
        """The resource that takes longest: compute, memory or interconnect."""
        times = {
            "compute": self.compute,
            "memory": self.memory,
            "interconnect": self.hidden + self.exposed,
        }
        return max(times, key=times.__getitem__)


@dataclasses.dataclass(frozen=True)
class Estimate:
    """How long a workload takes on a topology.

    Attributes:
      demands: the demands of one call of the program.
      peak_flops: peak rate of all devices together, FLOP/s.
      roofline: the roofline of an optimizer step, or of a call if it has no optimizer steps.
      traffic: cause -> bytes that a device moves between memory and cores in a call.
      collective_bytes: kind -> mesh axes -> bytes that a device sends in a call.
      collectives_source: where the transfers were read from.
    """

    demands: Demands
    peak_flops: float
    roofline: Roofline
    traffic: Mapping[str, float]
    collective_bytes: Mapping[str, Mapping[str, float]]
    collectives_source: str

    @property
    def step_seconds(self) -> float:
        """Seconds of an optimizer step, or of a call if it has no optimizer steps."""
        return self.roofline.step

    @property
    def mfu(self) -> float:
        """Model FLOPs of a step as a share of the devices' peak FLOPs in the same time."""
        model_flops = self.demands.model_flops / self.demands.steps
        return model_flops / (self.step_seconds * self.peak_flops)

    @property
    def run_seconds(self) -> float:
        """Seconds of the whole job, without startup, evaluation and checkpoints."""
        return self.demands.calls * self.demands.steps * self.step_seconds

    def as_json(self) -> dict[str, Any]:
        """The keys of results.json that say how long it takes."""
        roofline, steps = self.roofline, self.demands.steps
        least, most = roofline.bounds
        sent = self.collective_bytes
        return {
            "memory_traffic_bytes_per_device": {
                name: size / steps for name, size in self.traffic.items()
            },
            "collective_bytes_per_device": sum(sum(sizes.values()) for sizes in sent.values()),
            "collective_bytes_by_kind_and_axis": sent,
            "collectives_from": self.collectives_source,
            "estimated_step_seconds": self.step_seconds,
            "estimated_mfu": self.mfu,
            "estimated_tokens_per_second": self.demands.tokens / steps / self.step_seconds,
            "estimated_run_seconds": self.run_seconds,
            "roofline": {
                "compute_seconds": roofline.compute,
                "memory_seconds": roofline.memory,
                "interconnect_seconds": dict(roofline.network),
                "hidden_interconnect_seconds": roofline.hidden,
                "exposed_interconnect_seconds": roofline.exposed,
                "step_seconds_all_overlapped": least,
                "step_seconds_nothing_overlapped": most,
                "bound_by": roofline.bound_by,
            },
        }


def estimate(workload: Workload, topology: Topology, summary: Any | None = None) -> Estimate:
    """Estimates the time of a workload.

    Args:
      workload: the program.
      topology: the devices.
      summary: `collectives.summarize` of the compiled program; None takes the transfers from the
        sharding rules.

    Raises:
      ValueError: the workload does not fit the mesh.
    """
    mesh, chip = workload.make_mesh(topology.devices()), topology.chip
    demands = workload.demands(mesh)
    if summary is None:
        collectives, source = expected(demands.shape), "the sharding rules"
    else:
        collectives, source = from_summary(summary), "the compiled program"
    locations = [topology.locate(device) for device in mesh.devices.flat]
    transfer_seconds = network_seconds(collectives, mesh.shape, locations, topology)
    peak = chip.peak[demands.dtype]
    traffic = traffic_of_call(demands)
    return Estimate(
        demands=demands,
        peak_flops=peak * mesh.size,
        roofline=Roofline(
            compute=demands.executed_flops / (mesh.size * demands.steps) / peak,
            memory=sum(traffic.values()) / demands.steps / chip.memory_bandwidth,
            network={axes: seconds / demands.steps for axes, seconds in transfer_seconds.items()},
        ),
        traffic=traffic,
        collective_bytes=sum_by_axis(collectives, mesh.shape),
        collectives_source=source,
    )


def network_seconds(
    collectives: Sequence[Collective],
    mesh_shape: Mapping[str, int],
    locations: Sequence[DeviceLocation],
    topology: Topology,
) -> dict[str, float]:
    """Seconds of a step's collectives, run one after another, by the mesh axes that they cross.

    Args:
      collectives: the collectives of the program.
      mesh_shape: mesh axis -> number of devices.
      locations: locations of the mesh's devices, in flat order.
      topology: the topology that contains them.
    """
    sums: dict[str, float] = defaultdict(float)
    for collective in collectives:
        axes = "+".join(collective.axes(mesh_shape))
        if not axes:
            continue
        # all groups are laid out alike; for a permute, the farthest pair counts
        groups = collective.groups[:1]
        if collective.kind == "collective-permute":
            groups = tuple(pair for pair in collective.groups if pair[0] != pair[1])
        sums[axes] += collective.times * max(
            network.seconds(
                collective.kind, collective.bytes, [locations[i] for i in group], topology
            )
            for group in groups
        )
    return dict(sums)


def _is_hidden(axes: str) -> bool:
    return any(axis in _HIDDEN_AXES for axis in axes.split("+"))
