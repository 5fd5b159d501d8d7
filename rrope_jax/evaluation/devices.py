"""Where an evaluation computes: on one device, or over the mesh of the model's parameters."""

import contextlib
import dataclasses
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding

from rrope_jax.model import Decoder, ModelConfig
from rrope_jax.model.decoder import attention_names
from rrope_jax.model.far_layers import far_positions_by_type
from rrope_jax.rope import RopeSpec
from rrope_jax.sharding import AXES, parts, refused_for


@dataclasses.dataclass(frozen=True)
class Devices:
    """The devices of a model.

    Attributes:
      mesh: the mesh over which the model's parameters are sharded; None for a single device.
    """

    mesh: Mesh | None

    @classmethod
    def of(cls, decoder: Decoder) -> "Devices":
        """Finds the devices of a decoder's parameters."""
        for leaf in jax.tree.leaves(nnx.state(decoder, nnx.Param)):
            sharding = leaf.sharding
            if isinstance(sharding, NamedSharding) and sharding.mesh.size > 1:
                assert isinstance(sharding.mesh, Mesh)
                return cls(sharding.mesh)
        return cls(None)

    def current(self) -> AbstractContextManager[Any]:
        """Makes the mesh the current one, on which `sharding.constrain` acts."""
        if self.mesh is None:
            return contextlib.nullcontext()
        context: AbstractContextManager[Any] = jax.set_mesh(self.mesh)
        return context

    def rows(self, count: int) -> int:
        """Rounds a number of rows up to one that the mesh divides."""
        shares = 1 if self.mesh is None else parts("batch", self.mesh)
        return count + -count % shares

    def length(self, count: int) -> int:
        """Rounds the tokens of a row up to a number that the mesh divides into pieces."""
        row_parts = 1 if self.mesh is None else parts("length", self.mesh)
        return count if row_parts == 1 else count + -count % (2 * row_parts)

    def without_seq(self, state: Any) -> tuple["Devices", Any]:
        """Counts `seq` as `fsdp`, for rows that are not split.

        The axes are neighbors and split the same axis of parameters, which therefore stay where
        they are.

        Args:
          state: a pytree of arrays on the mesh.

        Returns:
          The devices in the new mesh, and the same arrays on it.
        """
        if self.mesh is None or self.mesh.shape["seq"] == 1:
            return self, state
        data, fsdp, seq, tensor = (self.mesh.shape[name] for name in AXES)
        grid = self.mesh.devices.reshape(data, fsdp * seq, 1, tensor)
        mesh = Mesh(grid, AXES, axis_types=self.mesh.axis_types)

        def move(x: jax.Array) -> jax.Array:
            assert isinstance(x.sharding, NamedSharding)
            shards = [shard.data for shard in x.addressable_shards]
            sharding = NamedSharding(mesh, x.sharding.spec)
            moved: jax.Array = jax.make_array_from_single_device_arrays(x.shape, sharding, shards)
            return moved

        return Devices(mesh), jax.tree.map(move, state)


def every_nth(x: jax.Array, n: int) -> np.ndarray:
    """Every n-th element of an array in row-major order, in all processes that share the array.

    No device gets more of a sharded array than it has. All processes must call this.

    Args:
      x: an array on one device or on the devices of several processes.
      n: the step.
    """
    if len(x.sharding.device_set) == 1:
        return np.asarray(x.reshape(-1)[::n])
    index = np.unravel_index(np.arange(0, x.size, n), x.shape)
    values = np.zeros(index[0].shape, x.dtype)
    for shard in x.addressable_shards:
        if shard.replica_id != 0:
            continue
        bounds = [cut.indices(size)[:2] for cut, size in zip(shard.index, x.shape, strict=True)]
        pairs = list(zip(index, bounds, strict=True))
        inside = np.all([(start <= at) & (at < stop) for at, (start, stop) in pairs], axis=0)
        local = tuple(at[inside] - start for at, (start, _) in pairs)
        values[inside] = np.asarray(shard.data[local])
    # each element is in one process; elsewhere its bytes are 0
    of_all = multihost_utils.process_allgather(values.view(np.uint8))
    total: np.ndarray = of_all.reshape(-1, values.nbytes).sum(axis=0, dtype=np.uint8)
    return total.view(values.dtype)


def check_lengths(model: ModelConfig, rope: RopeSpec, mesh: Mesh, lengths: Sequence[int]) -> None:
    """Checks that attention can be computed on a mesh for whole rows of some lengths.

    Raises:
      LayoutError: the model's implementation cannot run there, or the rows cannot be split.
    """
    devices = Devices(mesh)
    with refused_for("model"), jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        for length in lengths:
            attention_names(
                model,
                devices.rows(1),
                devices.length(length),
                segmented=False,
                dropout=False,
                far=far_positions_by_type(model, rope, length).keys(),
            )
