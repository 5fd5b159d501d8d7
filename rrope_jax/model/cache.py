"""The key/value cache of a decoder: fixed-size arrays, so that decoding compiles once."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from rrope_jax.model.config import ModelConfig


class KVCache(NamedTuple):
    """Rotated keys and values of all layers, with how much of each row is filled.

    Attributes:
      key_LBKSH, value_LBKSH: compute dtype[L, B, K, S, H], S the capacity in tokens. Heads come
        before tokens, so that a head's keys are one matrix.
      length_B: int32[B], filled entries per row; the next token goes to this index.
    """

    key_LBKSH: jax.Array
    value_LBKSH: jax.Array
    length_B: jax.Array

    @property
    def capacity(self) -> int:
        """The number of tokens S that the cache can hold per row."""
        return self.key_LBKSH.shape[3]


def init_cache(config: ModelConfig, batch_size: int, capacity: int) -> KVCache:
    """An empty cache for `batch_size` rows of up to `capacity` tokens.

    Writing past the capacity is not detected under jit: the caller bounds the number of steps.
    """
    shape = (config.num_layers, batch_size, config.kv_heads, capacity, config.head_size)
    dtype = jnp.dtype(config.compute_dtype)
    return KVCache(
        jnp.zeros(shape, dtype), jnp.zeros(shape, dtype), jnp.zeros((batch_size,), jnp.int32)
    )


class LayerCache(NamedTuple):
    """The cache as one layer sees it.

    Attributes:
      cache: of all layers.
      layer: int32[], the index of the layer.
    """

    cache: KVCache
    layer: jax.Array

    def grow(self, k_BTKH: jax.Array, v_BTKH: jax.Array) -> tuple[KVCache, jax.Array, jax.Array]:
        """The cache with T new entries in every row, and this layer's k_BSKH and v_BSKH.

        The lengths of rows stay as they are, because the next layers need them.
        """
        grown = self.cache._replace(
            key_LBKSH=self._write(self.cache.key_LBKSH, k_BTKH),
            value_LBKSH=self._write(self.cache.value_LBKSH, v_BTKH),
        )
        k_BKSH, v_BKSH = grown.key_LBKSH[self.layer], grown.value_LBKSH[self.layer]
        return grown, k_BKSH.swapaxes(1, 2), v_BKSH.swapaxes(1, 2)

    def _write(self, all_LBKSH: jax.Array, new_BTKH: jax.Array) -> jax.Array:
        new_BKTH = new_BTKH.swapaxes(1, 2)
        if len(new_BTKH) == 1:  # one slice to write, without the scatter that many rows become
            start = (self.layer, 0, 0, self.cache.length_B[0], 0)
            return jax.lax.dynamic_update_slice(all_LBKSH, new_BKTH[None], start)

        def write(row_LKSH: jax.Array, new_KTH: jax.Array, length: jax.Array) -> jax.Array:
            start = (self.layer, 0, length, 0)
            return jax.lax.dynamic_update_slice(row_LKSH, new_KTH[None], start)

        over_rows = jax.vmap(write, in_axes=(1, 0, 0), out_axes=1)
        return over_rows(all_LBKSH, new_BKTH, self.cache.length_B)
