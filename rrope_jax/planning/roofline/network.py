"""The time of a collective on the links between the devices of a group.

Inside a TPU slice, a group extends along some dimensions of a torus. A device receives data over
both links of a dimension that closes to a ring, over one link of any other dimension, and over all
dimensions at once. Groups interleaved in the same ring share its links. On a GPU host, every device
has its own port on a switch. Between slices and hosts, every device has its share of the network.
So, for an array of V bytes over n devices at a rate of r bytes/s each,

    all-gather, reduce-scatter   V (n-1)/n / r
    all-reduce                   twice that
    all-to-all                   v n/8 / link on a ring, v n/4 / link on a line (V = n v: half of
                                 the data must cross the middle), otherwise v (n-1)/n / r
    permute                      v * hops / link

and, for a group that spans several islands, the slower of the parts inside and between islands.
Every hop adds a microsecond. See https://jax-ml.github.io/scaling-book/sharding.
"""

from collections.abc import Sequence

from rrope_jax.planning.chips import Torus
from rrope_jax.planning.topology import DeviceLocation, Topology

HOP_SECONDS = 1e-6


def seconds(kind: str, size: float, group: Sequence[DeviceLocation], topology: Topology) -> float:
    """The time of one collective, in seconds.

    Args:
      kind: a key of `collectives.KINDS`.
      size: bytes, as in `Collective.bytes`.
      group: locations of its devices; for a permute, sender and receiver.
      topology: the topology that contains them.
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
        # a device's share of the data that its island lacks
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
    extents = [
        _Extent(sorted(set(along)), length, wraps)
        for along, length, wraps in zip(
            zip(*(location.coordinates for location in group), strict=True),
            shape,
            torus.wraps(shape),
            strict=False,
        )
    ]
    extents = [extent for extent in extents if extent.members > 1]
    if not extents:  # two devices on one chip
        return size / torus.link
    hops = sum(extent.hops for extent in extents)
    latency = hops * HOP_SECONDS
    if kind == "collective-permute":
        return size * hops / torus.link + latency
    if kind == "all-to-all":
        crossing = max(
            extent.members * extent.shared / (8 if extent.ring else 4) for extent in extents
        )
        return size * crossing / torus.link + latency
    rate = torus.link * sum((2 if extent.ring else 1) / extent.shared for extent in extents)
    passes = 2 if kind == "all-reduce" else 1
    return passes * (size * (len(group) - 1) / len(group) / rate + latency)


class _Extent:
    """The chips of a group along one dimension of the torus.

    Attributes:
      members: number of chips.
      ring: whether they form a closed ring.
      shared: number of groups that share the same links.
      hops: number of hops from a member to the farthest one.
    """

    def __init__(self, coordinates: list[int], length: int, wraps: bool) -> None:
        self.members = len(coordinates)
        span = coordinates[-1] - coordinates[0] + 1
        stride = (span - 1) // max(self.members - 1, 1)
        self.ring = wraps and self.members * stride == length and self.members > 2
        self.shared = stride
        around = length if self.ring else 2 * (span - 1)
        self.hops = around // 2
