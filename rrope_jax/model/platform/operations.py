"""Chooses the form of operations by platform."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from rrope_jax.model.platform import one_cpu
from rrope_jax.sharding import on_a_mesh


class Chunks(NamedTuple):
    """The blocks of `attention.chunked`.

    Attributes:
      query_block, key_block: tokens per block.
      one_by_one: whether to compute one key/value head after another, so that its blocks stay in a
        CPU's cache, or all heads at once, for accelerators.
    """

    query_block: int
    key_block: int
    one_by_one: bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class Operations:
    """Operations whose form depends on the platform. Results differ at most by rounding.

    Attributes:
      matmul: x_MI times kernel_IO, in the dtype of x or a preferred one.
      matmul_rows: x_MI times the transpose of kernel_OI, float32[M, O].
      joins_projections: whether queries, keys and values come from one wide product.
      one_query: attention with one query per row, from q_B1NH, k_BSKH, v_BSKH, the mask
        bool[B or 1, 1, S], and q_B1NH, k_BSKH and the mask of far pairs or None; None to use the
        general form.
      chunks: the blocks of chunked attention.
      unstack: splits stacked parameters into layers, for a loop over tokens; None if a loop over
        layers reads the stack in place.
    """

    matmul: Callable[[jax.Array, jax.Array, DTypeLike | None], jax.Array]
    matmul_rows: Callable[[jax.Array, jax.Array], jax.Array]
    joins_projections: bool
    one_query: Callable[..., jax.Array] | None
    chunks: Chunks
    unstack: Callable[[Any], list[Any]] | None


def _matmul(
    x_MI: jax.Array, kernel_IO: jax.Array, preferred_element_type: DTypeLike | None
) -> jax.Array:
    return jnp.matmul(x_MI, kernel_IO, preferred_element_type=preferred_element_type)


def _matmul_rows(x_MI: jax.Array, kernel_OI: jax.Array) -> jax.Array:
    return jnp.matmul(x_MI, kernel_OI.T, preferred_element_type=jnp.float32)


_PORTABLE = Operations(
    matmul=_matmul,
    matmul_rows=_matmul_rows,
    joins_projections=False,
    one_query=None,
    chunks=Chunks(query_block=512, key_block=1024, one_by_one=False),
    unstack=None,
)
_ONE_CPU = Operations(
    matmul=one_cpu.matmul,
    matmul_rows=one_cpu.matmul_rows,
    joins_projections=True,
    one_query=one_cpu.one_query,
    # a third faster than 256 on two cores (docs/speed_smollm2.md)
    chunks=Chunks(query_block=512, key_block=512, one_by_one=True),
    unstack=one_cpu.unstack,
)


def operations() -> Operations:
    """The operations for the current platform and mesh."""
    on_one_cpu = backend_platform() == "cpu" and not on_a_mesh()
    return _ONE_CPU if on_one_cpu else _PORTABLE


def backend_platform() -> str:
    """`cpu`, `gpu` or `tpu`: the platform of the mesh, even if absent, or of this process."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.default_backend() if device is None else device.platform
