"""Other ways to run the same training: what to try when it does not fit, and what to compare."""

import dataclasses
import itertools
from collections.abc import Iterator, Mapping

from jax.sharding import AbstractMesh

from rrope_jax.planning.workload import TextTraining
from rrope_jax.sharding import AXES, MeshConfig
from rrope_jax.train.sharded import check_rows, place_parameters

# From what computes least again to what keeps least.
_POLICIES = ("none", "dots", "full")


@dataclasses.dataclass(frozen=True)
class Change:
    """A workload and what to add to the command line for it."""

    workload: TextTraining
    overrides: tuple[str, ...]


def _change(base: TextTraining, mesh: MeshConfig, remat: str, accumulation: int) -> Change:
    program = base.program
    changed = dataclasses.replace(
        program,
        model=dataclasses.replace(program.model, remat=remat),
        train=dataclasses.replace(program.train, accumulation=accumulation),
    )
    overrides = [
        f"--config.mesh.{name}={getattr(mesh, name)}"
        for name in AXES
        if getattr(mesh, name) != getattr(base.mesh, name)
    ]
    if remat != program.model.remat:
        overrides.append(f"--config.model.remat={remat}")
    if accumulation != program.train.accumulation:
        overrides.append(f"--config.train.accumulation={accumulation}")
    return Change(TextTraining(changed, mesh), tuple(overrides))


def smaller(base: TextTraining, mesh_shape: Mapping[str, int]) -> Iterator[Change]:
    """Changes that need less memory, the nearest first.

    Remat policies that keep less; then, with the one that keeps least: parameters split over what
    held copies of them, a batch in more parts, rows split over more devices, matrices split.

    Args:
      base: what does not fit.
      mesh_shape: its mesh, without -1.
    """
    program = base.program
    sizes, remat = dict(mesh_shape), program.model.remat
    accumulation = program.train.accumulation
    for policy in _POLICIES[_POLICIES.index(remat) + 1 :]:
        yield _change(base, base.mesh, policy, accumulation)
    remat = _POLICIES[-1]
    slices = base.mesh.num_slices
    if sizes["data"] > slices:
        sizes |= {"data": slices, "fsdp": sizes["fsdp"] * (sizes["data"] // slices)}
        yield _change(base, _mesh(sizes, slices), remat, accumulation)
    halved = dict(sizes)
    while _fits(base, halved, 2 * accumulation) or halved["fsdp"] % 2 == 0:
        if _fits(base, halved, 2 * accumulation):
            accumulation *= 2
        elif _fits(base, _moved(halved, "seq"), 2 * accumulation):
            halved, accumulation = _moved(halved, "seq"), 2 * accumulation
        elif _fits(base, _moved(halved, "tensor"), accumulation):
            halved = _moved(halved, "tensor")
        else:
            return
        yield _change(base, _mesh(halved, slices), remat, accumulation)


def _moved(sizes: Mapping[str, int], to: str) -> dict[str, int]:
    return {**sizes, "fsdp": max(sizes["fsdp"] // 2, 1), to: sizes[to] * 2}


def alternatives(base: TextTraining, devices: int) -> Iterator[Change]:
    """Every mesh that the training divides onto, with every remat policy.

    `seq` and `tensor` are powers of two and `fsdp` is what is left; `data` is the number of slices,
    since over one network splitting parameters costs no more.
    """
    slices, accumulation = base.mesh.num_slices, base.program.train.accumulation
    powers = [2**k for k in range(devices.bit_length())]
    for seq, tensor in itertools.product(powers, powers):
        if devices % (slices * seq * tensor):
            continue
        fsdp = devices // (slices * seq * tensor)
        sizes = {"data": slices, "fsdp": fsdp, "seq": seq, "tensor": tensor}
        if _fits(base, sizes, accumulation):
            for policy in _POLICIES:
                yield _change(base, _mesh(sizes, slices), policy, accumulation)


def _mesh(sizes: Mapping[str, int], slices: int) -> MeshConfig:
    return MeshConfig(num_slices=slices, **sizes)


def _fits(base: TextTraining, sizes: Mapping[str, int], accumulation: int) -> bool:
    """Whether `rrope train` would lay the training onto a mesh."""
    program = base.program
    mesh = AbstractMesh(tuple(sizes[name] for name in AXES), AXES)
    try:
        check_rows(dataclasses.replace(program.train, accumulation=accumulation), mesh)
        place_parameters(program.model, mesh)
    except ValueError:
        return False
    return True
