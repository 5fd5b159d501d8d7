"""A training step over a mesh: where every array lies, and the program itself.

`rrope train` runs what `lower` gives, and `rrope plan` compiles the same for machines that are not
there. The step is `Program.step`, unchanged: what it says about the axes of its arrays becomes
transfers between devices here.
"""

import dataclasses
import functools
import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from rrope_jax.model import ModelConfig
from rrope_jax.model.decoder import attention_name, parameter_layout
from rrope_jax.sharding import RULES, parts, sharding, spec
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

    def share_of_rows(self, process_index: int) -> tuple[int, int]:
        """Which of how many equal, consecutive shares of a batch's rows a process has to provide.

        Processes that differ only in what they have of each row provide the same rows.

        Raises:
          ValueError: the mesh gives the process rows that are not consecutive.
        """
        batch_axes = [self.mesh.axis_names.index(name) for name in RULES["batch"]]
        others = [i for i in range(self.mesh.devices.ndim) if i not in batch_axes]
        groups = self.mesh.devices.transpose(*batch_axes, *others)
        groups = groups.reshape(math.prod(groups.shape[: len(batch_axes)]), -1)
        own = [
            i
            for i, group in enumerate(groups)
            if any(device.process_index == process_index for device in group)
        ]
        index, rest = divmod(own[0], len(own))
        if own != list(range(own[0], own[0] + len(own))) or rest or len(groups) % len(own):
            raise ValueError(
                f"process {process_index} has the parts {own} of {len(groups)} of a batch; meshes "
                "whose processes have equal shares of consecutive rows are supported: let data x "
                "fsdp be a multiple of the number of processes, or the other way round"
            )
        return index, len(groups) // len(own)

    @functools.cached_property
    def own_share(self) -> tuple[int, int]:
        """That of this process, which every step asks for."""
        return self.share_of_rows(jax.process_index())

    def put(self, rows: Mapping[str, np.ndarray]) -> Batch:
        """Lays this process's share of a batch onto its devices."""
        index, shares = self.own_share
        return {
            name: self._lay(x_bT, first=index * len(x_bT), rows=shares * len(x_bT))
            for name, x_bT in rows.items()
        }

    def put_whole(self, rows: Mapping[str, np.ndarray]) -> Batch:
        """Lays a batch, of which this process has all, onto the devices."""
        return {name: self._lay(x_BT, first=0, rows=len(x_BT)) for name, x_BT in rows.items()}

    def _lay(self, x_bT: np.ndarray, *, first: int, rows: int) -> jax.Array:
        """An array of so many rows, of which x_bT has those from `first` on."""

        def part(place: tuple[slice, ...] | None) -> np.ndarray:
            over_rows, over_row = place or (slice(None), slice(None))
            begin, end, _ = over_rows.indices(rows)
            own: np.ndarray = x_bT[begin - first : end - first, over_row]
            return own

        return jax.make_array_from_callback((rows, *x_bT.shape[1:]), self.rows, part)


def place(program: Program, mesh: Mesh) -> Placement:
    """Where the arrays of a program lie on a mesh.

    Raises:
      ValueError: the mesh does not divide one of them; the message names it.
    """
    check_rows(program.train, mesh)
    whole = NamedSharding(mesh, PartitionSpec())
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
            path: sharding(mesh, axes, shape, "config.model: the parameter " + ".".join(path))
            for path, (shape, axes) in parameter_layout(model).items()
        }
    )
    return placed


def attention_of(program: Program, mesh: Mesh) -> str:
    """Which implementation of attention the step takes on a mesh.

    Raises:
      ValueError: the one that the model asks for cannot compute it there.
    """
    model, train = program.model, program.train
    rows = train.batch_size // train.accumulation
    with jax.set_mesh(mesh):
        return attention_name(
            model, rows, train.length, segmented=program.segmented, dropout=model.dropout > 0
        )


def check_rows(train: TrainConfig, mesh: Mesh | AbstractMesh) -> None:
    """Raises ValueError where a mesh cannot split the rows of a training."""
    rows, shares = train.batch_size // train.accumulation, parts("batch", mesh)
    if rows % shares:
        raise ValueError(
            f"config.train.batch_size={train.batch_size} in accumulation={train.accumulation} "
            f"parts is {rows} rows at a time, which data={mesh.shape['data']} x fsdp="
            f"{mesh.shape['fsdp']} of the mesh does not divide; choose a multiple of {shares}"
        )
    check_length(train.length, mesh, "config.train.length")


def check_length(length: int, mesh: Mesh | AbstractMesh, name: str) -> None:
    """Raises ValueError where a mesh cannot split rows of so many tokens."""
    pieces = 2 * mesh.shape["seq"]
    if pieces > 2 and length % pieces:
        raise ValueError(
            f"{name}={length} is not a multiple of {pieces}: over seq={mesh.shape['seq']}, rows "
            "are split into two pieces for each part"
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
