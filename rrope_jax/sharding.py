"""The device mesh, and how arrays are sharded over it.

The mesh has four axes. Any of them may have size 1, so a single device is simply a 1x1x1x1 mesh:

- `data`: splits the batch between full copies of the model; outermost, for slow networks;
- `fsdp`: splits the batch, parameters, gradients and moments (ZeRO-3, arXiv 1910.02054);
- `seq`: splits sequences (context parallelism), and parameters like `fsdp`;
- `tensor`: splits heads, hidden features and the vocabulary (arXiv 1909.08053); innermost, for the
  fastest links.

Models give the axes of their arrays logical names; `RULES` maps these names to mesh axes.
"""

import dataclasses
import math
import types
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

AXES = ("data", "fsdp", "seq", "tensor")

RULES: Mapping[str, tuple[str, ...]] = types.MappingProxyType(
    {
        "batch": ("data", "fsdp"),
        "length": ("seq",),
        "heads": ("tensor",),
        "kv_heads": ("tensor",),
        "d_ff": ("tensor",),
        "vocab_size": ("tensor",),
        "d_model": ("fsdp", "seq"),  # parameters only; activations are not split along it
    }
)
"""Logical axis -> mesh axes that split it. Axes not listed are never split."""

LogicalAxes = tuple[str | None, ...]


class LayoutError(ValueError):
    """Arrays cannot be laid out over the devices as requested.

    Attributes:
      key: The field at fault, such as `train.batch_size`, or its group, such as `mesh`.
    """

    def __init__(self, key: str, reason: str, value: object = None):
        """Takes the field's value too, unless `key` is a group or the reason names the field."""
        self.key = key
        self._reason = reason if value is None else f"={value} {reason}"
        super().__init__(reason if value is None else key.rpartition(".")[2] + self._reason)

    def under(self, root: str) -> str:
        """Returns the message with the field's full name: `config.train.batch_size=3 ...`."""
        separator = "" if self._reason.startswith("=") else ": "
        return f"{root}.{self.key}{separator}{self._reason}"


@contextmanager
def refused_for(key: str) -> Iterator[None]:
    """Turns a ValueError into a LayoutError for this key; lets a LayoutError through unchanged."""
    try:
        yield
    except LayoutError:
        raise
    except ValueError as error:
        raise LayoutError(key, str(error)) from error


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshConfig:
    """The sizes of a mesh.

    Attributes:
      data, fsdp, seq, tensor: Devices along each axis; one of them may be -1 to take the rest.
      num_slices: TPU slices, or other groups of devices with fast links. They are arranged along
        `data` if `num_slices` divides its size, otherwise along `fsdp`.

    Raises:
      ValueError: A field is out of range, or more than one axis is -1.
    """

    data: int = 1
    fsdp: int = -1
    seq: int = 1
    tensor: int = 1
    num_slices: int = 1

    def __post_init__(self) -> None:
        for name in AXES:
            if getattr(self, name) < 1 and getattr(self, name) != -1:
                raise ValueError(
                    f"{name}={getattr(self, name)} must be at least 1, or -1 for what is left"
                )
        if self.num_slices < 1:
            raise ValueError(f"num_slices={self.num_slices} must be at least 1")
        open_axes = [name for name in AXES if getattr(self, name) == -1]
        if len(open_axes) > 1:
            raise ValueError(
                f"{' and '.join(open_axes)} are -1; only one axis can take what the others leave"
            )

    def sizes(self, devices: int) -> tuple[int, ...]:
        """Returns the number of devices along each of `AXES`.

        Raises:
          ValueError: The product of the sizes is not the number of devices.
        """
        sizes = {name: getattr(self, name) for name in AXES}
        product = math.prod(size for size in sizes.values() if size != -1)
        shown = ", ".join(f"{name}={size}" for name, size in sizes.items())
        if devices % product or (product != devices and -1 not in sizes.values()):
            raise ValueError(
                f"{shown} does not make a mesh of {devices} devices: the product of the sizes must "
                f"be {devices}; one of them may be -1"
            )
        return tuple(devices // product if size == -1 else size for size in sizes.values())


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Makes a mesh whose neighbors are connected by fast links, if the platform reports its links.

    Args:
      config: The sizes.
      devices: Devices of a topology to compile for; defaults to those of all processes of this run.

    Raises:
      ValueError: The sizes do not fit the devices.
    """
    devices = jax.devices() if devices is None else devices
    grid = _grid(config, config.sizes(len(devices)), devices)
    # Auto axes let the compiler choose the shardings that `constrain` leaves open.
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def _grid(
    config: MeshConfig, sizes: tuple[int, ...], devices: Sequence[jax.Device]
) -> np.typing.NDArray[Any]:
    """Arranges devices in an array of these sizes, with fast links between neighbors."""
    slices = config.num_slices
    between = _between_slices(sizes, slices)
    islands = _islands(devices)
    if len(islands) != slices and getattr(devices[0], "platform", None) == "tpu":
        raise ValueError(
            f"num_slices={slices}, but the devices are in {len(islands)} "
            f"{'slices' if len(islands) > 1 else 'slice'}; it has to be {len(islands)}"
        )
    if len(islands) != slices:  # other platforms number devices group by group
        size = len(devices) // slices
        islands = [devices[first : first + size] for first in range(0, len(devices), size)]
    within = tuple(size // part for size, part in zip(sizes, between, strict=True))
    try:
        grids = [
            mesh_utils.create_device_mesh(within, island, allow_split_physical_axes=True)
            for island in islands
        ]
    except (AssertionError, NotImplementedError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ValueError(f"JAX lays no mesh over these devices: {reason}") from error
    return np.concatenate(grids, axis=between.index(slices))


def _islands(devices: Sequence[jax.Device]) -> list[Sequence[jax.Device]]:
    """Groups devices by slice, ordered by slice index; one group if the platform has no slices."""
    islands: dict[int, list[jax.Device]] = {}
    for device in devices:
        islands.setdefault(getattr(device, "slice_index", None) or 0, []).append(device)
    return [islands[index] for index in sorted(islands)]


def _between_slices(sizes: tuple[int, ...], num_slices: int) -> tuple[int, ...]:
    """Returns how many slices each mesh axis spans."""
    for axis in ("data", "fsdp"):
        if sizes[AXES.index(axis)] % num_slices == 0:
            return tuple(num_slices if name == axis else 1 for name in AXES)
    raise ValueError(
        f"num_slices={num_slices} divides neither data={sizes[0]} nor fsdp={sizes[1]}; slices are "
        "laid along one of them"
    )


def spec(axes: LogicalAxes, mesh: Mesh | AbstractMesh) -> PartitionSpec:
    """Returns the partition of an array with these logical axes, using the axes the mesh has.

    Raises:
      ValueError: Two logical axes are split over the same mesh axis.
    """
    split = [_split_over(axis, mesh) for axis in axes]
    used = [name for names in split for name in names]
    if len(set(used)) < len(used):
        raise ValueError(
            f"the axes {axes} of one array are split over {used}: no axis of a mesh can be used "
            "twice; see sharding.RULES"
        )
    return PartitionSpec(*(names or None for names in split))


def _split_over(axis: str | None, mesh: Mesh | AbstractMesh) -> tuple[str, ...]:
    return tuple(name for name in RULES.get(axis or "", ()) if name in mesh.axis_names)


def sharding(
    mesh: Mesh | AbstractMesh, axes: LogicalAxes, shape: tuple[int, ...], name: str
) -> NamedSharding:
    """Returns the sharding of an array.

    Args:
      mesh: The devices.
      axes: The array's logical axes.
      shape: The array's global shape.
      name: The array's name in messages.

    Raises:
      ValueError: The mesh does not divide an axis evenly.
    """
    for axis, size in zip(axes, shape, strict=True):
        over = {part: mesh.shape[part] for part in _split_over(axis, mesh) if mesh.shape[part] > 1}
        if size % math.prod(over.values()):
            sizes = " x ".join(f"{part}={count}" for part, count in over.items())
            raise ValueError(
                f"{name} has {axis}={size}, which {sizes} of the mesh does not divide; choose "
                "sizes that do"
            )
    return NamedSharding(mesh, spec(axes, mesh))


def on_a_mesh() -> bool:
    """Whether the current mesh has more than one device along any of `AXES`."""
    shape = jax.sharding.get_abstract_mesh().shape
    return any(shape.get(axis, 1) > 1 for axis in AXES)


def constrain(x: jax.Array, axes: LogicalAxes) -> jax.Array:
    """Constrains the sharding of an array on the current mesh; a no-op on a single device."""
    if not on_a_mesh():
        return x
    split = spec(axes, jax.sharding.get_abstract_mesh())
    constrained: jax.Array = jax.lax.with_sharding_constraint(x, split)
    return constrained


def parts(axis: str, mesh: Mesh | AbstractMesh | None = None) -> int:
    """Returns how many parts a mesh splits a logical axis into.

    The default is the current mesh; without one, the result is 1.
    """
    shape = (mesh or jax.sharding.get_abstract_mesh()).shape
    return math.prod(shape.get(name, 1) for name in RULES[axis])
