"""The key/value cache of a decoder, of fixed size so that decoding compiles only once."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from rrope_jax.model.config import ModelConfig


class KVCache(NamedTuple):
    """Rotated keys and values of all layers, and the number of filled entries per row.

    Attributes:
      key_LBKSH, value_LBKSH: compute_dtype[L, B, K, S, H], where S is the capacity in tokens. Heads
        come before tokens so that the keys of a head form one matrix.
      length_B: int32[B], filled entries per row and thus the index of the next token.
    """

    key_LBKSH: jax.Array
    value_LBKSH: jax.Array
    length_B: jax.Array

    @property
    def capacity(self) -> int:
        """The number of tokens that the cache can hold per row, S."""
        return self.key_LBKSH.shape[3]


def init_cache(config: ModelConfig, batch_size: int, capacity: int) -> KVCache:
    """An empty cache for `batch_size` rows of up to `capacity` tokens.

    Writing beyond the capacity is not detected under jit; the caller must bound the steps.
    """
    shape = (config.num_layers, batch_size, config.kv_heads, capacity, config.head_size)
    dtype = jnp.dtype(config.compute_dtype)
    return KVCache(
        jnp.zeros(shape, dtype), jnp.zeros(shape, dtype), jnp.zeros((batch_size,), jnp.int32)
    )


class LayerCache(NamedTuple):
    """The view that one layer has of the cache.

    Attributes:
      cache: the cache of all layers.
      layer: int32[], the index of the layer.
    """

    cache: KVCache
    layer: jax.Array

    def grow(self, k_BTKH: jax.Array, v_BTKH: jax.Array) -> tuple[KVCache, jax.Array, jax.Array]:
        """Writes T new entries to every row; returns the cache and this layer's k_BSKH and v_BSKH.

        `length_B` is left unchanged for the layers that follow.
        """
        grown = self.cache._replace(
            key_LBKSH=self._write(self.cache.key_LBKSH, k_BTKH),
            value_LBKSH=self._write(self.cache.value_LBKSH, v_BTKH),
        )
        k_BKSH, v_BKSH = grown.key_LBKSH[self.layer], grown.value_LBKSH[self.layer]
        return grown, k_BKSH.swapaxes(1, 2), v_BKSH.swapaxes(1, 2)

    def _write(self, all_LBKSH: jax.Array, new_BTKH: jax.Array) -> jax.Array:
        new_BKTH = new_BTKH.swapaxes(1, 2)
        if len(new_BTKH) == 1:  # a single slice, which avoids the scatter that several rows need
            start = (self.layer, 0, 0, self.cache.length_B[0], 0)
            return jax.lax.dynamic_update_slice(all_LBKSH, new_BKTH[None], start)

        def write(row_LKSH: jax.Array, new_KTH: jax.Array, length: jax.Array) -> jax.Array:
            start = (self.layer, 0, length, 0)
            return jax.lax.dynamic_update_slice(row_LKSH, new_KTH[None], start)

        over_rows = jax.vmap(write, in_axes=(1, 0, 0), out_axes=1)
        return over_rows(all_LBKSH, new_BKTH, self.cache.length_B)
