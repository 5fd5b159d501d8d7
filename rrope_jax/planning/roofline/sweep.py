"""Compares meshes and remat policies, and finds the nearest change that fits."""

import logging
from collections.abc import Sequence
from typing import NamedTuple

from rrope_jax.planning.plan import Cache, Plan, make_plan, outline
from rrope_jax.planning.roofline.changes import Change, Runs, alternatives, smaller
from rrope_jax.planning.topology import Topology
from rrope_jax.planning.workload import TextTraining
from rrope_jax.sharding import LayoutError

_LOG = logging.getLogger(__name__)
_TRIES = 8


class Tried(NamedTuple):
    """A change and its plan."""

    change: Change
    plan: Plan


def nearest(base: Plan, cache: Cache, *, quick: bool) -> list[Tried]:
    """Compiles changes of a plan that does not fit, nearest first, up to the first that fits.

    Args:
      base: of a `TextTraining`.
      cache, quick: see `make_plan`.

    Returns:
      What was tried; the last one fits, or none does.
    """
    assert isinstance(base.workload, TextTraining)
    tried: list[Tried] = []
    for change in smaller(base.workload, base.mesh_shape, _runs_on(base.topology)):
        if len(tried) == _TRIES:
            break
        _LOG.info("does not fit; trying %s", " ".join(change.overrides))
        tried.append(Tried(change, make_plan(change.workload, base.topology, cache, quick=quick)))
        if tried[-1].plan.fits:
            break
    return tried


def sweep(
    base: TextTraining, topology: Topology, cache: Cache, *, most: int, quick: bool
) -> list[Tried]:
    """Compiles the most promising meshes and remat policies.

    All are ranked by a roofline that needs no compiling; then they are compiled in that order until
    `most` are, without those whose state and saved activations alone are too much.

    Args:
      base: the training.
      topology: where.
      cache, quick: see `make_plan`.
      most: meshes and policies to compile.

    Returns:
      Those that were compiled: what fits before what does not, the fastest first.
    """
    outlines = []
    for change in alternatives(base, topology.size, _runs_on(topology)):
        plan = outline(change.workload, topology)
        if sum(plan.demands.state.values()) + plan.demands.saved < topology.chip.memory:
            outlines.append(Tried(change, plan))
    _LOG.info(
        "%d meshes and remat policies, of which the best %d are compiled", len(outlines), most
    )
    ranked = sorted(outlines, key=lambda tried: tried.plan.roofline.step)[:most]
    compiled = [
        Tried(change, make_plan(change.workload, topology, cache, quick=quick))
        for change, _ in ranked
    ]
    return sorted(compiled, key=lambda tried: (not tried.plan.fits, tried.plan.roofline.step))


def _runs_on(topology: Topology) -> Runs:
    """Whether a workload can be laid onto these devices: a mesh may rule out the attention, too."""
    devices = topology.devices()

    def runs(workload: TextTraining) -> bool:
        try:
            workload.check(devices)
        except LayoutError:
            return False
        return True

    return runs


def recommended(compared: Sequence[Tried]) -> Tried | None:
    """The fastest that fits, of a sorted sweep."""
    return compared[0] if compared and compared[0].plan.fits else None
