"""`rrope posgen`: trains, tests and reports an ablation on PosGen."""

import dataclasses
import itertools
import logging
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
from absl import flags
from jax.sharding import Mesh
from ml_collections import ConfigDict

from rrope_jax.cli import backend
from rrope_jax.cli.configuration import UsageError, from_config, parse, refusing_layouts
from rrope_jax.io.array_checkpoints import ArrayCheckpoints
from rrope_jax.io.orbax.checkpoint import SaveError
from rrope_jax.jobs.rope_config import spec_of_method
from rrope_jax.model import ModelConfig
from rrope_jax.model.presets import PRESETS
from rrope_jax.posgen import ablation
from rrope_jax.posgen.config import PosgenTrainConfig, TaskConfig, check_tasks
from rrope_jax.posgen.grid import PROTOCOLS, Training, trainings
from rrope_jax.posgen.layout import AblationMeshConfig, lay_out
from rrope_jax.posgen.results import Cell, Results, training_cells
from rrope_jax.posgen.training import PosgenProgram, PosgenState
from rrope_jax.reporting.pieces import FinishedPieces
from rrope_jax.reporting.writing import print_written, versions, write_results
from rrope_jax.rope.methods import parse_method
from rrope_jax.rope.positions import PositionSampling
from rrope_jax.run import distributed
from rrope_jax.run.distributed import JobError, Peers
from rrope_jax.run.workdir import Workdir

SUMMARY = "Trains and tests PosGen models for a grid of tasks, RoPE methods and seeds."

_LOG = logging.getLogger(__name__)
_MOST_SEEDS = 10_000
_GROUPS = ("rope", "rope_at_test", "model", "train", "positions")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setting(TaskConfig):
    """The fields at the top of a PosGen config: the task's data and the grid.

    Attributes:
      name: title of the report.
      tasks, methods, protocols: the grid; keys of `TASKS`, names as in `grid`, keys of
        `PROTOCOLS`.
      num_seeds: repetitions of every cell.
      first_seed: the seeds are first_seed, first_seed + 1, ...
      lanes: trainings of a device at a time; 0 chooses by backend.
      save_every_seconds: least time between checkpoints of an unfinished training.
      matmul_precision: see `posgen.training.Program`.
    """

    name: str
    tasks: tuple[str, ...]
    methods: tuple[str, ...]
    protocols: tuple[str, ...]
    num_seeds: int
    first_seed: int = 0
    lanes: int = 0
    save_every_seconds: float = 60.0
    matmul_precision: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("tasks", "methods", "protocols"):
            entries = getattr(self, name)
            if not entries or len(set(entries)) < len(entries):
                raise ValueError(f"{name}={entries!r} must name at least one, and none twice")
        check_tasks(self.tasks)
        for method in self.methods:
            parse_method(method)
        for protocol in self.protocols:
            if protocol not in PROTOCOLS:
                raise ValueError(
                    f"protocols: {protocol!r} is unknown; choose from {', '.join(PROTOCOLS)}"
                )
        for name, least in (("num_seeds", 1), ("first_seed", 0), ("lanes", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}={getattr(self, name)} must be at least {least}")
        if self.num_seeds > _MOST_SEEDS:
            raise ValueError(
                f"num_seeds={self.num_seeds} must be at most {_MOST_SEEDS}: each is a training for "
                "every task and method"
            )
        if self.first_seed + self.num_seeds > 2**32:
            raise ValueError(
                f"first_seed={self.first_seed} + num_seeds={self.num_seeds} must be at most 2**32, "
                "the number of different random keys"
            )
        if self.save_every_seconds < 0:
            raise ValueError(f"save_every_seconds={self.save_every_seconds} must be at least 0")

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds of the grid."""
        return tuple(range(self.first_seed, self.first_seed + self.num_seeds))


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns its exit code."""
    values = parse("posgen", SUMMARY, argv, _define)
    return distributed.run("posgen", lambda peers: _run(values, peers), preemption=False)


def _run(values: flags.FlagValues, peers: Peers) -> int:
    """What every process does; process 0 alone says how it goes, and writes the results."""
    config = values.config
    setting, program, planned = plan(config)
    peers.check_same({"config": config.to_dict()})
    backend.silence_orbax()
    mesh = _mesh(config, program, len(planned), peers.count)
    from rrope_jax.posgen import report  # here, after all refusals: it takes matplotlib a second

    with peers.claim(values.workdir, _identity(config)) as workdir:
        backend.configure_logging(logging.INFO if peers.first else logging.ERROR)
        _LOG.info("%s", backend.describe())
        store = _WorkdirStore(workdir)
        results = _nothing_finished(setting, config, program, planned)
        done = sum(map(store.finished, planned))
        _LOG.info("%s: %d trainings, %d of them done", setting.name, len(planned), done)
        if peers.first:
            for training in filter(store.finished, planned):
                store.forget(training)  # which a kill, or an earlier release, has left
        peers.barrier("counted")  # or what others finish meanwhile would count
        try:
            ablation.run(
                program,
                planned,
                store,
                mesh=mesh,
                lanes=setting.lanes,
                save_every_seconds=setting.save_every_seconds,
            )
            peers.barrier("trained")
        except SaveError as error:
            raise JobError(f"{error}; what was saved before is kept") from error
        finally:  # also for what a stopped run has finished
            results = _with_finished(results, planned, store)
            text = report.markdown(results)
            written = []
            if peers.first:
                written = write_results(workdir, results.to_json(), text, report.plots(results))
        _LOG.info("%s", text.split("\n## ", 2)[1])
        print_written(written)
    return 0


def plan(config: ConfigDict) -> tuple[Setting, PosgenProgram, tuple[Training, ...]]:
    """Turns a PosGen config into the setting, its program and all trainings.

    Raises:
      UsageError: the config is wrong; the message names the key.
    """
    for name in _GROUPS:
        if not isinstance(group := config.get(name), ConfigDict):
            found = repr(group) if name in config else "missing"
            raise UsageError(
                f"config.{name} is {found}; it has to be a group of fields, maybe empty"
            )
    top = ConfigDict({key: config[key] for key in config if key not in (*_GROUPS, "mesh")})
    setting = from_config(Setting, top, "config")
    model = from_config(ModelConfig, config.model, "config.model", vocab_size=setting.vocab_size)
    train = from_config(PosgenTrainConfig, config.train, "config.train")
    positions = from_config(PositionSampling, config.positions, "config.positions")
    try:
        program = PosgenProgram(setting, model, train, positions, setting.matmul_precision)
    except ValueError as error:
        raise UsageError(f"config: {error}") from error
    at_test = ConfigDict({**config.rope, **config.rope_at_test})
    groups = {
        "scaled_training": (config.rope, "config.rope"),
        "scaled_at_test": (at_test, "config.rope with config.rope_at_test"),
    }
    specs = {
        (protocol, method): spec_of_method(*groups[protocol], method, head_dim=model.head_size)
        for protocol in setting.protocols
        for method in dict.fromkeys((*setting.methods, *map(PROTOCOLS[protocol], setting.methods)))
    }
    planned = trainings(
        tasks=setting.tasks, methods=setting.methods, seeds=setting.seeds, specs=specs
    )
    return setting, program, planned


def mesh_config(config: ConfigDict) -> AblationMeshConfig:
    """The `mesh` group of a PosGen config, which may be left out.

    Raises:
      UsageError: it is wrong.
    """
    return from_config(AblationMeshConfig, config.get("mesh", ConfigDict()), "config.mesh")


def _identity(config: ConfigDict) -> dict[str, Any]:
    """The config without what does not change results, so that these may differ on a rerun."""
    identity: dict[str, Any] = config.to_dict()
    for name in ("save_every_seconds", "mesh"):
        identity.pop(name, None)
    if identity.get("matmul_precision") is None:  # as in workdirs from before it could be chosen
        identity.pop("matmul_precision", None)
    return identity


def _mesh(config: ConfigDict, program: PosgenProgram, trainings: int, processes: int) -> Mesh:
    """Starts the backend, and lays its devices out as `config.mesh` says."""
    wanted = mesh_config(config)
    automatic = min(trainings, cores() * processes)
    use_cpu_devices(automatic if wanted.ablation == -1 else wanted.ablation, processes)
    with refusing_layouts():
        return lay_out(program, wanted)


def cores() -> int:
    """CPU cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def use_cpu_devices(devices: int, processes: int = 1) -> None:
    """Makes CPU devices, before the backend starts: this process's share of so many.

    Several are single-threaded: small matrix products gain little from a second thread, so
    trainings side by side finish sooner. Accelerators are not affected, nor is what the user has
    set.
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
    """Finished cells as JSON and unfinished states as Orbax checkpoints in the workdir."""

    def __init__(self, workdir: Workdir):
        self._workdir = workdir
        self._pieces = FinishedPieces(workdir, "cells")
        self._cells: dict[str, tuple[Cell, ...]] = {}  # already read, by training

    def finished(self, training: Training) -> bool:
        return self.cells(training) is not None

    def cells(self, training: Training) -> tuple[Cell, ...] | None:
        """The cells that `finish` wrote; None before it, or where they are damaged."""
        if training.name not in self._cells:
            cells = self._pieces.get(training.name, lambda raw: training_cells(raw, training))
            if cells is None:
                return None
            self._cells[training.name] = cells
        return self._cells[training.name]

    def finish(self, training: Training, cells: Sequence[Cell]) -> None:
        self._pieces.put(training.name, [cell.to_json() for cell in cells])
        self.forget(training)

    def forget(self, training: Training) -> None:
        """Removes the states of a training that is finished: its cells are all that is read."""
        shutil.rmtree(self._folder(training), ignore_errors=True)

    def restore(
        self, training: Training, like: PosgenState
    ) -> tuple[PosgenState, ablation.TrainingProgress] | None:
        saved = self._checkpoints(training).restore(like)
        return None if saved is None else (saved[0], ablation.TrainingProgress(**saved[1]))

    def save(
        self, training: Training, state: PosgenState, progress: ablation.TrainingProgress
    ) -> None:
        self._checkpoints(training).save(progress.step, state, dataclasses.asdict(progress))

    def _folder(self, training: Training) -> Path:
        return self._workdir.path / "checkpoints" / training.name

    def _checkpoints(self, training: Training) -> ArrayCheckpoints:
        # a training belongs to one process
        return ArrayCheckpoints(self._folder(training))


def _nothing_finished(
    setting: Setting, config: ConfigDict, program: PosgenProgram, planned: Sequence[Training]
) -> Results:
    """The results before the first training."""
    return Results(
        name=setting.name,
        setting={
            **{key: config[key] for key in config if key not in (*_GROUPS, "mesh")},
            **{field: getattr(setting, field) for field in ("splits", "combination")},
            "seeds": setting.seeds,
            "rope": {**config.rope},
            "rope_at_test": {**config.rope_at_test},
            "model": dataclasses.asdict(program.model),
            "train": dataclasses.asdict(program.train),
            "positions": {**config.positions},
            "is_paper": is_paper(config, program),
        },
        backend=backend.describe(),
        versions=versions("jax", "flax", "optax", "orbax-checkpoint"),
        cells_expected=sum(len(training.evaluations) for training in planned),
        complete=False,
        cells=(),
    )


def _with_finished(results: Results, planned: Sequence[Training], store: _WorkdirStore) -> Results:
    """The results with all that is finished."""
    done = [cells for training in planned if (cells := store.cells(training)) is not None]
    return dataclasses.replace(
        results,
        complete=len(done) == len(planned),
        cells=tuple(itertools.chain.from_iterable(done)),
    )


_PAPER_ROPE = {
    "theta": 10_000.0,
    "factor": 4.0,
    "original_context": 64,
    "beta_fast": 2.0,
    "beta_slow": 1.0,
}
_PAPER_ROPE_AT_TEST = {"factor": 257 / 65, "original_context": 257}


def is_paper(config: ConfigDict, program: PosgenProgram) -> bool:
    """Whether data, model, embedding and optimization are those of the paper's protocol.

    How attention is computed, the dtype of activations, the precision of products and how often is
    validated are no part of it: the report shows them.
    """
    data = {f.name: getattr(program.task, f.name) for f in dataclasses.fields(TaskConfig)}
    paper = dataclasses.replace(PRESETS["posgen_paper"].model, vocab_size=program.task.vocab_size)
    return (
        TaskConfig(**data) == TaskConfig()
        and config.rope.to_dict() == _PAPER_ROPE
        and config.rope_at_test.to_dict() == _PAPER_ROPE_AT_TEST
        and dataclasses.replace(
            program.model, compute_dtype=paper.compute_dtype, attention=paper.attention
        )
        == paper
        and dataclasses.replace(
            program.train, steps_per_call=None, validate_every=PosgenTrainConfig.validate_every
        )
        == PosgenTrainConfig()
        and program.positions == PositionSampling()
    )


def _define(values: flags.FlagValues) -> None:
    flags.DEFINE_string(
        "workdir", None, "folder of the results and checkpoints", flag_values=values
    )
    flags.mark_flag_as_required("workdir", flag_values=values)
