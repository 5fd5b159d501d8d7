"""Alternative layouts of the same training run, to make it fit or to compare speeds."""

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Mapping

from rrope_jax.planning.workload import TextTraining
from rrope_jax.sharding import AXES, MeshConfig

# From the policy that recomputes least to the one that keeps least.
_POLICIES = ("none", "dots", "full")


@dataclasses.dataclass(frozen=True)
class Change:
    """A changed workload.

    Attributes:
      workload: after the change.
      fields: what differs, such as `model.remat=full`.
    """

    workload: TextTraining
    fields: tuple[str, ...]


Runs = Callable[[TextTraining], bool]
"""Whether the devices can run a workload, for example whether the mesh divides its arrays."""


def _change(base: TextTraining, mesh: MeshConfig, remat: str, accumulation: int) -> Change:
    program = base.program
    changed = dataclasses.replace(
        program,
        model=dataclasses.replace(program.model, remat=remat),
        train=dataclasses.replace(program.train, accumulation=accumulation),
    )
    fields = [
        f"mesh.{name}={getattr(mesh, name)}"
        for name in AXES
        if getattr(mesh, name) != getattr(base.mesh, name)
    ]
    if remat != program.model.remat:
        fields.append(f"model.remat={remat}")
    if accumulation != program.train.accumulation:
        fields.append(f"train.accumulation={accumulation}")
    workload = dataclasses.replace(base, program=changed, mesh=mesh)
    return Change(workload, tuple(fields))


def smaller(base: TextTraining, mesh_shape: Mapping[str, int], runs: Runs) -> Iterator[Change]:
    """Changes that reduce memory, smallest change first.

    First come remat policies that save less. Then, with the policy that saves least, parameters are
    split over devices that held copies of them, and the batch is split into more microbatches, or
    rows or matrices over more devices.

    Args:
      base: the workload that does not fit.
      mesh_shape: its mesh, with -1 resolved.
      runs: changes for which it returns False are skipped.
    """
    program, slices = base.program, base.mesh.num_slices
    for policy in _POLICIES[_POLICIES.index(program.model.remat) + 1 :]:
        yield _change(base, base.mesh, policy, program.train.accumulation)

    def change(sizes: Mapping[str, int], accumulation: int) -> Change:
        return _change(base, _mesh(sizes, slices), _POLICIES[-1], accumulation)

    sizes, accumulation = dict(mesh_shape), program.train.accumulation
    if sizes["data"] > slices:
        copies = sizes["data"] // slices
        split = {**sizes, "data": slices, "fsdp": sizes["fsdp"] * copies}
        if runs((candidate := change(split, accumulation)).workload):
            sizes = split
            yield candidate
    while True:
        ways = [(sizes, 2 * accumulation)]
        if sizes["fsdp"] % 2 == 0:
            ways.append((_moved(sizes, "seq"), 2 * accumulation))
            ways.append((_moved(sizes, "tensor"), accumulation))
        for sizes, accumulation in ways:
            if program.train.batch_size % accumulation:
                continue
            if runs((candidate := change(sizes, accumulation)).workload):
                yield candidate
                break
        else:
            return


def _moved(sizes: Mapping[str, int], to: str) -> dict[str, int]:
    return {**sizes, "fsdp": sizes["fsdp"] // 2, to: sizes[to] * 2}


def alternatives(base: TextTraining, devices: int, runs: Runs) -> Iterator[Change]:
    """Every mesh that can run the training run, with every remat policy.

    `seq` and `tensor` are powers of two, `fsdp` takes the remaining devices, and `data` is the
    number of slices: within a slice, sharding parameters costs no more than replicating them.
    """
    slices, accumulation = base.mesh.num_slices, base.program.train.accumulation
    powers = [2**k for k in range(devices.bit_length())]
    for seq, tensor in itertools.product(powers, powers):
        if devices % (slices * seq * tensor):
            continue
        fsdp = devices // (slices * seq * tensor)
        mesh = _mesh({"data": slices, "fsdp": fsdp, "seq": seq, "tensor": tensor}, slices)
        changes = [_change(base, mesh, policy, accumulation) for policy in _POLICIES]
        if runs(changes[0].workload):  # does not depend on remat
            yield from changes


def _mesh(sizes: Mapping[str, int], slices: int) -> MeshConfig:
    return MeshConfig(num_slices=slices, **sizes)
