"""Which device trains what: the trainings of an ablation along the mesh axis `ablation`.

Trainings share nothing, so nothing is communicated along the axis: every device, and with several
processes every process, works on its own. Tasks take turns, which bounds what a device holds.
"""

import dataclasses
from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import AxisType, Mesh

from rrope_jax.model.decoder import attention_name
from rrope_jax.posgen.grid import Training
from rrope_jax.posgen.training import Program
from rrope_jax.sharding import refused_for

AXIS = "ablation"


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshConfig:
    """The fields of `config.mesh`.

    Attributes:
      ablation: devices that share the trainings; -1 for all there are.

    Raises:
      ValueError: it is neither.
    """

    ablation: int = -1

    def __post_init__(self) -> None:
        if self.ablation < 1 and self.ablation != -1:
            raise ValueError(
                f"ablation={self.ablation} must be at least 1, or -1 for all devices there are"
            )


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh with the one axis `ablation`.

    Args:
      config: its size.
      devices: those of this run, of all its processes (the default), or of a topology that
        programs are only compiled for. Where fewer are wanted, the first ones are taken.

    Raises:
      ValueError: there are not so many devices.
    """
    devices = jax.devices() if devices is None else devices
    size = len(devices) if config.ablation == -1 else config.ablation
    if size > len(devices):
        raise ValueError(
            f"ablation={size}, but there are {len(devices)} devices; -1 takes all there are"
        )
    return Mesh(np.array(devices[:size]), (AXIS,), axis_types=(AxisType.Auto,))


def lay_out(
    program: Program, mesh: MeshConfig, devices: Sequence[jax.Device] | None = None
) -> Mesh:
    """The mesh of an ablation; `rrope posgen` and `rrope plan` refuse what this refuses.

    Args:
      program: the setting.
      mesh, devices: as for `make_mesh`.

    Raises:
      LayoutError: there are not so many devices, or the attention that the model asks for cannot be
        computed there.
    """
    with refused_for("mesh"):
        made = make_mesh(mesh, devices)
    attentions_of(program, made)
    return made


def attentions_of(program: Program, mesh: Mesh) -> tuple[str, str]:
    """Which implementations of attention training and test take on the devices of a mesh.

    Raises:
      LayoutError: the one that the model asks for cannot compute it there.
    """
    model, task, train = program.model, program.task, program.train
    with refused_for("model"), jax.set_mesh(mesh):
        return (
            attention_name(
                model,
                train.batch_size,
                task.train_length,
                segmented=False,
                dropout=model.dropout > 0,
            ),
            attention_name(
                model, train.eval_batch_size, task.test_length, segmented=False, dropout=False
            ),
        )


Round = tuple[Training | None, ...]
"""Trainings of one task that run as one program, in slots.

The slots of a device follow one another, and every device has as many; None is in those that no
training is left for.
"""


def rounds(trainings: Sequence[Training], *, devices: int, lanes: int) -> tuple[Round, ...]:
    """Splits trainings into rounds, in the order of their first ones.

    Args:
      trainings: all trainings of the ablation.
      devices: devices along the axis.
      lanes: most trainings of a device at a time; 0 for its share of a task.
    """
    by_task: dict[str, list[Training]] = {}
    for training in trainings:
        by_task.setdefault(training.task, []).append(training)
    made: list[Round] = []
    for members in by_task.values():
        share = -(-len(members) // devices)
        slots = devices * min(lanes or share, share)
        idle = (None,) * (-len(members) % slots)
        filled = (*members, *idle)
        made += [filled[first : first + slots] for first in range(0, len(filled), slots)]
    place = {training: place for place, training in enumerate(trainings)}
    return tuple(sorted(made, key=lambda slots: place[trainings_in(slots)[0]]))


def trainings_in(slots: Round) -> tuple[Training, ...]:
    """The slots that are not idle."""
    return tuple(training for training in slots if training is not None)


def mesh_here(mesh: Mesh) -> Mesh:
    """The devices of this process, which need not be neighbours along the axis."""
    return make_mesh(MeshConfig(), [mesh.devices.flat[place] for place in _places_here(mesh)])


def slots_here(slots: Round, mesh: Mesh) -> Round:
    """Those of the devices of this process."""
    lanes = len(slots) // mesh.size
    return tuple(
        slots[place * lanes + lane] for place in _places_here(mesh) for lane in range(lanes)
    )


def _places_here(mesh: Mesh) -> list[int]:
    here = jax.process_index()
    return [i for i, device in enumerate(mesh.devices.flat) if device.process_index == here]
