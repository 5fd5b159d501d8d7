"""`rrope posgen`: runs an ablation on PosGen and reports the results."""

import dataclasses
import importlib
import itertools
import logging
import os
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from absl import flags
from jax.sharding import Mesh

from rrope_jax.cli import backend
from rrope_jax.cli.command_line import one_flag_a_word, parse
from rrope_jax.cli.errors import UsageError, refusing_layouts
from rrope_jax.cli.settings import from_config, unset_group
from rrope_jax.io.array_checkpoints import ArrayCheckpoints
from rrope_jax.io.orbax.checkpoint import SaveError
from rrope_jax.io.stores import AnyPath, remove
from rrope_jax.jobs.posgen_compare import FLAG, compare
from rrope_jax.jobs.posgen_setting import AblationSetting, PosgenSetting
from rrope_jax.posgen import ablation
from rrope_jax.posgen.grid import Training
from rrope_jax.posgen.layout import AblationMeshConfig, lay_out
from rrope_jax.posgen.published import is_paper
from rrope_jax.posgen.results import Cell, Results, training_cells
from rrope_jax.posgen.round_functions import LearnedFrequenciesError
from rrope_jax.posgen.training import PosgenProgram, PosgenState
from rrope_jax.reporting.pieces import FinishedPieces
from rrope_jax.reporting.writing import print_written, versions, write_results
from rrope_jax.run import distributed
from rrope_jax.run.distributed import JobError, Peers
from rrope_jax.run.stopping import held
from rrope_jax.run.workdir import Workdir

SUMMARY = (
    "Trains and tests PosGen models for a grid of tasks, RoPE methods and seeds. With --compare "
    "DIR..., puts the results of several runs beside what their tables predict instead; that needs "
    "--workdir only."
)

_LOG = logging.getLogger(__name__)
_GROUPS = ("rope", "rope_at_test", "model", "train", "positions", "mesh")


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns its exit code."""
    comparing = any(word.partition("=")[0] == FLAG for word in argv)
    values = parse(
        "posgen",
        SUMMARY,
        one_flag_a_word(argv, FLAG),
        _define,
        config=not comparing,
        known=lambda config: unset_group(PosgenSetting),
    )
    if comparing:
        if not values.compare:
            raise UsageError(f"{FLAG} names no folder; give workdirs of rrope posgen")
        return compare(values.compare, values.workdir)
    setting = from_config(PosgenSetting, values.config, "config")
    program = setting.program()
    planned = setting.trainings(program)
    config = values.config.to_dict()
    return distributed.run(
        "posgen",
        lambda peers: run(
            values,
            setting,
            [(program, planned)],
            _described(setting, config, program),
            peers,
            report_module="rrope_jax.posgen.report",
        ),
        preemption=False,
    )


def run(
    values: flags.FlagValues,
    setting: AblationSetting,
    parts: Sequence[tuple[PosgenProgram, tuple[Training, ...]]],
    described: Mapping[str, Any],
    peers: Peers,
    *,
    report_module: str,
    cell_type: type[Cell] = Cell,
) -> int:
    """Runs an ablation in every process; only process 0 logs and writes the results.

    Args:
      values: The parsed flags.
      setting: The config.
      parts: Programs and their trainings, which run one after another.
      described: What results.json has as its `setting`.
      peers: The processes.
      report_module: Module with `markdown` and `plots` of results.
      cell_type: Class of the cells.

    Returns:
      The exit code.
    """
    planned = tuple(itertools.chain.from_iterable(trainings for _, trainings in parts))
    config = values.config.to_dict()
    peers.check_same({"config": config})
    backend.silence_orbax()
    mesh = _mesh(setting.mesh, parts, peers.count)
    report = importlib.import_module(report_module)  # late: errors must not wait for matplotlib

    with peers.claim(values.workdir, _identity(config)) as workdir:
        backend.configure_logging(logging.INFO if peers.first else logging.ERROR)
        _LOG.info("%s", backend.describe())
        store = _WorkdirStore(workdir, cell_type)
        results = _nothing_finished(setting.name, described, planned)
        done = sum(map(store.finished, planned))
        _LOG.info("%s: %d trainings, %d of them done", setting.name, len(planned), done)
        if peers.first:
            for training in filter(store.finished, planned):
                store.forget(training)  # a killed process or an earlier release left it
        peers.barrier("counted")  # before any process finishes more
        try:
            for program, trainings in parts:
                ablation.run(
                    program,
                    trainings,
                    store,
                    mesh=mesh,
                    lanes=setting.lanes,
                    save_every_seconds=setting.save_every_seconds,
                )
            peers.barrier("trained")
        except SaveError as error:
            raise JobError(f"{error}; what was saved before is kept") from error
        except LearnedFrequenciesError as error:
            raise JobError(f"{error}; trainings that ended before are in the report") from error
        finally:  # a stopped run also reports what it has finished
            with held():
                results = _with_finished(results, planned, store)
                text = report.markdown(results)
                written = []
                if peers.first:
                    figures = report.plots(results)
                    written = write_results(workdir, results.to_json(), text, figures)
        _LOG.info("%s", text.split("\n## ", 2)[1])
        print_written(written)
    return 0


def _identity(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the config fields that results depend on; the others may differ in a rerun."""
    free = ("save_every_seconds", "mesh")
    identity = {key: value for key, value in config.items() if key not in free}
    if identity.get("matmul_precision") is None:  # older workdirs lack it
        identity.pop("matmul_precision", None)
    return identity


def _mesh(
    mesh: AblationMeshConfig,
    parts: Sequence[tuple[PosgenProgram, tuple[Training, ...]]],
    processes: int,
) -> Mesh:
    """Starts the backend and makes the mesh of its devices."""
    automatic = min(max(len(trainings) for _, trainings in parts), cores() * processes)
    use_cpu_devices(automatic if mesh.ablation == -1 else mesh.ablation, processes)
    with refusing_layouts():
        meshes = [lay_out(program, mesh) for program, _ in parts]
    return meshes[0]


def cores() -> int:
    """Returns the number of CPU cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def use_cpu_devices(devices: int, processes: int = 1) -> None:
    """Sets the number of CPU devices of this process, before the backend starts.

    If there are several, each is single-threaded: small matrix products gain little from a second
    thread, so it is faster to run trainings side by side. Accelerators and settings that the user
    has made are not affected.

    Args:
      devices: CPU devices over all processes.
      processes: Number of processes, which share the devices evenly.
    """
    flags_set = os.environ.get("XLA_FLAGS", "")
    if devices > 1 and "xla_cpu_multi_thread_eigen" not in flags_set:
        os.environ["XLA_FLAGS"] = f"{flags_set} --xla_cpu_multi_thread_eigen=false".strip()
    if (
        "xla_force_host_platform_device_count" not in flags_set
        and "JAX_NUM_CPU_DEVICES" not in os.environ
    ):
        jax.config.update("jax_num_cpu_devices", -(-devices // processes))


class _WorkdirStore:
    """Stores finished cells as JSON, and unfinished states as Orbax checkpoints, in the workdir."""

    def __init__(self, workdir: Workdir, cell_type: type[Cell]):
        self._workdir, self._cell_type = workdir, cell_type
        self._pieces = FinishedPieces(workdir, "cells")
        self._cells: dict[str, tuple[Cell, ...]] = {}  # cache, by training name

    def finished(self, training: Training) -> bool:
        return self.cells(training) is not None

    def cells(self, training: Training) -> tuple[Cell, ...] | None:
        """Returns the cells that `finish` wrote; None if they are missing or damaged."""
        if training.name not in self._cells:
            cells = self._pieces.get(
                training.name, lambda raw: training_cells(raw, training, self._cell_type)
            )
            if cells is None:
                return None
            self._cells[training.name] = cells
        return self._cells[training.name]

    def finish(self, training: Training, cells: Sequence[Cell]) -> None:
        self._pieces.put(training.name, [cell.to_json() for cell in cells])
        self.forget(training)

    def forget(self, training: Training) -> None:
        """Removes the checkpoints of a finished training, as only its cells are read."""
        remove(self._folder(training))

    def restore(
        self, training: Training, like: PosgenState
    ) -> tuple[PosgenState, ablation.TrainingProgress] | None:
        saved = self._checkpoints(training).restore(like)
        return None if saved is None else (saved[0], ablation.TrainingProgress(**saved[1]))

    def save(
        self, training: Training, state: PosgenState, progress: ablation.TrainingProgress
    ) -> None:
        self._checkpoints(training).save(progress.step, state, dataclasses.asdict(progress))

    def _folder(self, training: Training) -> AnyPath:
        return self._workdir.path / "checkpoints" / training.name

    def _checkpoints(self, training: Training) -> ArrayCheckpoints:
        # Each training belongs to one process.
        return ArrayCheckpoints(self._folder(training))


def _described(
    setting: PosgenSetting, config: Mapping[str, Any], program: PosgenProgram
) -> dict[str, Any]:
    """Returns the `setting` of results.json."""
    return {
        **{key: value for key, value in config.items() if key not in _GROUPS},
        **{field: getattr(setting.task, field) for field in ("splits", "combination")},
        "seeds": setting.grid.seeds,
        "rope": config["rope"],
        "rope_at_test": config["rope_at_test"],
        "model": program.model.fields(),
        "train": program.train.fields(),
        "positions": config["positions"],
        "is_paper": is_paper(program, setting.rope, setting.rope_at_test),
    }


def _nothing_finished(
    name: str, described: Mapping[str, Any], planned: Sequence[Training]
) -> Results:
    """Returns the results of the grid without any cells; the backend must run."""
    return Results(
        name=name,
        setting=dict(described),
        backend=backend.describe(),
        versions=versions("jax", "flax", "optax", "orbax-checkpoint"),
        cells_expected=sum(len(training.evaluations) for training in planned),
        complete=False,
        cells=(),
    )


def _with_finished(results: Results, planned: Sequence[Training], store: _WorkdirStore) -> Results:
    """Returns the results with the cells of all finished trainings."""
    done = [cells for training in planned if (cells := store.cells(training)) is not None]
    return dataclasses.replace(
        results,
        complete=len(done) == len(planned),
        cells=tuple(itertools.chain.from_iterable(done)),
    )


def _define(values: flags.FlagValues) -> None:
    flags.DEFINE_string(
        "workdir",
        None,
        "folder of the results and checkpoints",
        flag_values=values,
        required=True,
    )
    flags.DEFINE_multi_string(
        "compare", None, "workdirs of runs, after one another", flag_values=values
    )
