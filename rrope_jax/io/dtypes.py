"""The dtypes that weights can be written in, and their names in each format."""

import dataclasses

import jax.numpy as jnp
import numpy as np

from rrope_jax.io.weights import Array


@dataclasses.dataclass(frozen=True)
class Dtype:
    """One dtype of weights.

    Attributes:
      numpy: the numpy dtype.
      safetensors: its name in safetensors.
      gguf: its number among GGUF's tensor types.
      gguf_file_type: GGUF's file type (`general.file_type`) for matrices of this dtype.
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
    """Returns a weight in the given dtype as a contiguous array.

    Args:
      matrix: the weight.
      dtype: the dtype to convert to.
      name: the weight's name, for error messages.

    Raises:
      ValueError: a value is not finite, or overflows in the new dtype.
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
