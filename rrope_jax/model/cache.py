"""The key/value cache of a decoder: fixed-size arrays, so that decoding compiles once."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from rrope_jax.model.config import ModelConfig


class KVCache(NamedTuple):
    """Rotated keys and values of all layers, with how much of each row is filled.

    Attributes:
      key_LBSKH, value_LBSKH: compute dtype[L, B, S, K, H], S the capacity in tokens.
      length_B: int32[B], filled entries per row; the next token goes to this index.
    """

    key_LBSKH: jax.Array
    value_LBSKH: jax.Array
    length_B: jax.Array

    @property
    def capacity(self) -> int:
        """The number of tokens S that the cache can hold per row."""
        return self.key_LBSKH.shape[2]


def init_cache(config: ModelConfig, batch_size: int, capacity: int) -> KVCache:
    """An empty cache for `batch_size` rows of up to `capacity` tokens.

    Writing past the capacity is not detected under jit: the caller bounds the number of steps.
    """
    shape = (config.num_layers, batch_size, capacity, config.kv_heads, config.head_size)
    dtype = jnp.dtype(config.compute_dtype)
    return KVCache(
        jnp.zeros(shape, dtype), jnp.zeros(shape, dtype), jnp.zeros((batch_size,), jnp.int32)
    )


def write_rows(cache_BSKH: jax.Array, new_BTKH: jax.Array, start_B: jax.Array) -> jax.Array:
    """Writes T new entries into every row, each from its own start."""

    def write(row_SKH: jax.Array, new_TKH: jax.Array, start: jax.Array) -> jax.Array:
        return jax.lax.dynamic_update_slice_in_dim(row_SKH, new_TKH, start, axis=0)

    return jax.vmap(write)(cache_BSKH, new_BTKH, start_B)
