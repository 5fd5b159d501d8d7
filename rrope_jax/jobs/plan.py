"""`rrope plan`: whether and how fast a config would run on machines that are not here."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import jax
from absl import flags
from ml_collections import ConfigDict

from rrope_jax.cli import backend
from rrope_jax.cli.configuration import UsageError, from_config, parse, refusing_layouts
from rrope_jax.data.pipeline import DataConfig
from rrope_jax.jobs import posgen
from rrope_jax.jobs.train import open_tokenizer
from rrope_jax.jobs.train_config import (
    group_of,
    heldout_config,
    is_here,
    mesh_config,
    plan_program,
)
from rrope_jax.planning import saved, topology
from rrope_jax.planning.compilation import Keep
from rrope_jax.planning.plan import make_plan
from rrope_jax.planning.posgen import Ablation
from rrope_jax.planning.roofline import sweep
from rrope_jax.planning.roofline.sweep import Tried
from rrope_jax.planning.topology import Topology
from rrope_jax.planning.workload import TextTraining
from rrope_jax.reporting.pieces import FinishedPieces
from rrope_jax.reporting.writing import print_written, write_results
from rrope_jax.run.workdir import Workdir

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
    planned = _ablation(values.config) if "tasks" in values.config else _training(values.config)
    with _refusing_topology():
        devices = place.devices()
    with refusing_layouts():
        planned.check(devices)
    if values.sweep and isinstance(planned, Ablation):
        raise UsageError("--sweep: trainings of PosGen share nothing, so there is one mesh only")
    if values.save_step and (values.quick or isinstance(planned, Ablation)):
        raise UsageError("--save_step goes with the whole compilation of a training config only")
    identity = {"config": values.config.to_dict(), "topology": values.topology}
    from rrope_jax.planning import report  # here, after all refusals: it imports matplotlib

    with Workdir.claim(values.workdir, identity) as workdir:
        backend.configure_logging()
        known = FinishedPieces(workdir, "compiled")
        if isinstance(planned, Ablation):
            results = _of_ablation(planned, place, known, quick=values.quick)
        else:
            keep = _keeping(workdir) if values.save_step else None
            results = _of_training(
                planned, place, known, quick=values.quick, keep=keep, sweeping=values.sweep
            )
        written = write_results(workdir, results, report.markdown(results), report.plots(results))
        print(report.markdown(results, figures=False))
        print_written(written)
    return 0


def _topology(name: str, config: ConfigDict) -> Topology:
    group = config.get("mesh")
    slices = group.get("num_slices") if isinstance(group, ConfigDict) else None
    with _refusing_topology():
        return topology.parse(name, num_slices=1 if slices is None else slices)


@contextmanager
def _refusing_topology() -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise UsageError(f"--topology={error}") from error


def _training(config: ConfigDict) -> TextTraining:
    program, description, checkpoint = plan_program(config, elsewhere=True)
    data = from_config(DataConfig, group_of(config, "data"), "config.data")
    if description.tokenizer is not None or is_here(data.tokenizer or checkpoint.init_from):
        open_tokenizer(data, description)
    return TextTraining(program, mesh_config(config), heldout_config(config))


def _ablation(config: ConfigDict) -> Ablation:
    setting, program, trainings = posgen.plan(config)
    return Ablation(program, trainings, posgen.mesh_config(config), setting.lanes)


def _of_training(
    training: TextTraining,
    place: Topology,
    known: FinishedPieces,
    *,
    quick: bool,
    keep: Keep | None,
    sweeping: bool,
) -> dict[str, Any]:
    """The content of results.json for `rrope train`."""
    plan = make_plan(training, place, known, quick=quick, keep=keep)
    results = plan.as_json()
    if sweeping:
        compared = sweep.sweep(training, place, known, most=_COMPARED, quick=quick)
        chosen = sweep.recommended(compared)
        results["sweep"] = [_row(tried) for tried in compared]
        results["recommended"] = None if chosen is None else list(chosen.change.overrides)
    elif not plan.fits:
        results["nearest"] = [_row(tried) for tried in sweep.nearest(plan, known, quick=quick)]
    return results


def _keeping(workdir: Workdir) -> Keep:
    def keep(compiled: jax.stages.Compiled) -> None:
        try:
            workdir.write_bytes(_SAVED, saved.dump(compiled))
        except ValueError as error:
            _LOG.warning("%s", error)

    return keep


_SAVED = "step.bin"


def _of_ablation(
    ablation: Ablation, place: Topology, known: FinishedPieces, *, quick: bool
) -> dict[str, Any]:
    """The same for `rrope posgen`: its training, and what validation and test add."""
    programs = ablation.programs(place.devices())
    plans = [make_plan(each, place, known, quick=quick) for each in programs]
    largest = max(plans, key=lambda plan: plan.peak)
    return {
        **plans[0].as_json(),
        **{key: largest.as_json()[key] for key in _OF_THE_LARGEST},
        "phases": [plan.as_json() for plan in plans],
        "estimated_run_seconds": sum(plan.run_seconds for plan in plans),
        "compile_seconds": sum(plan.compilation.seconds for plan in plans if plan.compilation),
    }


# The program that needs most decides whether all fit.
_OF_THE_LARGEST = ("fits", "why_not", "peak_bytes_per_device", "memory", "bytes_per_device")


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
        "quick",
        False,
        "stop compiling when memory is assigned: several times faster, peak rounded up",
        flag_values=values,
    )
    flags.DEFINE_boolean(
        "save_step",
        False,
        f"write the compiled step to WORKDIR/{_SAVED} (planning.saved.load reads it)",
        flag_values=values,
    )
    flags.DEFINE_boolean(
        "sweep", False, "compare meshes and remat policies, and recommend one", flag_values=values
    )
