"""Which device trains what: the trainings of an ablation along the mesh axis `ablation`.

Trainings share nothing, so nothing is communicated along the axis: every device, and with several
processes every process, works on its own. Two words describe the packing:

- A *lane* is a place on a device in which one training runs at a time. A device with several lanes
  runs their trainings side by side, as one program.
- A *round* is what all lanes of all devices run at once: trainings of one task, one in each lane.

Tasks take turns, which bounds what a device holds.
"""

import dataclasses
from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import AxisType, Mesh

from rrope_jax.model.decoder import attention_name
from rrope_jax.posgen.grid import Training
from rrope_jax.posgen.training import PosgenProgram
from rrope_jax.sharding import refused_for

AXIS = "ablation"


@dataclasses.dataclass(frozen=True, kw_only=True)
class AblationMeshConfig:
    """The fields of `config.mesh`.

    Attributes:
      ablation: devices that share the trainings; -1 for all devices.

    Raises:
      ValueError: it is neither.
    """

    ablation: int = -1

    def __post_init__(self) -> None:
        if self.ablation < 1 and self.ablation != -1:
            raise ValueError(
                f"ablation={self.ablation} must be at least 1, or -1 for all devices there are"
            )


def make_mesh(config: AblationMeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh with the one axis `ablation`.

    Args:
      config: its size.
      devices: those of this run, of all its processes (the default), or of a topology that
        programs are only compiled for. A smaller mesh takes the first ones.

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
    program: PosgenProgram, config: AblationMeshConfig, devices: Sequence[jax.Device] | None = None
) -> Mesh:
    """The mesh of an ablation; `rrope posgen` and `rrope plan` refuse what this refuses.

    Args:
      program: the setting.
      config, devices: as for `make_mesh`.

    Raises:
      LayoutError: there are not so many devices, or they cannot compute the attention that the
        model asks for.
    """
    with refused_for("mesh"):
        mesh = make_mesh(config, devices)
    attentions_of(program, mesh)
    return mesh


def attentions_of(program: PosgenProgram, mesh: Mesh) -> tuple[str, str]:
    """The implementations of attention in training and in test on the devices of a mesh.

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


@dataclasses.dataclass(frozen=True)
class Round:
    """Trainings of one task that run at once, as one program.

    Attributes:
      lanes: the training in each lane, None where the lane is idle. The lanes of a device follow
        one another, and every device has equally many.
    """

    lanes: tuple[Training | None, ...]

    @property
    def trainings(self) -> tuple[Training, ...]:
        """Those of the lanes that are not idle."""
        return tuple(training for training in self.lanes if training is not None)

    @property
    def evaluations(self) -> int:
        """The largest number of evaluations of a training."""
        return max(len(training.evaluations) for training in self.trainings)

    def here(self, mesh: Mesh) -> "Round":
        """The lanes on the devices of this process."""
        per_device = len(self.lanes) // mesh.size
        return Round(
            tuple(
                self.lanes[index * per_device + lane]
                for index in _indices_here(mesh)
                for lane in range(per_device)
            )
        )


def rounds(trainings: Sequence[Training], *, devices: int, lanes: int) -> tuple[Round, ...]:
    """Splits trainings into rounds, in the order of their first ones.

    Args:
      trainings: all trainings of the ablation.
      devices: devices along the axis.
      lanes: the most lanes of a device; 0 for as many as its share of a task.
    """
    by_task: dict[str, list[Training]] = {}
    for training in trainings:
        by_task.setdefault(training.task, []).append(training)
    all_rounds: list[Round] = []
    for of_task in by_task.values():
        share = -(-len(of_task) // devices)
        size = devices * min(lanes or share, share)
        idle = (None,) * (-len(of_task) % size)
        filled = (*of_task, *idle)
        all_rounds += [Round(filled[i : i + size]) for i in range(0, len(filled), size)]
    order = {training: index for index, training in enumerate(trainings)}
    return tuple(sorted(all_rounds, key=lambda each: order[each.trainings[0]]))


def default_lanes(mesh: Mesh) -> int:
    """`lanes` for `rounds`: one on CPUs, a device's share of a task on accelerators."""
    return 1 if mesh.devices.flat[0].platform == "cpu" else 0


def mesh_here(mesh: Mesh) -> Mesh:
    """The devices of this process, which need not be neighbors along the axis."""
    devices = [mesh.devices.flat[index] for index in _indices_here(mesh)]
    return make_mesh(AblationMeshConfig(), devices)


def _indices_here(mesh: Mesh) -> list[int]:
    process = jax.process_index()
    return [i for i, device in enumerate(mesh.devices.flat) if device.process_index == process]
