"""How long a collective takes on the links between the devices of a group.

Inside a TPU slice a group lies along some dimensions of a torus. A device can take in data over
both links of a dimension that closes to a ring, over one where it is a line (its ends have no
other), and over all dimensions at once; where groups lie interleaved in the same ring, they share
its links. On a host of GPUs every device has its own port of a switch. Between slices and hosts,
every device brings its share of the network. So, for an array of V bytes over n devices at a rate
of r bytes/s each,

    all-gather, reduce-scatter   V (n-1)/n / r
    all-reduce                   twice that
    all-to-all                   v n/8 / link on a ring, v n/4 / link on a line (V = n v: half of
                                 the data has to cross the middle), else v (n-1)/n / r
    permute                      v * hops / link

and, where a group spans several islands, the slower of the part inside and the part between. Every
hop adds a microsecond. See https://jax-ml.github.io/scaling-book/sharding.
"""

from collections.abc import Sequence

from rrope_jax.planning.chips import Torus
from rrope_jax.planning.topology import DeviceLocation, Topology

HOP_SECONDS = 1e-6


def seconds(kind: str, size: float, group: Sequence[DeviceLocation], topology: Topology) -> float:
    """The time of one collective.

    Args:
      kind: a key of `collectives.KINDS`.
      size: bytes, as `Collective.bytes`.
      group: where its devices are; of a permute, the sender and the receiver.
      topology: what they are part of.
    """
    chip = topology.chip
    islands = {location.island for location in group}
    inside = [location for location in group if location.island == group[0].island]
    times = [0.0]
    if len(inside) > 1:
        if isinstance(chip.network, Torus):
            times.append(_on_torus(kind, size, inside, chip.network, topology.shape))
        else:
            times.append(_switched(kind, size, len(inside), chip.network.per_chip))
    if len(islands) > 1:
        # what a device has to bring in of what its island lacks
        share = size if kind == "collective-permute" else size / len(inside)
        times.append(_switched(kind, share, len(islands), chip.between_slices))
    return max(times)


def _switched(kind: str, size: float, n: int, rate: float) -> float:
    if kind == "collective-permute":
        return size / rate + HOP_SECONDS
    passes = 2 if kind == "all-reduce" else 1
    return passes * (size * (n - 1) / n / rate + HOP_SECONDS)


def _on_torus(
    kind: str, size: float, group: Sequence[DeviceLocation], torus: Torus, shape: tuple[int, ...]
) -> float:
    lines = [
        _Line(sorted(set(along)), length, wraps)
        for along, length, wraps in zip(
            zip(*(location.coordinates for location in group), strict=True),
            shape,
            torus.wraps(shape),
            strict=False,
        )
    ]
    lines = [line for line in lines if line.members > 1]
    if not lines:  # two devices on one chip
        return size / torus.link
    hops = sum(line.hops for line in lines) * HOP_SECONDS
    if kind == "collective-permute":
        return size * sum(line.hops for line in lines) / torus.link + hops
    if kind == "all-to-all":
        crossing = max(line.members * line.shared / (8 if line.ring else 4) for line in lines)
        return size * crossing / torus.link + hops
    rate = torus.link * sum((2 if line.ring else 1) / line.shared for line in lines)
    passes = 2 if kind == "all-reduce" else 1
    return passes * (size * (len(group) - 1) / len(group) / rate + hops)


class _Line:
    """The part of one dimension of the torus that a group has.

    Attributes:
      members: chips of the group along it.
      ring: whether it goes all around.
      shared: groups that use the same links.
      hops: from a member to the farthest one, over the chips between.
    """

    def __init__(self, coordinates: list[int], length: int, wraps: bool) -> None:
        self.members = len(coordinates)
        span = coordinates[-1] - coordinates[0] + 1
        stride = (span - 1) // max(self.members - 1, 1)
        self.ring = wraps and self.members * stride == length and self.members > 2
        self.shared = stride
        around = length if self.ring else 2 * (span - 1)
        self.hops = around // 2
