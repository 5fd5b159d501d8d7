"""The mesh that a command lays a pretrained model over."""

from collections.abc import Sequence
from typing import NamedTuple

from rrope_jax.cli.errors import refusing_layouts
from rrope_jax.cli.settings import Fields, build
from rrope_jax.evaluation.devices import check_lengths
from rrope_jax.io.pretrained import Description
from rrope_jax.run.distributed import Peers
from rrope_jax.sharding import MeshConfig, make_mesh, refused_for
from rrope_jax.train.sharded import parameter_shardings
from rrope_jax.train.step import Params


class ModelLayout(NamedTuple):
    """How a model lies over a mesh.

    Attributes:
      params: A `NamedSharding` for every parameter.
      shares: Number of devices among which the parameters are divided.
    """

    params: Params
    shares: int


def mesh_config(fields: Fields, peers: Peers) -> MeshConfig | None:
    """Returns the sizes of the mesh of a group `config.mesh`.

    Args:
      fields: The fields that are set.
      peers: The processes of the job. Several of them always form a mesh.

    Returns:
      The sizes; None for one device.
    """
    return build(MeshConfig, fields, "config.mesh") if fields or peers.count > 1 else None


def lay_out(
    description: Description, config: MeshConfig, row_lengths: Sequence[int]
) -> ModelLayout | None:
    """Lays a model over a mesh of all devices, before any weight is read.

    Args:
      description: The model.
      config: Sizes of the mesh.
      row_lengths: Lengths of rows that will go through the model as a whole.

    Returns:
      The layout; None if there is only one device.

    Raises:
      UsageError: The sizes do not fit the devices, or the mesh does not divide the model.
    """
    with refusing_layouts():
        with refused_for("mesh"):
            mesh = make_mesh(config)
            params = parameter_shardings(description.model, mesh)
        check_lengths(description.model, description.rope, mesh, row_lengths)
    if mesh.size == 1:
        return None
    return ModelLayout(params, mesh.size // mesh.shape["data"])
