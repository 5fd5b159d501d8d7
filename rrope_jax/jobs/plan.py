"""`rrope plan`: whether and how fast a config would run on machines that are not here."""

import logging
from collections.abc import Sequence
from typing import Any

from absl import flags
from ml_collections import ConfigDict

from rrope_jax.jobs import backend
from rrope_jax.jobs.configuration import UsageError, parse
from rrope_jax.jobs.train import mesh_config, plan_program
from rrope_jax.jobs.workdir import Workdir
from rrope_jax.planning import report, sweep, topology
from rrope_jax.planning.plan import make_plan
from rrope_jax.planning.sweep import Tried
from rrope_jax.planning.topology import Topology
from rrope_jax.planning.workload import TextTraining, Workload

SUMMARY = (
    "Compiles the exact step of a config for a TPU slice, a GPU cluster or CPU devices, none of "
    "which has to be there, and says whether it fits and how long it takes."
)

_LOG = logging.getLogger(__name__)


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns its exit code."""
    values = parse("plan", SUMMARY, argv, _define)
    place = _topology(values.topology, values.config)
    place.prepare()
    workload = _workload(values.config)
    identity = {"config": values.config.to_dict(), "topology": values.topology}
    with Workdir.claim(values.workdir, identity) as workdir:
        backend.configure_logging()
        try:
            results = _results(workload, place, _Compiled(workdir), values.sweep)
        except ValueError as error:
            raise UsageError(str(error)) from error
        written = [
            workdir.write_json("results.json", results),
            workdir.write_text("report.md", report.markdown(results)),
        ]
        for name, data in report.plots(results).items():
            written.append(workdir.write_bytes(name, data))
        print(report.markdown(results).split("\n![", 1)[0])
        print("\n".join(f"wrote {path}" for path in written))
    return 0


def _topology(name: str, config: ConfigDict) -> Topology:
    group = config.get("mesh")
    slices = group.get("num_slices") if isinstance(group, ConfigDict) else None
    try:
        return topology.parse(name, num_slices=slices or 1)
    except ValueError as error:
        raise UsageError(f"--topology={error}") from error


def _workload(config: ConfigDict) -> Workload:
    program, _, _ = plan_program(config, elsewhere=True)
    return TextTraining(program, mesh_config(config))


def _results(
    workload: Workload, place: Topology, cache: "_Compiled", sweeping: bool
) -> dict[str, Any]:
    """The content of results.json."""
    plan = make_plan(workload, place, cache)
    results = plan.as_json()
    if isinstance(workload, TextTraining):
        if not plan.fits and not sweeping:
            results["nearest"] = [_row(tried) for tried in sweep.nearest(plan, cache)]
        if sweeping:
            compared = sweep.sweep(workload, place, cache, most=_COMPARED)
            chosen = sweep.recommended(compared)
            results["sweep"] = [_row(tried) for tried in compared]
            results["recommended"] = None if chosen is None else list(chosen.change.overrides)
    return results


_COMPARED = 8


def _row(tried: Tried) -> dict[str, Any]:
    plan, program = tried.plan, tried.change.workload.program
    return {
        "overrides": list(tried.change.overrides),
        "mesh": dict(plan.mesh_shape),
        "remat": program.model.remat,
        "accumulation": program.train.accumulation,
        "fits": plan.fits,
        "why_not": plan.why_not,
        "peak_bytes_per_device": None if plan.memory is None else plan.memory.peak,
        "estimated_step_seconds": plan.roofline.step,
        "estimated_mfu": plan.mfu,
        "bound_by": plan.roofline.bound_by,
    }


class _Compiled:
    """What compiling told before, in the workdir."""

    def __init__(self, workdir: Workdir):
        self._workdir = workdir

    def get(self, key: str) -> Any | None:
        """What `put` kept, or None."""
        try:
            return self._workdir.read_json(self._file(key))
        except FileNotFoundError:
            return None

    def put(self, key: str, value: Any) -> None:
        """Keeps a value."""
        self._workdir.write_json(self._file(key), value)

    def _file(self, key: str) -> str:
        return f"compiled/{key}.json"


def _define(values: flags.FlagValues) -> None:
    flags.DEFINE_string(
        "topology",
        None,
        "where: CHIP:SIZES, such as v5p:4x4x4 (chips), h100:1x8x8 (islands, hosts, GPUs), cpu:8",
        flag_values=values,
    )
    flags.DEFINE_string("workdir", None, "folder of the results", flag_values=values)
    for name in ("topology", "workdir"):
        flags.mark_flag_as_required(name, flag_values=values)
    flags.DEFINE_boolean(
        "sweep", False, "compare meshes and remat policies, and recommend one", flag_values=values
    )
