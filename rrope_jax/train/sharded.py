"""A training step over a mesh: the sharding of every array, and the program itself.

`rrope train` runs the result of `lower_step`, and `rrope plan` compiles the same program for absent
machines. The step is `Program.step`, unchanged; the logical axes of its arrays determine the
transfers between devices.

Letters: B rows of a batch, b of them in this process, T tokens per row, P parts of a batch,
D devices.
"""

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from rrope_jax.model import ModelConfig
from rrope_jax.model.decoder import attention_names, parameter_layout
from rrope_jax.sharding import RULES, LayoutError, parts, refused_for, sharding, spec
from rrope_jax.train import lora
from rrope_jax.train.config import TrainConfig
from rrope_jax.train.optimizer import make_optimizer
from rrope_jax.train.step import Batch, Params, Program, State

BATCH_DTYPES = {
    "tokens": jnp.int32,
    "targets": jnp.int32,
    "segment_ids": jnp.int32,
    "positions": jnp.int32,
    "weights": jnp.float32,
}
"""The arrays of a batch, as in `data.packing.Rows`."""


@dataclasses.dataclass(frozen=True)
class Placement:
    """The shardings of a training run's arrays.

    Attributes:
      mesh: the devices.
      state: a `State` whose leaves are `NamedSharding`s.
      rows: the sharding of the arrays [B, T] of a batch.
      whole: the sharding of arrays that are replicated on every device.
      params: a `NamedSharding` for every parameter of the decoder.
    """

    mesh: Mesh
    state: State
    rows: NamedSharding
    whole: NamedSharding
    params: Params

    @functools.cached_property
    def _parts_here(self) -> tuple[int, ...]:
        return _parts_of(_devices_by_part(self.mesh), jax.process_index())

    def put(self, rows: Mapping[str, np.ndarray]) -> Batch:
        """Moves this process's rows of a batch to its devices.

        Args:
          rows: arrays [b, T], the rows of `rows_of_process` in that order.
        """

        def array(x_bT: np.ndarray) -> jax.Array:
            size = len(x_bT) // len(self._parts_here)  # rows per part
            B = size * parts("batch", self.mesh)
            row_here = {part * size: i * size for i, part in enumerate(self._parts_here)}

            def shard(index: tuple[slice, ...] | None) -> np.ndarray:
                rows_of_batch, tokens = index or (slice(None), slice(None))
                first, stop, _ = rows_of_batch.indices(B)
                start = row_here[first]
                x: np.ndarray = x_bT[start : start + stop - first, tokens]
                return x

            return jax.make_array_from_callback((B, *x_bT.shape[1:]), self.rows, shard)

        return {name: array(x_bT) for name, x_bT in rows.items()}

    def put_whole(self, rows: Mapping[str, np.ndarray]) -> Batch:
        """Moves a batch to the devices, given as whole arrays [B, T] in every process."""

        def array(x_BT: np.ndarray) -> jax.Array:
            return jax.make_array_from_callback(
                x_BT.shape, self.rows, lambda index: x_BT[index or ...]
            )

        return {name: array(x_BT) for name, x_BT in rows.items()}


def rows_of_process(mesh: Mesh, process_index: int, rows: int) -> tuple[int, ...]:
    """The rows of a batch that a process must provide: those that its devices compute.

    A batch is cut into equal parts, one for each index along the mesh's axes for rows. The parts of
    a process need not be consecutive, since meshes follow the links of a torus and hosts are blocks
    of it. Processes that differ only in `seq` or `tensor` provide the same rows.

    Args:
      mesh: the devices of all processes.
      process_index: the index of the process.
      rows: number of rows of the whole batch.

    Returns:
      Row indices in range(rows), ascending; empty if the mesh has no device of the process.

    Raises:
      LayoutError: the mesh does not divide the rows into equal parts.
    """
    groups = _devices_by_part(mesh)
    size, rest = divmod(rows, len(groups))
    if rest:
        raise LayoutError(
            "mesh", f"{rows} rows of a batch are not a multiple of its {len(groups)} parts"
        )
    return tuple(
        part * size + row for part in _parts_of(groups, process_index) for row in range(size)
    )


def _devices_by_part(mesh: Mesh) -> np.typing.NDArray[Any]:
    """The devices that compute each part of a batch, [P, D]."""
    names = list(mesh.axis_names)
    batch_axes = [names.index(name) for name in RULES["batch"] if name in names]
    others = [axis for axis in range(len(names)) if axis not in batch_axes]
    groups = mesh.devices.transpose(*batch_axes, *others)
    return groups.reshape(math.prod(groups.shape[: len(batch_axes)]), -1)


def _parts_of(groups: np.typing.NDArray[Any], process_index: int) -> tuple[int, ...]:
    """The parts that the devices of a process compute, ascending."""
    processes = np.array([device.process_index for device in groups.flat]).reshape(groups.shape)
    return tuple(np.flatnonzero((processes == process_index).any(axis=1)).tolist())


def make_placement(program: Program, mesh: Mesh) -> Placement:
    """The shardings of a program's arrays on a mesh.

    Raises:
      LayoutError: the mesh does not divide one of them; the message names it.
    """
    check_rows(program.train, mesh)
    whole = NamedSharding(mesh, PartitionSpec())
    with refused_for("mesh"):
        params = parameter_shardings(program.model, mesh)
    shapes = abstract_state(program)
    log_ratios = None
    if shapes.log_ratios is not None:
        log_ratios = dict.fromkeys(shapes.log_ratios, whole)
    trained, frozen = lora.split_paths(program.lora, params)
    if frozen is not None:
        trained = lora.joined(trained, _factor_shardings(program, mesh))
    state = State(trained, (), whole, whole, log_ratios, frozen)  # type: ignore[arg-type]
    # moments are sharded like their parameters; counters and factors of moments are replicated
    opt_state = optax.tree.map_params(
        make_optimizer(program.train),
        lambda moment, parameter, sharding: sharding if moment.shape == parameter.shape else whole,
        shapes.opt_state,
        shapes.trained,
        state.trained,
        transform_non_params=lambda _: whole,
    )
    rows = NamedSharding(mesh, spec(("batch", "length"), mesh))
    return Placement(mesh, state._replace(opt_state=opt_state), rows, whole, params)


def _factor_shardings(program: Program, mesh: Mesh) -> Params:
    """A `NamedSharding` for every factor of an adapter: that of the kernel's axis, or none."""
    shardings: Params = nnx.traversals.unflatten_mapping(
        {
            path: sharding(mesh, axes, shape, ".".join(path))
            for path, (shape, axes) in lora.layout(program.lora, program.model).items()
        }
    )
    return shardings


@functools.lru_cache(maxsize=2)
def abstract_state(program: Program) -> State:
    """The shapes and dtypes of a program's state."""
    state: State = jax.eval_shape(program.init, jax.random.key(0))
    return state


def parameter_shardings(model: ModelConfig, mesh: Mesh | AbstractMesh) -> Params:
    """A `NamedSharding` for every parameter.

    Raises:
      ValueError: the mesh does not divide one of them; the message names it.
    """
    shardings: Params = nnx.traversals.unflatten_mapping(
        {
            path: sharding(mesh, axes, shape, "the parameter " + ".".join(path))
            for path, (shape, axes) in parameter_layout(model).items()
        }
    )
    return shardings


def attention_of(program: Program, mesh: Mesh) -> dict[str, str]:
    """The attention implementation that the step uses on a mesh, by layer type.

    Raises:
      LayoutError: the configured implementation cannot run there.
    """
    model, train = program.model, program.train
    rows = train.batch_size // train.accumulation
    with refused_for("model"), jax.set_mesh(mesh):
        return attention_names(
            model,
            rows,
            train.length,
            segmented=program.segmented,
            dropout=model.dropout > 0,
            far=program.far_layers(train.length),
        )


def check_rows(train: TrainConfig, mesh: Mesh | AbstractMesh) -> None:
    """Raises LayoutError if a mesh cannot split the rows of a microbatch."""
    rows, shares = train.batch_size // train.accumulation, parts("batch", mesh)
    if rows % shares:
        rows_of_share, rest = divmod(train.batch_size, shares)
        accumulation = math.gcd(train.accumulation, rows_of_share)
        hint = "" if rest else f", such as by accumulation={accumulation}"
        raise LayoutError(
            "train.batch_size",
            f"in accumulation={train.accumulation} parts is {rows} rows at a time, which "
            f"data={mesh.shape['data']} x fsdp={mesh.shape['fsdp']} of the mesh does not divide; "
            f"let batch_size / accumulation be a multiple of {shares}{hint}",
            train.batch_size,
        )
    check_length(train.length, mesh, "train.length")


def check_length(length: int, mesh: Mesh | AbstractMesh, key: str) -> None:
    """Raises LayoutError, naming the key, if a mesh cannot split rows of `length` tokens."""
    pieces = 2 * mesh.shape["seq"]
    if pieces > 2 and length % pieces:
        raise LayoutError(
            key,
            f"is not a multiple of {pieces}: over seq={mesh.shape['seq']} of the mesh, rows are "
            "split into two pieces for each part",
            length,
        )


def lower_step(program: Program, placement: Placement) -> jax.stages.Lowered:
    """Lowers the step for the mesh's devices from shapes alone; compile the result to run it.

    The program's arguments are the state, which is donated, a batch, and the run's key.
    """
    train = program.train
    batch = {
        name: jax.ShapeDtypeStruct((train.batch_size, train.length), dtype)
        for name, dtype in BATCH_DTYPES.items()
    }
    key = jax.eval_shape(jax.random.key, 0)
    whole = placement.whole
    with jax.set_mesh(placement.mesh):
        step = jax.jit(
            program.step,
            donate_argnums=0,
            in_shardings=(placement.state, placement.rows, whole),
            out_shardings=(placement.state, whole),
        )
        return step.lower(abstract_state(program), batch, key)


def init_state(program: Program, placement: Placement, key: jax.Array) -> State:
    """`Program.init`, with each shard of the state computed on the device that holds it."""
    with jax.set_mesh(placement.mesh):
        state: State = jax.jit(program.init, out_shardings=placement.state)(key)
    return state


def state_from_params(
    program: Program,
    placement: Placement,
    params: Params,
    key: jax.Array | None = None,
    factors: Params | None = None,
) -> State:
    """`Program.state_from_params` for parameters on the mesh, donated if they stay float32.

    Args:
      program: the training run.
      placement: the shardings of its arrays.
      params: the decoder's parameters, on the mesh.
      key: a PRNG key for new adapters.
      factors: the factors of an adapter to go on with, as whole arrays on the host; None for new
        ones.
    """
    trained, frozen = lora.split(program.lora, params)
    if factors is not None:
        factors = jax.tree.map(
            lambda array, sharding: jax.make_array_from_callback(
                array.shape, sharding, lambda index: array[index]
            ),
            factors,
            _factor_shardings(program, placement.mesh),
        )
    donated = (0, 1) if program.train.param_dtype == "float32" else (1,)
    with jax.set_mesh(placement.mesh):
        make = jax.jit(
            program.state_from_parts, out_shardings=placement.state, donate_argnums=donated
        )
        state: State = make(trained, frozen, key, factors)
    return state


def frozen_of(program: Program, placement: Placement, params: Params) -> Params | None:
    """`State.frozen` for parameters already on the mesh."""
    _, rounded = lora.split(program.lora, params)
    frozen: Params | None = jax.device_put(rounded, placement.state.frozen)
    return frozen


def sharded_state_shapes(program: Program, placement: Placement) -> State:
    """A state of `ShapeDtypeStruct`s with shardings, for restoring a checkpoint from any mesh."""
    shapes: State = jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        abstract_state(program),
        placement.state,
    )
    return shapes
