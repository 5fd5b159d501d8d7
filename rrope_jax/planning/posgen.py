"""The programs of a PosGen ablation as workloads: training, validation and test.

All training runs proceed side by side in separate lanes, so devices exchange no data.
"""

import dataclasses
import functools
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from jax.sharding import Mesh

from rrope_jax.planning.workload import Demands, StepShape, check_compiles_here
from rrope_jax.posgen.grid import Training
from rrope_jax.posgen.layout import AblationMeshConfig, attentions_of, lay_out, make_mesh
from rrope_jax.posgen.round_functions import Phase, lower
from rrope_jax.posgen.training import PosgenProgram
from rrope_jax.sharding import AXES


@dataclasses.dataclass(frozen=True)
class Ablation:
    """The whole of `rrope posgen`, or a task of `rrope algorithmic`; a `Job`.

    Attributes:
      program, trainings, mesh, lanes: as for `posgen.round_functions.lower`.
      task: the task, if each has a program of its own; otherwise empty.
    """

    program: PosgenProgram
    trainings: tuple[Training, ...]
    mesh: AblationMeshConfig
    lanes: int
    task: str = ""

    def check(self, devices: Sequence[jax.Device]) -> None:
        """Raises LayoutError if `rrope posgen` would, or if the job cannot be compiled here."""
        mesh = lay_out(self.program, self.mesh, devices)
        for attention in attentions_of(self.program, mesh):
            check_compiles_here(attention)

    @property
    def one_step(self) -> None:
        """None: training runs share nothing, so there is only one mesh, and several programs."""

    def workloads(self, devices: Sequence[jax.Device]) -> tuple["AblationProgram", ...]:
        """Its programs, training first.

        Raises:
          ValueError: there are fewer devices than the mesh requires.
        """
        phases = _phases(self, make_mesh(self.mesh, devices))
        return tuple(AblationProgram(self, index) for index in range(len(phases)))


@dataclasses.dataclass(frozen=True)
class Ablations:
    """The whole of `rrope algorithmic`, task after task; a `Job`.

    Attributes:
      parts: the ablation of each task.
    """

    parts: tuple[Ablation, ...]

    def check(self, devices: Sequence[jax.Device]) -> None:
        """Raises LayoutError as its parts do."""
        for part in self.parts:
            part.check(devices)

    @property
    def one_step(self) -> None:
        """None, as for its parts."""

    def workloads(self, devices: Sequence[jax.Device]) -> tuple["AblationProgram", ...]:
        """The programs of its parts, one part after another."""
        return tuple(itertools.chain.from_iterable(part.workloads(devices) for part in self.parts))


@functools.lru_cache(maxsize=16)
def _phases(ablation: Ablation, mesh: Mesh) -> tuple[Phase, ...]:
    return lower(ablation.program, ablation.trainings, mesh, lanes=ablation.lanes)


@dataclasses.dataclass(frozen=True)
class AblationProgram:
    """One program of an ablation; a `Workload`.

    Attributes:
      ablation: the ablation that it is part of.
      index: its index among the programs of `posgen.round_functions.lower`.
    """

    ablation: Ablation
    index: int

    @property
    def name(self) -> str:
        """A short description, with the number of training runs."""
        return f"{len(self.ablation.trainings)} trainings of {self.ablation.task or 'PosGen'}"

    def identity(self) -> Mapping[str, Any]:
        """All fields."""
        ablation = self.ablation
        return {
            "program": dataclasses.asdict(ablation.program),
            "trainings": [dataclasses.asdict(training) for training in ablation.trainings],
            "mesh": dataclasses.asdict(ablation.mesh),
            "lanes": ablation.lanes,
            "index": self.index,
        }

    def make_mesh(self, devices: Sequence[jax.Device]) -> Mesh:
        """The mesh of `rrope posgen`."""
        return make_mesh(self.ablation.mesh, devices)

    def lower(self, mesh: Mesh) -> jax.stages.Lowered:
        """The program of `rrope posgen`."""
        return self._phase(mesh).lowered

    def demands(self, mesh: Mesh) -> Demands:
        """The demands of a call on the mesh's devices; FLOPs include masked pairs of tokens."""
        phase, program = self._phase(mesh), self.ablation.program
        train, model = program.train, program.model
        training = phase.steps > 0
        rows = train.batch_size if training else train.eval_batch_size
        length = phase.length
        state = jax.eval_shape(program.init, jax.random.key(0))
        parameters = sum(leaf.size for leaf in jax.tree.leaves(state.params))
        shape = StepShape(
            model=model,
            rows=rows,
            length=length,
            accumulation=1,
            parameters=parameters,
            attention=dict.fromkeys(model.layer_types, "xla"),
            chunked_logits=False,
            mesh_shape=dict.fromkeys(AXES, 1),
        )
        per_row = 3 * program.forward_flops(length) if training else program.forward_flops(length)
        repeats = phase.flops / (rows * per_row)
        parameter_bytes = 4 * parameters * phase.lanes
        return Demands(
            model_flops=phase.flops * mesh.size,
            executed_flops=phase.flops * mesh.size,
            dtype=model.compute_dtype,
            shape=shape,
            repeats=repeats,
            training=training,
            state={
                "parameters": parameter_bytes,
                "optimizer": 2 * parameter_bytes,
                "gradients": parameter_bytes,
            },
            steps=phase.steps or 1,
            tokens=round(rows * repeats) * length * mesh.size,
            calls=phase.calls,
            details={
                **({"task": self.ablation.task} if self.ablation.task else {}),
                "phase": phase.name,
                "parameters of a training": parameters,
                "trainings of a device at a time": phase.lanes,
            },
        )

    def _phase(self, mesh: Mesh) -> Phase:
        return _phases(self.ablation, mesh)[self.index]
