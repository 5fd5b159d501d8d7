"""Workloads: programs that can be compiled for given devices, and their demands on these.

The planner sees a config only through its workloads. The workload of training on text is here, that
of the PosGen ablation in `posgen`.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import jax
from jax.sharding import Mesh

from rrope_jax.model import ModelConfig, flops
from rrope_jax.model.cache import cache_bytes
from rrope_jax.sharding import LayoutError, MeshConfig, make_mesh
from rrope_jax.train import lora, sharded
from rrope_jax.train.heldout import HeldoutConfig
from rrope_jax.train.layout import lay_out
from rrope_jax.train.loss import count_chunks
from rrope_jax.train.rounding import in_float32
from rrope_jax.train.step import Program


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepShape:
    """The sizes of a training step, for estimating its transfers and memory traffic.

    Attributes:
      model: the decoder.
      rows, length: size of a batch over all devices, in rows and tokens per row.
      accumulation: number of microbatches per batch, computed one after another.
      parameters: number of parameters of the whole model.
      trained: number of those that have gradients and moments; None for all.
      attention: layer type -> a key of `model.flops.ATTENTION_COSTS`.
      chunked_logits: whether the loss computes logits chunk by chunk, and therefore twice.
      mesh_shape: mesh axis -> number of devices along it.
      update_bytes: bytes that the optimizer moves on a device; None for AdamW's in float32.
    """

    model: ModelConfig
    rows: int
    length: int
    accumulation: int
    parameters: int
    attention: Mapping[str, str]
    chunked_logits: bool
    mesh_shape: Mapping[str, int]
    trained: int | None = None
    update_bytes: float | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Demands:
    """The demands of one call of a program on the devices.

    Attributes:
      model_flops: model FLOPs over all devices; see `model.flops`.
      executed_flops: executed FLOPs over all devices; see `model.flops`.
      dtype: dtype of the matrix products.
      shape: sizes of one training step.
      repeats: number of steps of that shape that a device computes per call; may be fractional.
      training: whether these are training steps, or only forward passes.
      state: bytes per device that persist between steps, such as parameters and optimizer state.
      steps: optimizer steps per call; 1 if the program has none.
      tokens: tokens per call, over all devices.
      calls: number of calls of the whole job.
      details: information on the program for reports, beyond its config.
      traffic: bytes that a device moves per call, by cause, in place of those estimated from
        `shape`.
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
    traffic: Mapping[str, float] = dataclasses.field(default_factory=dict)


class Workload(Protocol):
    """A program to plan."""

    @property
    def name(self) -> str:
        """A short description."""

    def identity(self) -> Mapping[str, Any]:
        """Everything the compiled program depends on besides devices and code; JSON-like."""

    def make_mesh(self, devices: Sequence[jax.Device]) -> Mesh:
        """Arranges the devices in a mesh; raises ValueError if their number does not fit."""

    def lower(self, mesh: Mesh) -> jax.stages.Lowered:
        """Lowers the program for a mesh; raises ValueError if the mesh cannot split an array."""

    def demands(self, mesh: Mesh) -> Demands:
        """The demands of a call on the mesh's devices."""


class Job(Protocol):
    """The programs of a config: one training step, or several programs."""

    @property
    def one_step(self) -> "TextTraining | None":
        """The job as a single step, whose mesh can be varied and which can be saved, or None."""

    def check(self, devices: Sequence[jax.Device]) -> None:
        """Raises LayoutError if the job itself would, or if it cannot be compiled here."""

    def workloads(self, devices: Sequence[jax.Device]) -> Sequence[Workload]:
        """Its programs on these devices, training first."""


@dataclasses.dataclass(frozen=True)
class TextTraining:
    """The step of `rrope train`: a `Job` and its only `Workload`.

    Attributes:
      program: the training run.
      mesh: sizes of the mesh.
      evaluation: settings of the held-out loss, which is checked but not planned.
    """

    program: Program
    mesh: MeshConfig
    evaluation: HeldoutConfig = dataclasses.field(default_factory=HeldoutConfig)

    @property
    def name(self) -> str:
        """A short description, with batch size and remat policy."""
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
        """Raises LayoutError if `rrope train` would, or if the step cannot be compiled here."""
        placement = lay_out(self.program, self.mesh, self.evaluation, devices)
        for implementation in sharded.attention_of(self.program, placement.mesh).values():
            check_compiles_here(implementation)

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
        """The demands of a step on the mesh's devices."""
        model, train = self.program.model, self.program.train
        placement = sharded.make_placement(self.program, mesh)
        state = sharded.abstract_state(self.program)
        trained, frozen = _count(state.params), _count(state.frozen)
        adapters = _adapters(self.program) if frozen else None
        details = {"trained parameters": trained} if frozen else {}
        rows = train.batch_size // train.accumulation
        attention = sharded.attention_of(self.program, mesh)
        with jax.set_mesh(mesh):
            chunked = count_chunks(rows, train.length, train.loss_chunk) > 1
        gradients = state.params
        if train.accumulation > 1:  # sums of many
            gradients = jax.eval_shape(in_float32, gradients)
        own_parameters = _bytes_of_shards(state.params, placement.state.params)
        own_optimizer = _bytes_of_shards(state.opt_state, placement.state.opt_state)
        own_gradients = _bytes_of_shards(gradients, placement.state.params)
        own_frozen = _bytes_of_shards(state.frozen, placement.state.frozen)
        return Demands(
            model_flops=flops.model_flops(model, train.batch_size, train.length, adapters=adapters),
            executed_flops=flops.executed_flops(
                model,
                train.batch_size,
                train.length,
                attention=attention,
                chunked_logits=chunked,
                adapters=adapters,
            ),
            dtype=model.compute_dtype,
            shape=StepShape(
                model=model,
                rows=train.batch_size,
                length=train.length,
                accumulation=train.accumulation,
                parameters=trained + frozen,
                trained=trained,
                attention=attention,
                chunked_logits=chunked,
                mesh_shape=mesh.shape,
                update_bytes=2 * (own_parameters + own_optimizer + own_gradients),
            ),
            repeats=1,
            training=True,
            state={
                "parameters": own_parameters + own_frozen,
                "optimizer": own_optimizer,
                "gradients": own_gradients,
            },
            steps=1,
            tokens=train.batch_size * train.length,
            calls=train.steps,
            details={
                "parameters": trained + frozen,
                **details,
                "attention": attention_text(attention),
                "cache of a row when decoding, bytes": cache_bytes(
                    model, 1, train.length, self.program.rope
                ),
            },
        )


def _count(tree: Any) -> int:
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def _adapters(program: Program) -> int:
    """The number of entries of the factors of adapters."""
    shapes = lora.layout(program.lora, program.model).values()
    return sum(math.prod(shape) for shape, _ in shapes)


def check_compiles_here(attention: str) -> None:
    """Raises LayoutError if an attention implementation compiles only on its own devices."""
    if attention == "cudnn":
        raise LayoutError(
            "model.attention",
            "is compiled by the GPU's own library and needs a GPU here; plan with "
            "attention=chunked",
            attention,
        )


def attention_text(attention: Mapping[str, str]) -> str:
    """The implementation of all layers; with the layer type, if there are several."""
    if len(names := set(attention.values())) == 1:
        return names.pop()
    return ", ".join(f"{name} ({layer_type})" for layer_type, name in attention.items())


def _bytes_of_shards(abstract: Any, shardings: Any) -> int:
    """Bytes per device of sharded arrays."""
    parts = jax.tree.map(
        lambda leaf, placed: math.prod(placed.shard_shape(leaf.shape)) * leaf.dtype.itemsize,
        abstract,
        shardings,
    )
    return sum(jax.tree.leaves(parts))
