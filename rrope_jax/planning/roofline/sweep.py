"""Compares meshes and remat policies, and finds the smallest change that fits."""

import logging
from collections.abc import Sequence
from typing import NamedTuple

from rrope_jax.planning.plan import Cache, Plan, make_plan
from rrope_jax.planning.roofline.changes import Change, Runs, alternatives, smaller
from rrope_jax.planning.roofline.collectives import summarize
from rrope_jax.planning.roofline.step_time import Estimate, estimate
from rrope_jax.planning.roofline.traffic import saved_bytes
from rrope_jax.planning.topology import Topology
from rrope_jax.planning.workload import TextTraining
from rrope_jax.sharding import LayoutError

_LOG = logging.getLogger(__name__)
_MOST_TRIALS = 8


class Trial(NamedTuple):
    """A change with its plan and the estimate of its time."""

    change: Change
    plan: Plan
    estimate: Estimate


def try_change(change: Change, topology: Topology, cache: Cache, *, quick: bool) -> Trial:
    """Compiles a changed workload; `cache` and `quick` are as for `make_plan`."""
    plan = make_plan(change.workload, topology, cache, summarize, quick=quick)
    time = estimate(change.workload, topology, plan.compilation.summary)
    return Trial(change, plan, time)


def nearest(base: Plan, cache: Cache, *, quick: bool) -> list[Trial]:
    """Compiles changes of a plan that does not fit, smallest first, up to the first that fits.

    Args:
      base: the plan of a `TextTraining`.
      cache, quick: see `make_plan`.

    Returns:
      All trials; only the last one may fit.
    """
    assert isinstance(base.workload, TextTraining)
    trials: list[Trial] = []
    for change in smaller(base.workload, base.mesh_shape, _runs_on(base.topology)):
        if len(trials) == _MOST_TRIALS:
            break
        _LOG.info("does not fit; trying %s", " ".join(change.fields))
        trials.append(try_change(change, base.topology, cache, quick=quick))
        if trials[-1].plan.fits:
            break
    return trials


def sweep(
    base: TextTraining, topology: Topology, cache: Cache, *, most: int, quick: bool
) -> list[Trial]:
    """Compiles the most promising meshes and remat policies.

    Candidates whose state and saved activations alone exceed a device's memory are dropped. The
    others are ranked by a roofline that needs no compilation, and the first `most` are compiled.

    Args:
      base: the training run.
      topology: the devices.
      cache, quick: see `make_plan`.
      most: maximum number of candidates to compile.

    Returns:
      The compiled trials: those that fit, then those that do not, each sorted fastest first.
    """
    candidates = []
    for change in alternatives(base, topology.size, _runs_on(topology)):
        time = estimate(change.workload, topology)
        least_bytes = sum(time.demands.state.values()) + saved_bytes(time.demands.shape)
        if least_bytes < topology.chip.memory:
            candidates.append((time.step_seconds, change))
    _LOG.info(
        "%d meshes and remat policies, of which the best %d are compiled", len(candidates), most
    )
    ranked = sorted(candidates, key=lambda candidate: candidate[0])[:most]
    trials = [try_change(change, topology, cache, quick=quick) for _, change in ranked]
    return sorted(trials, key=lambda trial: (not trial.plan.fits, trial.estimate.step_seconds))


def _runs_on(topology: Topology) -> Runs:
    """A check whether a workload runs on these devices, including its attention."""
    devices = topology.devices()

    def runs(workload: TextTraining) -> bool:
        try:
            workload.check(devices)
        except LayoutError:
            return False
        return True

    return runs


def recommended(trials: Sequence[Trial]) -> Trial | None:
    """The fastest trial of a sorted sweep that fits, or None."""
    return trials[0] if trials and trials[0].plan.fits else None
