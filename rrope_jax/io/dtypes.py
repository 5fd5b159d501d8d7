"""The types that weights are written in, and what other formats call them."""

import dataclasses

import jax.numpy as jnp
import numpy as np

from rrope_jax.io.weights import Array


@dataclasses.dataclass(frozen=True)
class Dtype:
    """One type of weights.

    Attributes:
      numpy: of the arrays in memory.
      safetensors: its name there.
      gguf: its number among the tensor types of GGUF.
      gguf_file_type: the number for a file whose matrices have this type.
    """

    numpy: np.dtype
    safetensors: str
    gguf: int
    gguf_file_type: int


DTYPES = {
    "float32": Dtype(np.dtype(np.float32), "F32", 0, 0),
    "bfloat16": Dtype(np.dtype(jnp.bfloat16), "BF16", 30, 32),
    "float16": Dtype(np.dtype(np.float16), "F16", 1, 1),
}


def cast(matrix: Array, dtype: Dtype, name: str) -> Array:
    """A contiguous copy of a weight in another type.

    Raises:
      ValueError: a number is not finite, or no longer so.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        written = np.ascontiguousarray(matrix, dtype.numpy)
    if not np.isfinite(written).all():
        largest = np.abs(matrix.astype(np.float64)).max()
        raise ValueError(
            f"{name} holds {largest:.4g}, which is not a finite number as {dtype.numpy.name}; "
            "check the checkpoint, or write it as bfloat16 or float32"
        )
    return written
