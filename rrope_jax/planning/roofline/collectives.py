"""The transfers of a compiled program between devices, read from its HLO text.

For every collective, XLA's optimized HLO states the shape of its result on a device and the devices
that take part, and for every loop the number of iterations. The positions of those devices in the
mesh tell which axes the data crosses.
"""

import dataclasses
import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

KINDS = (
    "all-gather",
    "reduce-scatter",
    "all-reduce",
    "all-to-all",
    "collective-permute",
)

# Occurs in the names of computations that sum and scatter in one operation.
_SCATTERED_SUM = "all-reduce-scatter"

_BITS = {
    "pred": 8,
    **{f"{kind}{bits}": bits for kind in ("s", "u") for bits in (2, 4, 8, 16, 32, 64)},
    **{f"f{bits}": bits for bits in (16, 32, 64)},
    "bf16": 16,
}
_COMPUTATION = re.compile(r"^(?P<entry>ENTRY )?%?(?P<name>[\w.-]+) \(.*\) -> .* \{$")
_INSTRUCTION = re.compile(
    r"^\s*(?:ROOT )?%(?P<name>[\w.-]+) = (?P<shape>\(.*?\)|\S+) (?P<operation>[\w-]+)\("
)
_ARRAY = re.compile(r"(\w+)\[([\d,]*)\]")
_CALLED = re.compile(r"\b(?:calls|to_apply|body|true_computation|false_computation)=%?([\w.-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_CHAIN = re.compile(r'\bchain_id="(\d+)"')
_CONDITION = re.compile(r"\bcondition=%?([\w.-]+)")
_CONSTANT = re.compile(r"%(?P<name>[\w.-]+) = s32\[\]\S* constant\((?P<value>\d+)\)")
_LESS = re.compile(r"ROOT .* compare\(%[\w.-]+, %(?P<bound>[\w.-]+)\), direction=LT")
_IOTA = re.compile(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?")
_LISTED = re.compile(r"replica_groups=\{(\{[\d,]+\}(?:,\{[\d,]+\})*)\}")
_MESH = re.compile(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}")
_MESH_SIZE = re.compile(r"'(\w+)'=(\d+)")
_MESH_AXIS = re.compile(r"'(\w+)'(?::\((\d+)\)(\d+))?")
# TPU slices exchange data through their hosts; the program is that of a single slice.
_BETWEEN_SLICES = re.compile(r'\b_xla_megascale_transfer_type="(\w+)"')
_SLICES = re.compile(r'\b_xla_megascale_target="\{([\d,]+)\}')
_DEVICES = re.compile(r"^HloModule .*\bnum_partitions=(\d+)", re.MULTILINE)
_KINDS_BETWEEN_SLICES = {
    "ALL_GATHER": "all-gather",
    "REDUCE_SCATTER": "reduce-scatter",
    "ALL_REDUCE": "all-reduce",
    "ALL_TO_ALL": "all-to-all",
    "ONE_TO_ONE": "collective-permute",
}
_PAIRS = re.compile(r"source_target_pairs=\{(.*?)\}\}")


@dataclasses.dataclass(frozen=True)
class Collective:
    """One collective of a program.

    Attributes:
      kind: one of `KINDS`.
      bytes: size of the whole array: the result of an all-gather on each device, the operand of a
        reduce-scatter, either of them for an all-reduce or all-to-all, the data that a permute
        moves.
      groups: int[groups, members], flat indices of devices in the mesh; for a permute, pairs of
        sender and receiver.
      times: number of executions per step.
    """

    kind: str
    bytes: int
    groups: tuple[tuple[int, ...], ...]
    times: int

    @property
    def sent(self) -> float:
        """Bytes that a device sends per step if every byte goes once to where it is needed.

        In a group of n devices this is (n-1)/n of the array, and twice that for an all-reduce.
        """
        n = 2 if self.kind == "collective-permute" else len(self.groups[0])
        share = {"all-reduce": 2 * (n - 1) / n, "collective-permute": 1.0}
        return self.bytes * share.get(self.kind, (n - 1) / n) * self.times

    def axes(self, mesh_shape: Mapping[str, int]) -> tuple[str, ...]:
        """The mesh axes along which the devices of a group differ."""
        sizes = tuple(mesh_shape.values())
        varying: set[str] = set()
        for group in self.groups:
            coordinates = np.stack(np.unravel_index(np.asarray(group), sizes))
            differs = (coordinates != coordinates[:, :1]).any(axis=1)
            varying |= {name for name, yes in zip(mesh_shape, differs, strict=True) if yes}
        return tuple(name for name in mesh_shape if name in varying)


def read(text: str) -> tuple[Collective, ...]:
    """The collectives of a program in HLO text.

    Asynchronous collectives count at their start, and all branches count. The number of iterations
    of a loop is the compiler's, or the constant in the loop condition, as in JAX's scans, or
    otherwise 1. A sum of which each device keeps a part, which TPUs run as one operation, counts as
    a reduce-scatter. Transfers between TPU slices count where they are received.

    Args:
      text: the text of a module after partitioning, such as `compiled.as_text()`.

    Raises:
      ValueError: the text has no entry computation, or slices exchange data in an unknown way.
    """
    bodies, entry = _computations(text)
    between_slices = _groups_over_slices(text)
    turns = _turns(bodies, entry)
    chains: set[str] = set()
    collectives = []
    for name, lines in bodies.items():
        for line in lines if turns[name] else ():
            collective = _collective(line, turns[name])
            if collective is None:
                collective = _from_slices(line, turns[name], between_slices)
            if collective is None or _is_repeated(line, chains):
                continue
            if _SCATTERED_SUM in name:
                collective = dataclasses.replace(collective, kind="reduce-scatter")
            collectives.append(collective)
    return tuple(collectives)


def summarize(text: str) -> list[dict[str, Any]]:
    """The collectives of a program as JSON values, equal ones merged; a `Summarize` function."""
    times: Counter[Collective] = Counter()
    for collective in read(text):
        times[dataclasses.replace(collective, times=1)] += collective.times
    return [{**dataclasses.asdict(once), "times": count} for once, count in times.items()]


def from_summary(summary: Sequence[Mapping[str, Any]]) -> tuple[Collective, ...]:
    """The inverse of `summarize`."""
    return tuple(
        Collective(**{**fields, "groups": tuple(map(tuple, fields["groups"]))})
        for fields in summary
    )


def sum_by_axis(
    collectives: Sequence[Collective], mesh_shape: Mapping[str, int]
) -> dict[str, dict[str, float]]:
    """Bytes that a device sends per step: kind -> mesh axes, joined by `+` -> bytes."""
    sums: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    for collective in collectives:
        axes = "+".join(collective.axes(mesh_shape))
        if axes:
            sums[collective.kind][axes] += collective.sent
    return {kind: dict(sums[kind]) for kind in KINDS if kind in sums}


def _is_repeated(line: str, chains: set[str]) -> bool:
    """Whether a line is a later stage of a transfer in `chains`; adds its chain to `chains`.

    TPUs overlap a transfer with products in several fusions, each of which names it.
    """
    chain = _CHAIN.search(line)
    if chain is None:
        return False
    repeated = chain[1] in chains
    chains.add(chain[1])
    return repeated


def _computations(text: str) -> tuple[dict[str, list[str]], str]:
    bodies: dict[str, list[str]] = {}
    entry = name = None
    for line in text.splitlines():
        if (header := _COMPUTATION.match(line)) is not None:
            name = header["name"]
            bodies[name] = []
            entry = name if header["entry"] else entry
        elif line.rstrip() == "}":  # lines of kernel metadata may also begin with }
            name = None
        elif name is not None:
            bodies[name].append(line)
    if entry is None:
        raise ValueError("the text is no HLO module: it has no ENTRY computation")
    return bodies, entry


def _turns(bodies: Mapping[str, Sequence[str]], entry: str) -> Counter[str]:
    """The number of executions of each computation."""
    turns: Counter[str] = Counter()

    def visit(name: str, times: int) -> None:
        turns[name] += times
        for line in bodies.get(name, ()):
            for called, repeated in _called(line, bodies):
                visit(called, times * repeated)

    visit(entry, 1)
    return turns


def _called(line: str, bodies: Mapping[str, Sequence[str]]) -> Iterator[tuple[str, int]]:
    if " async-update(" in line or " async-done(" in line:
        return  # async-start has the call
    trips = _trips(line, bodies) if " while(" in line else 1
    for called in _CALLED.findall(line):
        yield called, trips
    for branches in _BRANCHES.findall(line):
        for called in branches.split(","):
            yield called.strip().lstrip("%"), 1


def _trips(line: str, bodies: Mapping[str, Sequence[str]]) -> int:
    if (trips := _TRIPS.search(line)) is not None:
        return int(trips[1])
    condition = _CONDITION.search(line)
    lines = bodies.get(condition[1], ()) if condition is not None else ()
    constants = {
        match["name"]: int(match["value"]) for match in map(_CONSTANT.search, lines) if match
    }
    bounds = [constants.get(match["bound"], 1) for match in map(_LESS.search, lines) if match]
    return bounds[0] if bounds else 1


def _collective(line: str, times: int) -> Collective | None:
    instruction = _INSTRUCTION.match(line)
    if instruction is None:
        return None
    operation = instruction["operation"]
    kind = operation.removesuffix("-start")
    groups = _groups(line) if kind in KINDS else ()
    if not groups:
        return None
    arrays = [_bytes(*array) for array in _ARRAY.findall(instruction["shape"])]
    return Collective(kind, _whole_bytes(operation, arrays, len(groups[0])), groups, times)


def _groups_over_slices(text: str) -> tuple[tuple[int, ...], ...]:
    """Groups of the devices with the same index in their slices; empty for a single slice."""
    slices = max((targets.count(",") + 1 for targets in _SLICES.findall(text)), default=1)
    devices = _DEVICES.search(text)
    if slices == 1 or devices is None:
        return ()
    count = int(devices[1])
    return tuple(tuple(range(index, slices * count, count)) for index in range(count))


def _from_slices(line: str, times: int, groups: tuple[tuple[int, ...], ...]) -> Collective | None:
    instruction, transfer = _INSTRUCTION.match(line), _BETWEEN_SLICES.search(line)
    if instruction is None or transfer is None or not groups:
        return None
    if instruction["operation"] != "recv":
        return None
    if transfer[1] not in _KINDS_BETWEEN_SLICES:
        raise ValueError(f"slices send each other {transfer[1]}, which is not known here")
    first = _ARRAY.search(instruction["shape"])
    size = _bytes(first[1], first[2]) if first else 0
    return Collective(_KINDS_BETWEEN_SLICES[transfer[1]], size, groups, times)


def _whole_bytes(operation: str, arrays: list[int], members: int) -> int:
    """Bytes of the whole array, as in `Collective`, from the sizes of an instruction's arrays."""
    if operation == "reduce-scatter":
        return sum(arrays) * members
    if operation in ("all-gather-start", "collective-permute-start"):
        # (operands, results, ...); for several arrays, there are as many operands as results
        arrays = [size for size in arrays if size > 4] or arrays
        half = arrays[len(arrays) // 2 :] if operation == "all-gather-start" else arrays[:1]
        return sum(half)
    return sum(arrays)


def _bytes(dtype: str, sizes: str) -> int:
    bits = _BITS.get(dtype, 8 if dtype.startswith("f8") else 0)
    return math.prod(int(size) for size in sizes.split(",") if size) * bits // 8


def _groups(line: str) -> tuple[tuple[int, ...], ...]:
    if (pairs := _PAIRS.search(line)) is not None:
        return _numbers(pairs[1])
    if (iota := _IOTA.search(line)) is not None:
        shape, dimensions = (_sizes(iota[group]) for group in (1, 2))
        order = _sizes(iota[3]) if iota[3] else tuple(range(len(dimensions)))
        ids = np.arange(math.prod(dimensions)).reshape(dimensions).transpose(order)
        return tuple(map(tuple, ids.reshape(shape).tolist()))
    if (mesh := _MESH.search(line)) is not None:
        return _of_mesh(mesh[1], mesh[2])
    if (listed := _LISTED.search(line)) is not None:
        return _numbers(listed[1])
    return ()


def _of_mesh(sizes: str, axes: str) -> tuple[tuple[int, ...], ...]:
    """Groups along axes of the compiler's own mesh, or parts of axes, `'a':(before)size`."""
    dimensions = {name: [int(size)] for name, size in _MESH_SIZE.findall(sizes)}
    chosen = []
    for name, before, size in _MESH_AXIS.findall(axes):
        if size:
            (whole,) = dimensions[name]
            dimensions[name] = [int(before), int(size), whole // (int(before) * int(size))]
        chosen.append((name, 1 if size else 0))
    flat = [(name, part) for name, parts in dimensions.items() for part in range(len(parts))]
    shape = [dimensions[name][part] for name, part in flat]
    inner = [flat.index(axis) for axis in chosen]
    outer = [i for i in range(len(flat)) if i not in inner]
    ids = np.arange(math.prod(shape)).reshape(shape).transpose(outer + inner)
    members = math.prod(shape[i] for i in inner)
    return tuple(map(tuple, ids.reshape(-1, members).tolist()))


def _sizes(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.split(",")))


def _numbers(text: str) -> tuple[tuple[int, ...], ...]:
    return tuple(_sizes(group) for group in re.findall(r"(\d+(?:,\d+)*)", text))
