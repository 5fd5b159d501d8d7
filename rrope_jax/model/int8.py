"""Layer matrices in int8, with one float32 scale for each output channel.

The scale is symmetric, the largest absolute weight of a channel over 127, as in LLM.int8()
(arXiv 2208.07339, its vector-wise quantization of weights). It is constant along the axes that a
product contracts, so x @ w = (x @ values) * scale: the product reads int8 from memory, which XLA
converts where it multiplies, and a single multiplication of the result dequantizes all of it. With
a scale for each input channel, or for groups of inputs, every weight would have to be scaled first.
int8 values are exact in bfloat16, whose 8 significant bits hold all integers up to 256.

Activations stay in the compute dtype: to quantize them, too, would save arithmetic, not memory, and
costs accuracy where single features are large.
"""

from typing import Any, NamedTuple

import numpy as np

_LARGEST = 127
_SMALLEST = float(np.finfo(np.float32).tiny)


class Int8Kernel(NamedTuple):
    """A kernel, or a stack of kernels, whose weights are `values * scale`.

    Attributes:
      values: int8[*I, *O], from -127 to 127; a stack [L, *I, *O].
      scale: float32[*O]; of a stack, [L, *O].
    """

    values: Any
    scale: Any


def quantize(kernel_IO: Any, inputs: tuple[int, ...]) -> Int8Kernel:
    """Rounds a float32 kernel to the nearest multiples of its channels' scales.

    The error of a weight is at most half a scale, 1/254 of the largest weight in its channel. A
    channel of zeros, or of numbers that small, has zeros and the scale 1.

    Args:
      kernel_IO: float32[*I, *O], of numpy or JAX, perhaps stacked.
      inputs: the axes I.
    """
    largest_O = abs(kernel_IO).max(axis=inputs, keepdims=True)
    # times the inverse, as XLA would make of a quotient by a constant: the same bits everywhere
    scale_O = largest_O * (1 / _LARGEST)
    scale_O = scale_O + (scale_O < _SMALLEST)
    values_IO = (kernel_IO / scale_O).round().astype("int8")
    return Int8Kernel(values_IO, scale_O.squeeze(inputs))
