"""The setting, program and trainings that a config of `rrope posgen` describes."""

import dataclasses
from typing import Annotated, TypeVar

from rrope_jax.cli.errors import UsageError, refusing
from rrope_jax.cli.settings import INLINE, Fields, SomeOf, build
from rrope_jax.jobs.rope_fields import spec_of_method
from rrope_jax.jobs.rope_groups import RopeFields, check_layers, merge, split
from rrope_jax.model import ModelConfig
from rrope_jax.posgen.config import PosgenTrainConfig, ProgramTask, TaskConfig, check_tasks
from rrope_jax.posgen.grid import PROTOCOLS, Training, trainings
from rrope_jax.posgen.layout import AblationMeshConfig
from rrope_jax.posgen.training import PosgenProgram
from rrope_jax.rope.learned import unrounded
from rrope_jax.rope.methods import (
    changes_far_positions,
    fixed_variant,
    is_learned,
    parse_method,
)
from rrope_jax.rope.positions import PositionSampling

ProgramT = TypeVar("ProgramT", bound=PosgenProgram)

_MOST_SEEDS = 10_000


@dataclasses.dataclass(frozen=True, kw_only=True)
class Grid:
    """The trainings of an ablation.

    Attributes:
      tasks, methods, protocols: Keys of `TASKS`, RoPE methods, and keys of `PROTOCOLS`.
      num_seeds: Number of seeds per cell.
      first_seed: The seeds are `first_seed`, `first_seed + 1`, and so on.

    Raises:
      ValueError: A name is unknown or occurs twice, or there are too few or too many seeds.
    """

    tasks: tuple[str, ...]
    methods: tuple[str, ...]
    protocols: tuple[str, ...]
    num_seeds: int
    first_seed: int = 0

    def __post_init__(self) -> None:
        for name in ("tasks", "methods", "protocols"):
            entries = getattr(self, name)
            if not entries or len(set(entries)) < len(entries):
                raise ValueError(f"{name}={entries!r} must name at least one, and none twice")
        self._check_tasks()
        for method in self.methods:
            parse_method(fixed_variant(method))
        for protocol in self.protocols:
            if protocol not in PROTOCOLS:
                raise ValueError(
                    f"protocols: {protocol!r} is unknown; choose from {', '.join(PROTOCOLS)}"
                )
        for name, least in (("num_seeds", 1), ("first_seed", 0)):
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

    def _check_tasks(self) -> None:
        check_tasks(self.tasks)

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds of the grid."""
        return tuple(range(self.first_seed, self.first_seed + self.num_seeds))


@dataclasses.dataclass(frozen=True, kw_only=True)
class AblationSetting:
    """A config of an ablation, without its data; the fields of `grid` are at its top level.

    Attributes:
      name: Title of the report.
      grid: The trainings.
      rope: Fields of RopeSpec for all methods.
      rope_at_test: Fields that replace those of `rope` under the protocol `scaled_at_test`.
      model: Fields of ModelConfig; the vocabulary size comes from the task.
      train, positions, mesh: The groups of these names; see their dataclasses.
      lanes: Trainings that a device runs at a time; 0 chooses by backend.
      save_every_seconds: Minimum time between checkpoints of a training.
      matmul_precision: See `posgen.training.PosgenProgram`.

    Raises:
      ValueError: `lanes` or `save_every_seconds` is negative.
    """

    name: str
    grid: Annotated[Grid, INLINE]
    rope: RopeFields
    rope_at_test: RopeFields
    model: Annotated[Fields, SomeOf(ModelConfig)]
    train: PosgenTrainConfig
    positions: PositionSampling
    mesh: AblationMeshConfig = dataclasses.field(default_factory=AblationMeshConfig)
    lanes: int = 0
    save_every_seconds: float = 60.0
    matmul_precision: str | None = None

    def __post_init__(self) -> None:
        for name in ("lanes", "save_every_seconds"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 0")

    def program_of(self, kind: type[ProgramT], task: ProgramTask) -> ProgramT:
        """Returns the functions that all trainings of a task share.

        Raises:
          UsageError: The groups contradict each other.
        """
        model = build(ModelConfig, self.model, "config.model", vocab_size=task.vocab_size)
        with refusing("config"):
            return kind(
                task,
                model,
                self.train,
                self.positions,
                self.matmul_precision,
                self._has_position_temperatures(),
                far_pairs=any(map(changes_far_positions, map(fixed_variant, self.grid.methods))),
            )

    def _has_position_temperatures(self) -> bool:
        groups = (*split(self.rope), *split(self.rope_at_test, "config.rope_at_test"))
        return any(
            group.get("llama_4_scaling_beta")
            or group.get("position_temperature") not in (None, "none")
            for group in groups
        )

    def trainings(self, program: PosgenProgram) -> tuple[Training, ...]:
        """Returns all trainings of the grid.

        Raises:
          UsageError: A field that a method needs is missing from `rope`, or a value is wrong.
        """
        fields: dict[str, tuple[Fields, str]] = {
            "scaled_training": (self.rope, "config.rope"),
            "scaled_at_test": (
                merge(self.rope, self.rope_at_test),
                "config.rope with config.rope_at_test",
            ),
        }
        for group, path in ((self.rope, "config.rope"), (self.rope_at_test, "config.rope_at_test")):
            check_layers(split(group, path), program.model, path)
        grid = self.grid
        specs = {}
        for protocol in grid.protocols:
            trained_as = map(PROTOCOLS[protocol], grid.methods)
            for method in dict.fromkeys((*grid.methods, *trained_as)):
                spec = spec_of_method(
                    *fields[protocol], fixed_variant(method), head_dim=program.model.head_size
                )
                for each in (spec, spec.of("sliding_attention")):
                    if each.far_positions != "none" and not program.far_pairs:
                        raise UsageError(
                            f"config.rope: far_positions = {each.far_positions!r} of some layers "
                            "is part of no method; choose methods by such names in config.methods"
                        )
                    if is_learned(method):
                        with refusing(f"method {method!r}"):
                            unrounded(each)
                specs[protocol, method] = spec
        return trainings(tasks=grid.tasks, methods=grid.methods, seeds=grid.seeds, specs=specs)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PosgenSetting(AblationSetting):
    """A config of `rrope posgen`; the fields of `task` and `grid` are at its top level.

    Attributes:
      task: The data.
    """

    task: Annotated[TaskConfig, INLINE]

    def program(self) -> PosgenProgram:
        """Returns the functions that all trainings share.

        Raises:
          UsageError: The groups contradict each other.
        """
        return self.program_of(PosgenProgram, self.task)
