"""Assigns the trainings of an ablation to devices, along the mesh axis `ablation`.

Trainings are independent, so there is no communication along the axis, neither between devices nor
between processes. Two terms describe the assignment:

- A *lane* is a slot on a device that runs one training at a time. A device with several lanes runs
  their trainings side by side in a single program.
- A *round* is a set of trainings that run at the same time, one per lane, all of the same task.

Having only one task per round limits the data that a device holds.
"""

import dataclasses
from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import AxisType, Mesh

from rrope_jax.model.decoder import attention_names
from rrope_jax.posgen.grid import Training
from rrope_jax.posgen.training import PosgenProgram
from rrope_jax.sharding import refused_for

AXIS = "ablation"


@dataclasses.dataclass(frozen=True, kw_only=True)
class AblationMeshConfig:
    """The fields of `config.mesh`.

    Attributes:
      ablation: Number of devices that share the trainings; -1 for all devices.

    Raises:
      ValueError: `ablation` is neither positive nor -1.
    """

    ablation: int = -1

    def __post_init__(self) -> None:
        if self.ablation < 1 and self.ablation != -1:
            raise ValueError(
                f"ablation={self.ablation} must be at least 1, or -1 for all devices there are"
            )


def make_mesh(config: AblationMeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Makes a mesh whose only axis is `ablation`.

    Args:
      config: The size of the mesh.
      devices: Devices of a topology to compile for; defaults to those of all processes of this run.
        A smaller mesh takes the first ones.

    Raises:
      ValueError: There are fewer devices than the config asks for.
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
    """Makes the mesh of an ablation and checks it, for both `rrope posgen` and `rrope plan`.

    Args:
      program: The setting.
      config, devices: As for `make_mesh`.

    Raises:
      LayoutError: There are too few devices, or they do not support the model's attention
        implementation.
    """
    with refused_for("mesh"):
        mesh = make_mesh(config, devices)
    attentions_of(program, mesh)
    return mesh


def attentions_of(program: PosgenProgram, mesh: Mesh) -> tuple[str, ...]:
    """Returns the attention implementations in training and in test on the devices of a mesh.

    Raises:
      LayoutError: The devices do not support the model's attention implementation.
    """
    model, task, train = program.model, program.task, program.train
    far = model.layer_types if program.far_pairs else ()
    with refused_for("model"), jax.set_mesh(mesh):
        training = attention_names(
            model,
            train.batch_size,
            task.train_length,
            segmented=False,
            dropout=model.dropout > 0,
            far=far,
        )
        test = attention_names(
            model, train.eval_batch_size, task.test_length, segmented=False, dropout=False, far=far
        )
    return (*training.values(), *test.values())


@dataclasses.dataclass(frozen=True)
class Round:
    """Trainings of a task that run at the same time, in a single program.

    Either all of them learn their frequencies or none, as these are different programs.

    Attributes:
      lanes: The training in each lane; None for an idle lane. Lanes are ordered by device, and all
        devices have the same number.
    """

    lanes: tuple[Training | None, ...]

    @property
    def trainings(self) -> tuple[Training, ...]:
        """The trainings, without idle lanes."""
        return tuple(training for training in self.lanes if training is not None)

    @property
    def learned(self) -> bool:
        """Whether the trainings learn their frequencies."""
        return self.trainings[0].learned

    @property
    def evaluations(self) -> int:
        """The maximum number of evaluations per training."""
        return max(len(training.evaluations) for training in self.trainings)

    def here(self, mesh: Mesh) -> "Round":
        """Returns the part of the round on the devices of this process."""
        per_device = len(self.lanes) // mesh.size
        return Round(
            tuple(
                self.lanes[index * per_device + lane]
                for index in _indices_here(mesh)
                for lane in range(per_device)
            )
        )


def rounds(trainings: Sequence[Training], *, devices: int, lanes: int) -> tuple[Round, ...]:
    """Splits trainings into rounds, ordered by their first training.

    Args:
      trainings: All trainings of the ablation.
      devices: Number of devices along the axis.
      lanes: Maximum number of lanes per device; 0 for as many as its share of a task.
    """
    alike: dict[tuple[str, bool], list[Training]] = {}
    for training in trainings:
        alike.setdefault((training.task, training.learned), []).append(training)
    all_rounds: list[Round] = []
    for group in alike.values():
        share = -(-len(group) // devices)
        size = devices * min(lanes or share, share)
        idle = (None,) * (-len(group) % size)
        filled = (*group, *idle)
        all_rounds += [Round(filled[i : i + size]) for i in range(0, len(filled), size)]
    order = {training: index for index, training in enumerate(trainings)}
    return tuple(sorted(all_rounds, key=lambda each: order[each.trainings[0]]))


def default_lanes(mesh: Mesh) -> int:
    """Returns the default `lanes` for `rounds`: 1 on CPUs, 0 (no limit) on accelerators."""
    return 1 if mesh.devices.flat[0].platform == "cpu" else 0


def mesh_here(mesh: Mesh) -> Mesh:
    """Makes a mesh of this process's devices, which may not be adjacent along the axis."""
    devices = [mesh.devices.flat[index] for index in _indices_here(mesh)]
    return make_mesh(AblationMeshConfig(), devices)


def _indices_here(mesh: Mesh) -> list[int]:
    process = jax.process_index()
    return [i for i, device in enumerate(mesh.devices.flat) if device.process_index == process]
