"""An opened checkpoint of any format: a description of its model, and its weights one by one."""

import abc
import functools
import math
from pathlib import Path

import jax
import numpy as np
from numpy.typing import NDArray

from rrope_jax.io.description import Description
from rrope_jax.io.weights import Array, Weight, parameter_shapes

Part = tuple[range, ...]
"""Which elements of an array: one range for each axis."""


class Source(abc.ABC):
    """A checkpoint whose weights are read one at a time.

    Attributes:
      path: the file or folder; None for a model in memory.
    """

    path: Path | None = None
    _is_checked = False

    @functools.cached_property
    def description(self) -> Description:
        """The model; reads no weights.

        Raises:
          ValueError: the model is not one that `Decoder` can be.
        """
        return self._describe()

    @abc.abstractmethod
    def _describe(self) -> Description:
        """Does what `description` says."""

    def check(self) -> None:
        """Checks names, types and shapes of all weights. Only the first call reads anything.

        Raises:
          ValueError: the checkpoint is not of the model that it describes.
        """
        if not self._is_checked:
            self._check()
            self._is_checked = True

    @abc.abstractmethod
    def _check(self) -> None:
        """Does what `check` says."""

    @abc.abstractmethod
    def matrix(self, weight: Weight, layer: int, part: Part | None = None) -> Array:
        """One weight in float32, float16 or bfloat16 and Hugging Face's layout, or a part of it.

        Args:
          weight: the kind of weight.
          layer: its layer; 0 where there is one for all layers.
          part: the rows, and for a matrix the columns, to read; None for all. A weight with `heads`
            is read in whole heads.
        """

    def parameter(self, weight: Weight, sharding: jax.sharding.Sharding | None = None) -> jax.Array:
        """One parameter of the decoder in float32.

        Reads only what the devices of this process need, one shard at a time, so the host never
        holds more than one.

        Args:
          weight: the kind of weight.
          sharding: of the parameter; None puts all of it on the default device.
        """
        shape = parameter_shapes(self.description.model)[weight]
        if sharding is None:
            array: jax.Array = jax.device_put(read_parameter(self, weight))
            return array
        devices_of: dict[Part, list[jax.Device]] = {}
        for device, index in sharding.addressable_devices_indices_map(shape).items():
            assert index is not None
            part = tuple(range(*cut.indices(n)) for cut, n in zip(index, shape, strict=True))
            devices_of.setdefault(part, []).append(device)
        shards: list[jax.Array] = []
        for part, devices in devices_of.items():
            block = read_parameter(self, weight, part)
            # wait: a transfer that is still under way keeps the block in memory
            shards += jax.block_until_ready([jax.device_put(block, each) for each in devices])
        return jax.make_array_from_single_device_arrays(shape, sharding, shards)


def read_parameter(source: Source, weight: Weight, part: Part | None = None) -> NDArray[np.float32]:
    """One parameter, or a part of it, in the host's memory, filled matrix by matrix.

    Args:
      source: the checkpoint.
      weight: the kind of weight.
      part: a range for each axis of the parameter; None for all of it.
    """
    shape = parameter_shapes(source.description.model)[weight]
    ranges = tuple(map(range, shape)) if part is None else part
    block = _aligned(tuple(map(len, ranges)))
    if weight.stacked:
        layers, axes, sizes, kernels = ranges[0], ranges[1:], shape[1:], block
    else:
        layers, axes, sizes, kernels = range(1), ranges, shape, block[np.newaxis]
    groups = [group for group in weight.axes(len(sizes)) if group]
    order = [axis for group in groups for axis in group]
    # the first axis of a group is cut while it is read, the others in memory
    flat, lengths, cuts = [], list(sizes), [slice(axis.start, axis.stop) for axis in axes]
    for first, *others in groups:
        inner = math.prod(sizes[axis] for axis in others)
        flat.append(range(axes[first].start * inner, axes[first].stop * inner))
        lengths[first], cuts[first] = len(axes[first]), slice(None)
    for kernel, layer in zip(kernels, layers, strict=True):
        matrix = source.matrix(weight, layer, None if part is None else tuple(flat))
        by_axis = matrix.reshape([lengths[axis] for axis in order])
        kernel.transpose(order)[...] = by_axis[tuple(cuts[axis] for axis in order)]
    return block


def _aligned(shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Memory that a CPU device takes over as it is; what is aligned to less, it copies."""
    size = math.prod(shape) * np.dtype(np.float32).itemsize
    memory = np.empty(size + _ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % _ALIGNMENT
    block: NDArray[np.float32] = memory[start : start + size].view(np.float32).reshape(shape)
    return block


_ALIGNMENT = 64  # bytes
