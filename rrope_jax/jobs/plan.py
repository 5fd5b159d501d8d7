"""`rrope plan`: predicts whether a config fits on machines that are not at hand, and its speed."""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import jax
from absl import flags
from ml_collections import ConfigDict

from rrope_jax.cli import backend
from rrope_jax.cli.command_line import parse
from rrope_jax.cli.errors import UsageError, refusing_layouts
from rrope_jax.cli.settings import from_config, unset_group
from rrope_jax.jobs.algorithmic_setting import AlgorithmicSetting
from rrope_jax.jobs.evaluate_setting import EvaluateSetting
from rrope_jax.jobs.plan_evaluation import programs_of
from rrope_jax.jobs.posgen_setting import PosgenSetting
from rrope_jax.jobs.train_setting import TrainSetting, is_here, known_fields
from rrope_jax.planning import saved, topology
from rrope_jax.planning.compilation import Keep
from rrope_jax.planning.evaluation import ModelEvaluation
from rrope_jax.planning.plan import Plan, make_plan
from rrope_jax.planning.posgen import Ablation, Ablations
from rrope_jax.planning.roofline import smaller_evaluation, sweep
from rrope_jax.planning.roofline.collectives import summarize
from rrope_jax.planning.roofline.smaller_evaluation import EvaluationTrial
from rrope_jax.planning.roofline.step_time import estimate
from rrope_jax.planning.roofline.sweep import Trial
from rrope_jax.planning.topology import Topology
from rrope_jax.planning.workload import Job, TextTraining
from rrope_jax.reporting.pieces import FinishedPieces
from rrope_jax.reporting.writing import print_written, write_results
from rrope_jax.run.workdir import Workdir

SUMMARY = (
    "Compiles the exact step of a config for a TPU slice, a GPU cluster or CPU devices, none of "
    "which has to be there, and says whether it fits and how long it takes."
)

_LOG = logging.getLogger(__name__)

_SAVED_STEP = "step.bin"
_MOST_COMPARED = 8  # maximum number of changes that a sweep compiles

# These results come from the program that needs the most memory: if it fits, all of them do.
_OF_THE_LARGEST = ("fits", "why_not", "peak_bytes_per_device", "memory", "bytes_per_device")


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns its exit code."""
    values = parse("plan", SUMMARY, argv, _define, known=_known)
    planned: Job
    kind = _setting_of(values.config)
    setting = from_config(kind, values.config, "config")
    if kind is TrainSetting:
        place = _topology(values.topology, setting.mesh.num_slices)
        planned = _training(setting)
    else:
        place = _topology(values.topology)
        planned = _OF_PROGRAMS[kind](setting)
    with _refusing_topology():
        devices = place.devices()
    with refusing_layouts():
        planned.check(devices)
    if values.sweep and planned.one_step is None:
        raise UsageError(
            "--sweep: trainings of PosGen share nothing and an evaluation has one device, so there "
            "is one mesh only"
        )
    if values.save_step and (values.quick or planned.one_step is None):
        raise UsageError("--save_step goes with the whole compilation of a training config only")
    identity = {"config": values.config.to_dict(), "topology": values.topology}
    from rrope_jax.planning import report  # late: errors must not wait for matplotlib

    with Workdir.claim(values.workdir, identity) as workdir:
        backend.configure_logging()
        results = _results(planned, place, workdir, values)
        written = write_results(workdir, results, report.markdown(results), report.plots(results))
        print(report.markdown(results, figures=False))
        print_written(written)
    return 0


def _known(config: ConfigDict) -> ConfigDict:
    kind = _setting_of(config)
    return known_fields(config) if kind is TrainSetting else unset_group(kind)


def _setting_of(config: ConfigDict) -> type[Any]:
    if "tasks" in config:
        return AlgorithmicSetting if "test_rows" in config else PosgenSetting
    return EvaluateSetting if "eval" in config and "train" not in config else TrainSetting


@contextmanager
def _refusing_topology() -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise UsageError(f"--topology={error}") from error


def _topology(name: str, num_slices: int = 1) -> Topology:
    """Parses the topology, and prepares JAX for its devices before the backend starts."""
    with _refusing_topology():
        place = topology.parse(name, num_slices=num_slices)
    place.prepare()
    return place


def _training(setting: TrainSetting) -> TextTraining:
    description = setting.describe(elsewhere=True)
    program = setting.program(description)
    source = setting.data.tokenizer or setting.checkpoint.init_from
    if description.tokenizer is not None or is_here(source):
        setting.open_tokenizer(description)
    return TextTraining(program, setting.mesh, setting.eval)


def _ablation(setting: PosgenSetting) -> Ablation:
    program = setting.program()
    return Ablation(program, setting.trainings(program), setting.mesh, setting.lanes)


def _ablations(setting: AlgorithmicSetting) -> Ablations:
    return Ablations(
        tuple(
            Ablation(program, trainings, setting.mesh, setting.lanes, program.task.name)
            for program, trainings in setting.parts()
        )
    )


_OF_PROGRAMS: dict[type[Any], Callable[[Any], Job]] = {
    PosgenSetting: _ablation,
    AlgorithmicSetting: _ablations,
    EvaluateSetting: programs_of,
}
"""Setting of a job of several programs -> function from it to the job."""


def _results(
    planned: Job, place: Topology, workdir: Workdir, values: flags.FlagValues
) -> dict[str, Any]:
    """Computes the content of results.json."""
    cache, quick = FinishedPieces(workdir, "compiled"), values.quick
    keep = _keeping(workdir) if values.save_step else None
    workloads = planned.workloads(place.devices())
    plans = [make_plan(each, place, cache, summarize, quick=quick, keep=keep) for each in workloads]
    if planned.one_step is None:
        results = _of_phases(plans)
        if isinstance(planned, ModelEvaluation) and not results["fits"]:
            trials, results["least_devices"] = smaller_evaluation.nearest(
                planned, place, cache, quick=quick
            )
            results["nearest"] = [_row_of_evaluation(trial) for trial in trials]
        return results
    (plan,) = plans
    results = _plan_and_time(plan)
    if values.sweep:
        compared = sweep.sweep(planned.one_step, place, cache, most=_MOST_COMPARED, quick=quick)
        chosen = sweep.recommended(compared)
        results["sweep"] = [_row(trial) for trial in compared]
        results["recommended"] = None if chosen is None else _overrides(chosen)
    elif not plan.fits:
        results["nearest"] = [_row(trial) for trial in sweep.nearest(plan, cache, quick=quick)]
    return results


def _keeping(workdir: Workdir) -> Keep:
    def keep(compiled: jax.stages.Compiled) -> None:
        try:
            workdir.write_bytes(_SAVED_STEP, saved.dump(compiled))
        except ValueError as error:
            _LOG.warning("%s", error)

    return keep


def _of_phases(plans: Sequence[Plan]) -> dict[str, Any]:
    """Combines the phases of ablations, or the programs of an evaluation."""
    phases = [_plan_and_time(plan) for plan in plans]
    largest = max(plans, key=lambda plan: plan.peak).as_json()
    return {
        **phases[0],
        **{key: largest[key] for key in _OF_THE_LARGEST},
        "phases": phases,
        "estimated_run_seconds": sum(phase["estimated_run_seconds"] for phase in phases),
        "compile_seconds": sum(phase["compile_seconds"] for phase in phases),
    }


def _plan_and_time(plan: Plan) -> dict[str, Any]:
    """Returns whether a program fits and how long it takes, for results.json."""
    time = estimate(plan.workload, plan.topology, plan.compilation.summary)
    return {**plan.as_json(), **time.as_json()}


def _overrides(trial: Trial) -> list[str]:
    return [f"--config.{field}" for field in trial.change.fields]


def _row(trial: Trial) -> dict[str, Any]:
    plan, program = trial.plan, trial.change.workload.program
    memory, time = plan.compilation.memory, trial.estimate
    return {
        "overrides": _overrides(trial),
        "mesh": dict(plan.mesh_shape),
        "remat": program.model.remat,
        "accumulation": program.train.accumulation,
        "fits": plan.fits,
        "why_not": plan.why_not,
        "peak_bytes_per_device": None if memory is None else memory.peak,
        "estimated_step_seconds": time.step_seconds,
        "estimated_mfu": time.mfu,
        "bound_by": time.roofline.bound_by,
    }


def _row_of_evaluation(trial: EvaluationTrial) -> dict[str, Any]:
    results = _of_phases(trial.plans)
    shown = ("fits", "why_not", "peak_bytes_per_device", "estimated_run_seconds")
    overrides = [f"--config.{field}" for field in trial.change.fields]
    return {"overrides": overrides, **{key: results[key] for key in shown}}


def _define(values: flags.FlagValues) -> None:
    flags.DEFINE_string(
        "topology",
        None,
        "where: CHIP:SIZES, such as v5p:4x4x4 (chips), h100:1x8x8 (islands, hosts, GPUs), cpu:8",
        flag_values=values,
        required=True,
    )
    flags.DEFINE_string("workdir", None, "folder of the results", flag_values=values, required=True)
    flags.DEFINE_boolean(
        "quick",
        False,
        "stop compiling when memory is assigned: several times faster, peak rounded up",
        flag_values=values,
    )
    flags.DEFINE_boolean(
        "save_step",
        False,
        f"write the compiled step to WORKDIR/{_SAVED_STEP} (planning.saved.load reads it)",
        flag_values=values,
    )
    flags.DEFINE_boolean(
        "sweep", False, "compare meshes and remat policies, and recommend one", flag_values=values
    )
