"""An opened checkpoint of any format, which gives the model's description and its weights."""

import abc
import functools
import math
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.typing import DTypeLike
from numpy.typing import NDArray

from rrope_jax.io.description import Description
from rrope_jax.io.stored import Tensor
from rrope_jax.io.weights import Array, Part, Weight, parameter_shapes
from rrope_jax.model.int8 import Int8Kernel, quantize


class Source(abc.ABC):
    """A checkpoint whose weights are read one at a time.

    Attributes:
      path: the file or folder; None for a model in memory.
    """

    path: Path | None = None
    _is_checked = False

    @functools.cached_property
    def description(self) -> Description:
        """The model, found without reading any weights.

        Raises:
          ValueError: `Decoder` does not support the model.
        """
        return self._describe()

    @abc.abstractmethod
    def _describe(self) -> Description:
        """Implements `description`."""

    def check(self) -> None:
        """Checks the names, dtypes and shapes of all weights; only the first call does any work.

        Raises:
          ValueError: the weights do not match the description.
        """
        if not self._is_checked:
            self._check()
            self._is_checked = True

    @abc.abstractmethod
    def _check(self) -> None:
        """Implements `check`."""

    @abc.abstractmethod
    def matrix(self, weight: Weight, layer: int, part: Part | None = None) -> Array:
        """Reads one weight, or a part of it, in Hugging Face's layout.

        Args:
          weight: the kind of weight.
          layer: the layer; 0 for a weight that is not per layer.
          part: the rows (and columns, for a matrix) to read; None for all. The part of a weight
            that is `rotated` must consist of whole heads.

        Returns:
          The matrix [out, in] or vector, in a floating-point dtype of the source's choice.
        """

    def tensor(self, tensor: Tensor) -> Array:
        """Reads a tensor of another format's layout: the matrices of its weights, stacked."""
        matrices = [self.matrix(weight, tensor.layer) for weight in tensor.weights]
        return matrices[0] if len(matrices) == 1 else np.concatenate(matrices)

    def parameter(
        self,
        weight: Weight,
        sharding: jax.sharding.Sharding | None = None,
        dtype: DTypeLike = np.float32,
    ) -> jax.Array:
        """Loads one parameter of the decoder.

        Only the shards of this process's devices are read, and the host holds one shard at a time.

        Args:
          weight: the kind of weight.
          sharding: the parameter's sharding; None puts all of it on the default device.
          dtype: the dtype to round it to.
        """
        shape = parameter_shapes(self.description.model)[weight]
        if sharding is None:
            array: jax.Array = jax.device_put(read_parameter(self, weight, dtype=dtype))
            return array
        shards: list[jax.Array] = []
        for part, devices in _devices_by_part(sharding, shape).items():
            block = read_parameter(self, weight, part, dtype)
            # Wait: an unfinished transfer would keep the block in memory.
            shards += jax.block_until_ready([jax.device_put(block, each) for each in devices])
        return jax.make_array_from_single_device_arrays(shape, sharding, shards)

    def int8_kernel(
        self,
        weight: Weight,
        sharding: jax.sharding.Sharding | None = None,
        scale_sharding: jax.sharding.Sharding | None = None,
    ) -> Int8Kernel:
        """Loads one kernel, stacked over the layers, in int8.

        The host holds one layer of a shard in float32 at a time, with all inputs of its channels,
        which their scales depend on.

        Args:
          weight: the kind of weight.
          sharding: the sharding of the values; None puts all of them on the default device.
          scale_sharding: the sharding of the scales, split like the channels of the values.

        Raises:
          ValueError: a weight is not finite.
        """
        shape = parameter_shapes(self.description.model)[weight]
        if sharding is None or scale_sharding is None:
            kernel = read_int8_kernel(self, weight, tuple(map(range, shape)))
            return Int8Kernel(*map(jax.device_put, kernel))
        shards: list[Int8Kernel] = []
        for part, devices in _devices_by_part(sharding, shape).items():
            block = read_int8_kernel(self, weight, part)
            shards += jax.block_until_ready([jax.device_put(block, each) for each in devices])
        return Int8Kernel(
            *(
                jax.make_array_from_single_device_arrays(size, each, list(of_devices))
                for size, each, of_devices in zip(
                    (shape, _scale_shape(weight, shape)),
                    (sharding, scale_sharding),
                    zip(*shards, strict=True),
                    strict=True,
                )
            )
        )


def _devices_by_part(
    sharding: jax.sharding.Sharding, shape: tuple[int, ...]
) -> dict[Part, list[jax.Device]]:
    """The parts of an array that devices of this process hold."""
    devices_of: dict[Part, list[jax.Device]] = {}
    for device, index in sharding.addressable_devices_indices_map(shape).items():
        assert index is not None
        part = tuple(range(*cut.indices(n)) for cut, n in zip(index, shape, strict=True))
        devices_of.setdefault(part, []).append(device)
    return devices_of


def _scale_shape(weight: Weight, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of the scales of a stacked kernel, or its part along the channels."""
    assert weight.inputs
    return shape[0], *shape[1 + weight.inputs :]


def read_int8_kernel(source: Source, weight: Weight, part: Part) -> Int8Kernel:
    """Reads a part of a kernel and of its scales into host memory; see `Source.int8_kernel`."""
    assert weight.inputs
    shape = parameter_shapes(source.description.model)[weight]
    inputs = range(1, 1 + weight.inputs)
    values = _aligned(tuple(map(len, part)), np.int8)
    scale = _aligned(_scale_shape(weight, values.shape), np.float32)
    cut = tuple(slice(part[axis].start, part[axis].stop) for axis in inputs)
    whole_inputs = tuple(range(shape[axis]) for axis in inputs)
    for index, layer in enumerate(part[0]):
        of_layer = (range(layer, layer + 1), *whole_inputs, *part[1 + weight.inputs :])
        (kernel,) = read_parameter(source, weight, of_layer)
        if not np.isfinite(kernel).all():
            raise ValueError(f"{weight.path} of layer {layer} is not finite; check the checkpoint")
        layer_values, scale[index] = quantize(kernel, tuple(axis - 1 for axis in inputs))
        values[index] = layer_values[cut]
    return Int8Kernel(values, scale)


def read_parameter(
    source: Source, weight: Weight, part: Part | None = None, dtype: DTypeLike = np.float32
) -> NDArray[Any]:
    """Reads one parameter, or a part of it, into host memory, one matrix at a time.

    Args:
      source: the checkpoint.
      weight: the kind of weight.
      part: a range for each axis of the parameter; None for the whole parameter.
      dtype: the dtype of the result; values are rounded to the nearest.
    """
    shape = parameter_shapes(source.description.model)[weight]
    ranges = tuple(map(range, shape)) if part is None else part
    block = _aligned(tuple(map(len, ranges)), dtype)
    if weight.stacked:
        layers, axes, sizes, kernels = ranges[0], ranges[1:], shape[1:], block
    else:
        layers, axes, sizes, kernels = range(1), ranges, shape, block[np.newaxis]
    groups = [group for group in weight.axes(len(sizes)) if group]
    order = [axis for group in groups for axis in group]
    # The first axis of each group is sliced while reading, the others in memory.
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


def _aligned(shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
    """Allocates memory aligned so that a CPU device can use it without a copy."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    memory = np.empty(size + _ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % _ALIGNMENT
    block: NDArray[Any] = memory[start : start + size].view(dtype).reshape(shape)
    return block


_ALIGNMENT = 64  # bytes
