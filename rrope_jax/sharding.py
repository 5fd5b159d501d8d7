"""The mesh of devices, and which axes of arrays are split over which of its axes.

It has four axes, any of which may be 1, so that one device is the mesh 1x1x1x1 and no special case:

- `data`: whole copies of the model, each with its own rows; the outermost, for slow networks;
- `fsdp`: rows too, and parameters, gradients and moments in parts (ZeRO-3, arXiv 1910.02054);
- `seq`: parts of every row (context parallelism), and parameters as over `fsdp`;
- `tensor`: heads, hidden features and vocabulary (arXiv 1909.08053); the innermost, for the fastest
  links.

Models name the axes of their arrays by meaning; `RULES` maps these names to axes of the mesh.
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
        "d_model": ("fsdp", "seq"),  # of parameters; activations keep it whole
    }
)
"""Logical axis -> mesh axes that split it. Axes that are not listed are never split."""

LogicalAxes = tuple[str | None, ...]


class LayoutError(ValueError):
    """Arrays cannot be laid out over the devices as requested.

    Attributes:
      key: the field that requests it, such as `train.batch_size`, or its group, such as `mesh`.
    """

    def __init__(self, key: str, reason: str, value: object = None):
        """Takes the field's value, unless `key` is a group or the reason names the field."""
        self.key = key
        self._reason = reason if value is None else f"={value} {reason}"
        super().__init__(reason if value is None else key.rpartition(".")[2] + self._reason)

    def under(self, root: str) -> str:
        """The message with the full name of the field, such as `config.train.batch_size=3 ...`."""
        separator = "" if self._reason.startswith("=") else ": "
        return f"{root}.{self.key}{separator}{self._reason}"


@contextmanager
def refused_for(key: str) -> Iterator[None]:
    """Turns any other ValueError into a LayoutError for this key."""
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
      data, fsdp, seq, tensor: devices along each axis; one of them may be -1, which takes the rest.
      num_slices: TPU slices (or other islands of fast links) that the devices are in. They are
        arranged along `data`, or else along `fsdp`, whose size it must divide.

    Raises:
      ValueError: a field is out of range, or two are -1.
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
        """Devices along each of `AXES`.

        Raises:
          ValueError: their product is not the number of devices.
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
    """A mesh of devices with neighbours along fast links, if the platform tells which these are.

    Args:
      config: the sizes.
      devices: of all processes of this run (the default), or of a topology to compile for.

    Raises:
      ValueError: the sizes do not fit the devices.
    """
    devices = jax.devices() if devices is None else devices
    grid = _grid(config, config.sizes(len(devices)), devices)
    # Auto lets the compiler choose shardings that `constrain` leaves open; other types would not
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def _grid(
    config: MeshConfig, sizes: tuple[int, ...], devices: Sequence[jax.Device]
) -> np.typing.NDArray[Any]:
    """The devices in an array of these sizes, neighbours along fast links."""
    slices = config.num_slices
    between = _between_slices(sizes, slices)
    islands = _islands(devices)
    if len(islands) != slices and getattr(devices[0], "platform", None) == "tpu":
        raise ValueError(
            f"num_slices={slices}, but the devices are in {len(islands)} "
            f"{'slices' if len(islands) > 1 else 'slice'}; it has to be {len(islands)}"
        )
    if len(islands) != slices:  # other platforms number their devices island by island
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
    """The devices of each slice, by its index; all devices if the platform has no slices."""
    islands: dict[int, list[jax.Device]] = {}
    for device in devices:
        islands.setdefault(getattr(device, "slice_index", None) or 0, []).append(device)
    return [islands[index] for index in sorted(islands)]


def _between_slices(sizes: tuple[int, ...], num_slices: int) -> tuple[int, ...]:
    """The number of parts into which slices cut each axis."""
    for axis in ("data", "fsdp"):
        if sizes[AXES.index(axis)] % num_slices == 0:
            return tuple(num_slices if name == axis else 1 for name in AXES)
    raise ValueError(
        f"num_slices={num_slices} divides neither data={sizes[0]} nor fsdp={sizes[1]}; slices are "
        "laid along one of them"
    )


def spec(axes: LogicalAxes, mesh: Mesh | AbstractMesh) -> PartitionSpec:
    """How an array with these logical axes is split over a mesh, by the axes that the mesh has.

    Raises:
      ValueError: two of them are split over the same axis of the mesh.
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
    """The sharding of one array.

    Args:
      mesh: the devices.
      axes: its logical axes.
      shape: its whole shape.
      name: its name in messages.

    Raises:
      ValueError: the mesh does not divide it into equal parts.
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
    """Whether the current mesh splits arrays: it has several devices along one of `AXES`."""
    shape = jax.sharding.get_abstract_mesh().shape
    return any(shape.get(axis, 1) > 1 for axis in AXES)


def constrain(x: jax.Array, axes: LogicalAxes) -> jax.Array:
    """Asks the compiler to split an array over the current mesh, if there is one."""
    if not on_a_mesh():
        return x
    split = spec(axes, jax.sharding.get_abstract_mesh())
    constrained: jax.Array = jax.lax.with_sharding_constraint(x, split)
    return constrained


def parts(axis: str, mesh: Mesh | AbstractMesh | None = None) -> int:
    """The parts into which a mesh (default: the current one) splits a logical axis; 1 without."""
    shape = (mesh or jax.sharding.get_abstract_mesh()).shape
    return math.prod(shape.get(name, 1) for name in RULES[axis])
