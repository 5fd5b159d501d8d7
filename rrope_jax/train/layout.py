"""Checks that a training run fits its devices, present or absent, before anything is compiled."""

from collections.abc import Sequence

import jax

from rrope_jax.sharding import MeshConfig, make_mesh, refused_for
from rrope_jax.train import heldout
from rrope_jax.train.heldout import HeldoutConfig
from rrope_jax.train.sharded import Placement, attention_of, make_placement
from rrope_jax.train.step import Program


def lay_out(
    program: Program,
    mesh: MeshConfig,
    evaluation: HeldoutConfig,
    devices: Sequence[jax.Device] | None = None,
) -> Placement:
    """Lays out a training run on a mesh, with the checks of `rrope train` and `rrope plan`.

    Args:
      program: the training run.
      mesh: sizes of the mesh.
      evaluation: settings of the held-out loss.
      devices: as for `make_mesh`.

    Raises:
      LayoutError: the sizes do not fit the devices, the mesh does not divide an array, or the
        configured attention cannot run on these devices.
    """
    with refused_for("mesh"):
        device_mesh = make_mesh(mesh, devices)
    placement = make_placement(program, device_mesh)
    attention_of(program, device_mesh)
    if evaluation.every_steps is not None:
        heldout.check(program, device_mesh, evaluation)
    return placement
