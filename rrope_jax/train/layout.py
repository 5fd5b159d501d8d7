"""Checks of a training's devices before anything is compiled, here or for another machine."""

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
    """Lays a training onto a mesh; `rrope train` and `rrope plan` refuse what this refuses.

    Args:
      program: the training.
      mesh: sizes of the mesh.
      evaluation: of the held-out loss.
      devices: as for `make_mesh`.

    Raises:
      LayoutError: the sizes do not fit the devices, the mesh does not divide an array, or the
        attention that the model asks for cannot be computed there.
    """
    with refused_for("mesh"):
        device_mesh = make_mesh(mesh, devices)
    placement = make_placement(program, device_mesh)
    attention_of(program, device_mesh)
    if evaluation.every_steps is not None:
        heldout.check(program, device_mesh, evaluation)
    return placement
