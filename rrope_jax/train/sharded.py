"""A training step over a mesh: where every array lies, and the program itself.

`rrope train` runs what `lower` gives, and `rrope plan` compiles the same for machines that are not
there. The step is `Program.step`, unchanged: what it says about the axes of its arrays becomes
transfers between devices here.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from rrope_jax.model import ModelConfig
from rrope_jax.model.decoder import attention_name, parameter_layout
from rrope_jax.sharding import RULES, LayoutError, parts, refused_for, sharding, spec
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
    """Where the arrays of a training run lie.

    Attributes:
      mesh: the devices.
      state: a `State` whose leaves are `NamedSharding`s.
      rows: of every array [B, T] of a batch.
      whole: of what every device has all of.
    """

    mesh: Mesh
    state: State
    rows: NamedSharding
    whole: NamedSharding

    @property
    def params(self) -> Params:
        """A `NamedSharding` for every parameter."""
        return self.state.params

    @functools.cached_property
    def _own_parts(self) -> tuple[int, ...]:
        return _parts_of(_devices_by_part(self.mesh), jax.process_index())

    def put(self, rows: Mapping[str, np.ndarray]) -> Batch:
        """Lays this process's rows of a batch onto its devices.

        Args:
          rows: arrays [b, T] of the rows of `rows_of_process`, in that order.
        """
        own, of = self._own_parts, parts("batch", self.mesh)

        def lay(x_bT: np.ndarray) -> jax.Array:
            size = len(x_bT) // len(own)  # rows of a part
            place_of = {part * size: place * size for place, part in enumerate(own)}
            return self._lay(x_bT, rows=of * size, place=place_of.__getitem__)

        return {name: lay(x_bT) for name, x_bT in rows.items()}

    def put_whole(self, rows: Mapping[str, np.ndarray]) -> Batch:
        """Lays a batch, of which this process has all, onto the devices."""
        return {
            name: self._lay(x_BT, rows=len(x_BT), place=lambda row: row)
            for name, x_BT in rows.items()
        }

    def _lay(self, x_bT: np.ndarray, *, rows: int, place: Callable[[int], int]) -> jax.Array:
        """An array of so many rows, of which x_bT has the parts of this process.

        `place` gives where in x_bT a part is, by the number of its first row.
        """

        def part(index: tuple[slice, ...] | None) -> np.ndarray:
            over_rows, over_row = index or (slice(None), slice(None))
            begin, end, _ = over_rows.indices(rows)
            first = place(begin)
            own: np.ndarray = x_bT[first : first + end - begin, over_row]
            return own

        return jax.make_array_from_callback((rows, *x_bT.shape[1:]), self.rows, part)


def rows_of_process(mesh: Mesh, process_index: int, rows: int) -> tuple[int, ...]:
    """The rows of a batch that a process provides: those that its devices compute with.

    A batch is cut into as many equal parts as the mesh's axes for rows have places. The parts of a
    process need not follow one another: meshes go along the links of a torus, and hosts are blocks
    of it. Processes that differ only in `seq` or `tensor` provide the same rows.

    Args:
      mesh: the devices of all processes.
      process_index: of which process.
      rows: of the whole batch.

    Returns:
      Numbers in range(rows), ascending; none where the mesh has no device of the process.

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
    """The devices [P, D] that compute with each of the P parts of a batch."""
    names = list(mesh.axis_names)
    batch_axes = [names.index(name) for name in RULES["batch"] if name in names]
    others = [axis for axis in range(len(names)) if axis not in batch_axes]
    groups = mesh.devices.transpose(*batch_axes, *others)
    return groups.reshape(math.prod(groups.shape[: len(batch_axes)]), -1)


def _parts_of(groups: np.typing.NDArray[Any], process_index: int) -> tuple[int, ...]:
    """The parts that the devices of a process compute with, ascending."""
    processes = np.array([device.process_index for device in groups.flat]).reshape(groups.shape)
    having = np.flatnonzero((processes == process_index).any(axis=1))
    return tuple(having.tolist())


def place(program: Program, mesh: Mesh) -> Placement:
    """Where the arrays of a program lie on a mesh.

    Raises:
      LayoutError: the mesh does not divide one of them; the message names it.
    """
    check_rows(program.train, mesh)
    whole = NamedSharding(mesh, PartitionSpec())
    with refused_for("mesh"):
        params = place_parameters(program.model, mesh)
    # moments lie where their parameters do, counters everywhere
    opt_state = optax.tree.map_params(
        make_optimizer(program.train),
        lambda _, placed: placed,
        abstract_state(program).opt_state,
        params,
        transform_non_params=lambda _: whole,
    )
    state = State(params, opt_state, whole, whole)  # type: ignore[arg-type]
    rows = NamedSharding(mesh, spec(("batch", "length"), mesh))
    return Placement(mesh, state, rows, whole)


@functools.lru_cache(maxsize=2)
def abstract_state(program: Program) -> State:
    """The shapes and dtypes of a program's state."""
    state: State = jax.eval_shape(program.init, jax.random.key(0))
    return state


def place_parameters(model: ModelConfig, mesh: Mesh | AbstractMesh) -> Params:
    """A `NamedSharding` for every parameter.

    Raises:
      ValueError: the mesh does not divide one of them; the message names it.
    """
    placed: Params = nnx.traversals.unflatten_mapping(
        {
            path: sharding(mesh, axes, shape, "the parameter " + ".".join(path))
            for path, (shape, axes) in parameter_layout(model).items()
        }
    )
    return placed


def attention_of(program: Program, mesh: Mesh) -> str:
    """Which implementation of attention the step takes on a mesh.

    Raises:
      LayoutError: the one that the model asks for cannot compute it there.
    """
    model, train = program.model, program.train
    rows = train.batch_size // train.accumulation
    with refused_for("model"), jax.set_mesh(mesh):
        return attention_name(
            model, rows, train.length, segmented=program.segmented, dropout=model.dropout > 0
        )


def check_rows(train: TrainConfig, mesh: Mesh | AbstractMesh) -> None:
    """Raises LayoutError where a mesh cannot split the rows of a training."""
    rows, shares = train.batch_size // train.accumulation, parts("batch", mesh)
    if rows % shares:
        whole, rest = divmod(train.batch_size, shares)
        mend = "" if rest else f", such as by accumulation={math.gcd(train.accumulation, whole)}"
        raise LayoutError(
            "train.batch_size",
            f"in accumulation={train.accumulation} parts is {rows} rows at a time, which "
            f"data={mesh.shape['data']} x fsdp={mesh.shape['fsdp']} of the mesh does not divide; "
            f"let batch_size / accumulation be a multiple of {shares}{mend}",
            train.batch_size,
        )
    check_length(train.length, mesh, "train.length")


def check_length(length: int, mesh: Mesh | AbstractMesh, key: str) -> None:
    """Raises LayoutError where a mesh cannot split rows of so many tokens, which the key gives."""
    pieces = 2 * mesh.shape["seq"]
    if pieces > 2 and length % pieces:
        raise LayoutError(
            key,
            f"is not a multiple of {pieces}: over seq={mesh.shape['seq']} of the mesh, rows are "
            "split into two pieces for each part",
            length,
        )


def lower(program: Program, placement: Placement) -> jax.stages.Lowered:
    """The step as a program for the mesh's devices, from shapes alone; compile it to run it.

    The state, its first argument, is donated. The others are a batch and the run's key.
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


def initialize(program: Program, placement: Placement, key: jax.Array) -> State:
    """`Program.init`, each part of the state made on the device that keeps it."""
    with jax.set_mesh(placement.mesh):
        state: State = jax.jit(program.init, out_shardings=placement.state)(key)
    return state


def begin(program: Program, placement: Placement, params: Params) -> State:
    """`Program.begin` with parameters that lie on the mesh already."""
    with jax.set_mesh(placement.mesh):
        state: State = jax.jit(program.begin, out_shardings=placement.state, donate_argnums=0)(
            params
        )
    return state


def restore_like(program: Program, placement: Placement) -> State:
    """Shapes and places of a state, for a checkpoint of any mesh to be read into."""
    like: State = jax.tree.map(
        lambda leaf, placed: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=placed),
        abstract_state(program),
        placement.state,
    )
    return like
