"""Workloads: programs that can be compiled for given devices, and what they ask of these.

A workload is all that the planner knows of a config. The one for decoders on text is here, the one
for the PosGen ablation in `posgen`.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import jax
from jax.sharding import Mesh

from rrope_jax.model import ModelConfig, flops
from rrope_jax.sharding import LayoutError, MeshConfig, make_mesh
from rrope_jax.train import sharded
from rrope_jax.train.heldout import HeldoutConfig
from rrope_jax.train.layout import lay_out
from rrope_jax.train.loss import count_chunks
from rrope_jax.train.step import Program


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepShape:
    """The sizes of a training step, from which its transfers are estimated.

    Attributes:
      model: the decoder.
      rows, length: of a batch over all devices, in rows and tokens.
      accumulation: microbatches that a batch is computed in, one after another.
      parameters: of the whole model, in number.
      attention: a key of `model.flops.ATTENTION_COSTS`.
      chunked_logits: whether the loss computes logits chunk by chunk, and so twice.
      mesh_shape: axis of the mesh -> devices that the model or the batch is split over.
    """

    model: ModelConfig
    rows: int
    length: int
    accumulation: int
    parameters: int
    attention: str
    chunked_logits: bool
    mesh_shape: Mapping[str, int]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Demands:
    """What one call of a program asks of the devices.

    Attributes:
      model_flops: what the mathematics requires, over all devices.
      executed_flops: what is computed, over all devices.
      dtype: of the matrix products.
      shape: of one training step.
      repeats: how many steps of that shape a device computes in a call; need not be whole.
      training: whether they are training steps, or only their forward passes.
      state: bytes per device of what stays from step to step: parameters, optimizer, ...
      steps: optimizer steps of the call, or 1 if it has none.
      tokens: of the call, over all devices.
      calls: until the whole job is done.
      details: what a report says about the program beyond its config.
    """

    model_flops: float
    executed_flops: float
    dtype: str
    shape: StepShape
    repeats: float
    training: bool
    state: Mapping[str, int]
    steps: int
    tokens: int
    calls: int
    details: Mapping[str, Any]


class Workload(Protocol):
    """A program to plan."""

    @property
    def name(self) -> str:
        """A short description."""

    def identity(self) -> Mapping[str, Any]:
        """Everything that the compiled program depends on besides devices and code; JSON-like."""

    def make_mesh(self, devices: Sequence[jax.Device]) -> Mesh:
        """Lays out the devices; raises ValueError if their number does not fit."""

    def lower(self, mesh: Mesh) -> jax.stages.Lowered:
        """The program for the mesh's devices; raises ValueError if an array does not fit."""

    def demands(self, mesh: Mesh) -> Demands:
        """What a call asks of the mesh's devices."""


class Job(Protocol):
    """What a config asks for: one training step, or several programs."""

    @property
    def one_step(self) -> "TextTraining | None":
        """The training whose mesh can be varied and whose step can be saved; None without one."""

    def check(self, devices: Sequence[jax.Device]) -> None:
        """Raises LayoutError for what the job itself refuses, or what cannot be compiled here."""

    def workloads(self, devices: Sequence[jax.Device]) -> Sequence[Workload]:
        """Its programs on some devices, the training first."""


@dataclasses.dataclass(frozen=True)
class TextTraining:
    """The step of `rrope train`: a `Job` and its only `Workload`.

    Attributes:
      program: the training.
      mesh: sizes of the mesh.
      evaluation: of the held-out loss, which is checked but not planned.
    """

    program: Program
    mesh: MeshConfig
    evaluation: HeldoutConfig = dataclasses.field(default_factory=HeldoutConfig)

    @property
    def name(self) -> str:
        """Batch and remat policy."""
        train = self.program.train
        parts = f" in {train.accumulation} parts" if train.accumulation > 1 else ""
        return (
            f"{train.batch_size} rows of {train.length:,} tokens{parts}, "
            f"remat {self.program.model.remat}"
        )

    @property
    def one_step(self) -> "TextTraining":
        """Itself."""
        return self

    def workloads(self, devices: Sequence[jax.Device]) -> tuple["TextTraining"]:
        """Itself."""
        del devices
        return (self,)

    def check(self, devices: Sequence[jax.Device]) -> None:
        """Raises LayoutError if `rrope train` would refuse, or if it cannot be compiled here."""
        placement = lay_out(self.program, self.mesh, self.evaluation, devices)
        check_compiles_here(sharded.attention_of(self.program, placement.mesh))

    def identity(self) -> Mapping[str, Any]:
        """All fields of the program and the mesh."""
        return {**dataclasses.asdict(self.program), "mesh": dataclasses.asdict(self.mesh)}

    def make_mesh(self, devices: Sequence[jax.Device]) -> Mesh:
        """The mesh of `rrope train`."""
        return make_mesh(self.mesh, devices)

    def lower(self, mesh: Mesh) -> jax.stages.Lowered:
        """The step of `rrope train`."""
        return sharded.lower_step(self.program, sharded.make_placement(self.program, mesh))

    def demands(self, mesh: Mesh) -> Demands:
        """What a step asks of the mesh's devices."""
        model, train = self.program.model, self.program.train
        placement = sharded.make_placement(self.program, mesh)
        state = sharded.abstract_state(self.program)
        parameters = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(state.params))
        rows = train.batch_size // train.accumulation
        implementation = sharded.attention_of(self.program, mesh)
        with jax.set_mesh(mesh):
            chunked = count_chunks(rows, train.length, train.loss_chunk) > 1
        own_parameters = _bytes_of_shards(state.params, placement.state.params)
        return Demands(
            model_flops=flops.model_flops(model, train.batch_size, train.length),
            executed_flops=flops.executed_flops(
                model,
                train.batch_size,
                train.length,
                attention=implementation,
                chunked_logits=chunked,
            ),
            dtype=model.compute_dtype,
            shape=StepShape(
                model=model,
                rows=train.batch_size,
                length=train.length,
                accumulation=train.accumulation,
                parameters=parameters,
                attention=implementation,
                chunked_logits=chunked,
                mesh_shape=mesh.shape,
            ),
            repeats=1,
            training=True,
            state={
                "parameters": own_parameters,
                "optimizer": _bytes_of_shards(state.opt_state, placement.state.opt_state),
                "gradients": own_parameters,
            },
            steps=1,
            tokens=train.batch_size * train.length,
            calls=train.steps,
            details={"parameters": parameters, "attention": implementation},
        )


def check_compiles_here(attention: str) -> None:
    """Raises LayoutError for an implementation of attention that only its devices compile."""
    if attention == "cudnn":
        raise LayoutError(
            "model.attention",
            "is compiled by the GPU's own library and needs a GPU here; plan with "
            "attention=chunked",
            attention,
        )


def _bytes_of_shards(abstract: Any, shardings: Any) -> int:
    """Bytes of the shards of arrays that one device holds."""
    parts = jax.tree.map(
        lambda leaf, placed: math.prod(placed.shard_shape(leaf.shape)) * leaf.dtype.itemsize,
        abstract,
        shardings,
    )
    return sum(jax.tree.leaves(parts))
