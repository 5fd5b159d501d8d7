"""The time of a step from what it computes, reads and sends: an own roofline.

Each of the three has a time at the chip's published rate. A step overlaps them as follows:

- Products and memory: the slower one counts.
- Transfers that include `data` or `fsdp` move parameters and gradients of other layers than the one
  at work, so they count only where they take longer than that.
- Transfers over `seq` or `tensor` alone move activations that the next product waits for, so they
  come on top.

Between the two ends, everything overlapped and nothing, that is the estimate. It knows nothing of
products too small to fill a chip, of imperfect kernels or of waiting for hosts: a real step takes
longer, often by a third.
"""

import dataclasses
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from rrope_jax.planning.roofline import network
from rrope_jax.planning.roofline.collectives import Collective
from rrope_jax.planning.topology import Place, Topology

_HIDDEN = ("data", "fsdp")


@dataclasses.dataclass(frozen=True)
class Roofline:
    """Seconds of a step by resource, at the rates of `chips`.

    Attributes:
      compute: matrix products.
      memory: reading and writing the device's memory.
      network: transfers, by the mesh axes that they go over, joined by `+`.
    """

    compute: float
    memory: float
    network: Mapping[str, float]

    @property
    def hidden(self) -> float:
        """Transfers that run beside products."""
        return sum(s for axes, s in self.network.items() if _is_hidden(axes))

    @property
    def exposed(self) -> float:
        """Transfers that products wait for."""
        return sum(s for axes, s in self.network.items() if not _is_hidden(axes))

    @property
    def step(self) -> float:
        """The estimate."""
        return max(self.compute, self.memory, self.hidden) + self.exposed

    @property
    def bounds(self) -> tuple[float, float]:
        """All overlapped, and nothing."""
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


def network_seconds(
    collectives: Sequence[Collective],
    mesh_shape: Mapping[str, int],
    places: Sequence[Place],
    topology: Topology,
) -> dict[str, float]:
    """Time of all collectives of a step by the axes they go over; they run one after another.

    Args:
      collectives: of the compiled program.
      mesh_shape: axis -> devices.
      places: of the mesh's devices in its flat order.
      topology: what they are part of.
    """
    sums: dict[str, float] = defaultdict(float)
    for collective in collectives:
        axes = "+".join(collective.axes(mesh_shape))
        if not axes:
            continue
        # groups lie alike; of a permute, the farthest pair counts, and what stays does not
        groups = collective.groups[:1]
        if collective.kind == "collective-permute":
            groups = tuple(pair for pair in collective.groups if pair[0] != pair[1])
        sums[axes] += collective.times * max(
            network.seconds(collective.kind, collective.bytes, [places[i] for i in group], topology)
            for group in groups
        )
    return dict(sums)


def as_json(roofline: Roofline) -> dict[str, Any]:
    """For results.json."""
    least, most = roofline.bounds
    return {
        "compute_seconds": roofline.compute,
        "memory_seconds": roofline.memory,
        "interconnect_seconds": dict(roofline.network),
        "hidden_interconnect_seconds": roofline.hidden,
        "exposed_interconnect_seconds": roofline.exposed,
        "step_seconds_all_overlapped": least,
        "step_seconds_nothing_overlapped": most,
        "bound_by": roofline.bound_by,
    }


def _is_hidden(axes: str) -> bool:
    return any(axis in _HIDDEN for axis in axes.split("+"))
