"""What is planned: a step to lower for given devices, and what it asks of them.

A workload is all that the planner knows of a config; there is one for decoders on text here and one
for the PosGen ablation in `posgen`.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import jax
from jax.sharding import Mesh

from rrope_jax.model import flops
from rrope_jax.planning.roofline import rules, traffic
from rrope_jax.planning.roofline.collectives import Collective
from rrope_jax.sharding import LayoutError, MeshConfig, make_mesh
from rrope_jax.train import sharded
from rrope_jax.train.heldout import HeldoutConfig
from rrope_jax.train.layout import lay_out
from rrope_jax.train.loss import count_chunks
from rrope_jax.train.step import Program


@dataclasses.dataclass(frozen=True, kw_only=True)
class Demands:
    """What one call of a program asks of the devices.

    Attributes:
      model_flops: what the mathematics asks for, over all devices.
      executed_flops: what is computed, over all devices.
      traffic: bytes between memory and cores, per device, by what moves them.
      dtype: of the matrix products.
      state: bytes per device of what stays from step to step: parameters, optimizer, ...
      saved: bytes per device that the backward pass keeps of the forward pass, estimated.
      steps: optimizer steps of the call.
      tokens: of the call, over all devices.
      calls: until the whole job is done.
      details: what a report says of the program, beside its config.
    """

    model_flops: float
    executed_flops: float
    traffic: Mapping[str, float]
    dtype: str
    state: Mapping[str, int]
    saved: float
    steps: int
    tokens: int
    calls: int
    details: Mapping[str, Any]


class Workload(Protocol):
    """A program to be planned."""

    @property
    def name(self) -> str:
        """A short description."""

    def identity(self) -> Mapping[str, Any]:
        """All that the compiled program depends on beside its devices and the code; JSON-like."""

    def make_mesh(self, devices: Sequence[jax.Device]) -> Mesh:
        """Raises ValueError where the devices do not fit."""

    def lower(self, mesh: Mesh) -> jax.stages.Lowered:
        """The program for the mesh's devices; raises ValueError where an array does not fit."""

    def demands(self, mesh: Mesh) -> Demands:
        """See there."""

    def expected(self, mesh_shape: Mapping[str, int]) -> tuple[Collective, ...]:
        """Its transfers by the sharding rules."""


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
      program, mesh: the setting.
      evaluation: of the held-out loss, which is checked and not planned.
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
        """Raises LayoutError for what `rrope train` refuses, or what cannot be compiled here."""
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
        return sharded.lower(self.program, sharded.place(self.program, mesh))

    def expected(self, mesh_shape: Mapping[str, int]) -> tuple[Collective, ...]:
        """See `rules`."""
        train = self.program.train
        batch = rules.Batch(
            rows=train.batch_size // train.accumulation,
            length=train.length,
            parts=train.accumulation,
        )
        return rules.expected(self.program.model, batch, mesh_shape)

    def demands(self, mesh: Mesh) -> Demands:
        """See `Demands`."""
        model, train = self.program.model, self.program.train
        placement = sharded.place(self.program, mesh)
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
            traffic=traffic.memory_traffic(
                model,
                rows=train.batch_size,
                length=train.length,
                accumulation=train.accumulation,
                parameters=parameters,
                mesh_shape=mesh.shape,
                attention=implementation,
                chunked_logits=chunked,
            ),
            dtype=model.compute_dtype,
            state={
                "parameters": own_parameters,
                "optimizer": _bytes_of_shards(state.opt_state, placement.state.opt_state),
                "gradients": own_parameters,
            },
            saved=traffic.saved_bytes(model, rows * train.length, mesh.shape),
            steps=1,
            tokens=train.batch_size * train.length,
            calls=train.steps,
            details={"parameters": parameters, "attention": implementation},
        )


def check_compiles_here(attention: str) -> None:
    """Raises LayoutError for an implementation of attention that needs the devices themselves."""
    if attention == "cudnn":
        raise LayoutError(
            "model.attention",
            "is compiled by the GPU's own library and needs a GPU here; plan with "
            "--config.model.attention=chunked",
            attention,
        )


def _bytes_of_shards(abstract: Any, shardings: Any) -> int:
    """What a device has of arrays."""
    parts = jax.tree.map(
        lambda leaf, placed: math.prod(placed.shard_shape(leaf.shape)) * leaf.dtype.itemsize,
        abstract,
        shardings,
    )
    return sum(jax.tree.leaves(parts))
