"""What a training asks of its devices before anything is compiled, here or elsewhere."""

from collections.abc import Sequence

import jax

from rrope_jax.sharding import MeshConfig, make_mesh, refused_for
from rrope_jax.train import heldout
from rrope_jax.train.heldout import HeldoutConfig
from rrope_jax.train.sharded import Placement, attention_of, place
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
      mesh: the sizes.
      evaluation: of the held-out loss.
      devices: as for `make_mesh`.

    Raises:
      LayoutError: the sizes do not fit the devices, the mesh does not divide an array, or the
        attention that the model asks for cannot be computed there.
    """
    with refused_for("mesh"):
        made = make_mesh(mesh, devices)
    placement = place(program, made)
    attention_of(program, made)
    if evaluation.every_steps is not None:
        heldout.check(program, made, evaluation)
    return placement
