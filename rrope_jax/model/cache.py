"""The key/value cache of a decoder, of fixed size so that decoding compiles only once.

Layers with a sliding window keep the last keys of each row in a ring: the token with index p is in
entry p mod W. Their memory does not grow with the length.

Where far pairs have other positions, every key is kept twice, once in the rotation of either. So
nothing is rotated again, whatever the positions were, and the keys are those of a whole pass bit
for bit, at half as much memory again. Keys without rotation would take no more memory than usual,
but every step would have to rotate all of them twice, which is more work than attending to them.

W is the size of the ring, at most the window.
"""

from collections.abc import Collection, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from rrope_jax.model.attention.mask import CausalMask
from rrope_jax.model.config import ModelConfig
from rrope_jax.model.far_layers import far_positions_by_type
from rrope_jax.model.layer_types import LAYER_TYPES
from rrope_jax.rope import RopeSpec
from rrope_jax.sharding import LogicalAxes, constrain


class KVCache(NamedTuple):
    """Rotated keys and values of all layers, and the number of tokens per row.

    Attributes:
      key_LBKSH, value_LBKSH: compute_dtype[L, B, K, S, H] of the L layers that see whole rows,
        where S is the capacity in tokens. Heads come before tokens so that the keys of a head form
        one matrix.
      window_key_LBKWH, window_value_LBKWH: the same for layers with a sliding window.
      length_B: int32[B], tokens per row and thus the index of the next token.
      far_key_LBKSH, far_window_key_LBKWH: like `key_LBKSH` and `window_key_LBKWH`, the keys of far
        pairs; None if there are none.
    """

    key_LBKSH: jax.Array
    value_LBKSH: jax.Array
    window_key_LBKWH: jax.Array
    window_value_LBKWH: jax.Array
    length_B: jax.Array
    far_key_LBKSH: jax.Array | None = None
    far_window_key_LBKWH: jax.Array | None = None

    @property
    def capacity(self) -> int:
        """The number of tokens that the cache can hold per row, S."""
        return self.key_LBKSH.shape[3]

    def cut_back(self, before: "KVCache") -> "KVCache":
        """The cache without what was appended since an earlier state of it.

        Keys beyond a row's length are never seen, so those of whole rows stay where they are; rings
        have overwritten theirs and are taken from before.
        """
        return self._replace(
            window_key_LBKWH=before.window_key_LBKWH,
            window_value_LBKWH=before.window_value_LBKWH,
            far_window_key_LBKWH=before.far_window_key_LBKWH,
            length_B=before.length_B,
        )


_KEYS: LogicalAxes = (None, "batch", "kv_heads", None, None)
_AXES: dict[str, LogicalAxes] = dict.fromkeys(KVCache._fields, _KEYS) | {"length_B": ("batch",)}


def constrain_cache(cache: KVCache) -> KVCache:
    """Shards a cache over the current mesh, its rows and heads; a no-op on a single device."""
    return cache._replace(
        **{name: constrain(x, _AXES[name]) for name, x in cache._asdict().items() if x is not None}
    )


def init_cache(
    config: ModelConfig, batch_size: int, capacity: int, rope: RopeSpec | None = None
) -> KVCache:
    """An empty cache for `batch_size` rows of up to `capacity` tokens.

    Writing beyond the capacity is not detected under jit; the caller must bound the steps.

    Args:
      config: the model.
      batch_size: number of rows.
      capacity: tokens per row.
      rope: the model's embedding; only that of far pairs matters.
    """
    dtype = jnp.dtype(config.compute_dtype)
    windowed = sum(LAYER_TYPES[name].windowed for name in config.layer_types_of_all)
    ring = 0 if config.sliding_window is None else min(config.sliding_window, capacity)

    def empty(layers: int, tokens: int) -> jax.Array:
        return jnp.zeros((layers, batch_size, config.kv_heads, tokens, config.head_size), dtype)

    whole = config.num_layers - windowed
    far_types = () if rope is None else far_positions_by_type(config, rope, capacity)
    far = {LAYER_TYPES[name].windowed for name in far_types}
    cache = KVCache(
        empty(whole, capacity),
        empty(whole, capacity),
        empty(windowed, ring),
        empty(windowed, ring),
        jnp.zeros((batch_size,), jnp.int32),
        empty(whole, capacity) if False in far else None,
        empty(windowed, ring) if True in far else None,
    )
    return constrain_cache(cache)


def check_far_keys(config: ModelConfig, cache: KVCache, far: Collection[str]) -> None:
    """Raises ValueError if a cache does not hold the keys of far pairs of some layer types."""
    for name in far:
        windowed = LAYER_TYPES[name].windowed
        if (cache.far_window_key_LBKWH if windowed else cache.far_key_LBKSH) is None:
            raise ValueError(
                f"the cache has no keys for the far pairs of {name} layers; make it with "
                "init_cache(config, batch_size, capacity, rope)"
            )


def cache_bytes(
    config: ModelConfig, batch_size: int, capacity: int, rope: RopeSpec | None = None
) -> int:
    """The memory in bytes that `init_cache` takes for these arguments."""
    shapes = jax.eval_shape(lambda: init_cache(config, batch_size, capacity, rope))
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(shapes))


def slots(layer_types: Sequence[str]) -> NDArray[np.int32]:
    """The index of each layer among those that share its part of the cache, int32[L]."""
    counts = {True: 0, False: 0}
    slot_L = []
    for name in layer_types:
        windowed = LAYER_TYPES[name].windowed
        slot_L.append(counts[windowed])
        counts[windowed] += 1
    return np.array(slot_L, np.int32)


# The keys, values and keys of far pairs of either kind of layer.
_WHOLE = ("key_LBKSH", "value_LBKSH", "far_key_LBKSH")
_RING = ("window_key_LBKWH", "window_value_LBKWH", "far_window_key_LBKWH")


class LayerCache(NamedTuple):
    """The view that one layer has of the cache.

    Attributes:
      cache: the cache of all layers.
      slot: int32[], the layer's index among those that share its part of the cache.
      window: the layer's sliding window, or None.
      count_B: int32[B], how many of the new tokens are in each row; None for all.
    """

    cache: KVCache
    slot: jax.Array
    window: int | None = None
    count_B: jax.Array | None = None

    def grow(
        self, k_BTKH: jax.Array, v_BTKH: jax.Array, far_k_BTKH: jax.Array | None = None
    ) -> tuple[KVCache, jax.Array, jax.Array, jax.Array | None, CausalMask]:
        """Writes T new entries to every row.

        `length_B` is left unchanged for the layers that follow.

        Returns:
          The cache, the keys, values and keys of far pairs that the new queries may see, k_BSKH,
          v_BSKH and k_BSKH or None, and the mask for them.
        """
        names, new = _WHOLE if self.window is None else _RING, [k_BTKH, v_BTKH]
        if far_k_BTKH is not None:
            new.append(far_k_BTKH)
        stacks = [getattr(self.cache, name) for name in names[: len(new)]]
        if self.window is not None:
            written, seen, mask = self._grow_ring(stacks, new)
        else:
            length_B = self.cache.length_B
            written = [
                self._write(stack, x_BTKH, length_B)
                for stack, x_BTKH in zip(stacks, new, strict=True)
            ]
            seen = [stack[self.slot].swapaxes(1, 2) for stack in written]
            mask = CausalMask(start_B=length_B)
        grown = self.cache._replace(**dict(zip(names, written, strict=False)))
        far_k_BSKH = None if far_k_BTKH is None else seen[2]
        return grown, seen[0], seen[1], far_k_BSKH, mask

    def _grow_ring(
        self, stacks: Sequence[jax.Array], new: Sequence[jax.Array]
    ) -> tuple[list[jax.Array], list[jax.Array], CausalMask]:
        """The stacks with new entries [B, T, K, H], what the queries may see of each, the mask."""
        length_B = self.cache.length_B
        W, (B, T) = stacks[0].shape[3], new[0].shape[:2]
        # the ring then holds what the query sees, in any order, unless far keys differ from near
        if T == 1 and self.count_B is None and len(new) == 2:
            written = [
                self._write(stack, x_B1KH, length_B % W)
                for stack, x_B1KH in zip(stacks, new, strict=True)
            ]
            seen = [stack[self.slot].swapaxes(1, 2) for stack in written]
            mask = CausalMask(start_B=jnp.minimum(length_B, W - 1))
        else:
            row_W = jnp.arange(W, dtype=jnp.int32)
            count_B = jnp.full((B,), T, jnp.int32) if self.count_B is None else self.count_B
            # in the order of the row: the last W tokens before the new ones
            last_BW = (length_B[:, None] + row_W) % W
            # of these and the new tokens, the last W that are in the row, in the order of the ring
            kept_BW = count_B[:, None] + (row_W - (length_B + count_B)[:, None]) % W
            seen = [
                jnp.concatenate([_take(stack[self.slot].swapaxes(1, 2), last_BW), x_BTKH], axis=1)
                for stack, x_BTKH in zip(stacks, new, strict=True)
            ]
            written = [
                jax.lax.dynamic_update_index_in_dim(
                    stack, _take(x_BSKH, kept_BW).swapaxes(1, 2), self.slot, axis=0
                )
                for stack, x_BSKH in zip(stacks, seen, strict=True)
            ]
            is_token_BW = length_B[:, None] + row_W >= W
            key_ids_BS = jnp.pad(jnp.where(is_token_BW, 0, -1), [(0, 0), (0, T)])
            mask = CausalMask(
                segment_ids_BT=jnp.zeros((B, T), jnp.int32),
                key_segment_ids_BS=key_ids_BS,
                start_B=jnp.full((B,), W, jnp.int32),
                window=self.window,
            )
        return written, seen, mask

    def _write(self, all_LBKSH: jax.Array, new_BTKH: jax.Array, start_B: jax.Array) -> jax.Array:
        new_BKTH = new_BTKH.swapaxes(1, 2)
        if len(new_BTKH) == 1:  # a single slice, which avoids the scatter that several rows need
            start = (self.slot, 0, 0, start_B[0], 0)
            return jax.lax.dynamic_update_slice(all_LBKSH, new_BKTH[None], start)

        T, S = new_BKTH.shape[2], all_LBKSH.shape[3]

        def write(row_LKSH: jax.Array, new_KTH: jax.Array, first: jax.Array) -> jax.Array:
            # what does not fit is padding, which must not push the row's last tokens aside
            start = jnp.minimum(first, S - T)
            index_T = jnp.arange(T) - (first - start)
            at = (self.slot, 0, start, 0)
            old_KTH = jax.lax.dynamic_slice(row_LKSH, at, (1, *new_KTH.shape))[0]
            shifted_KTH = jnp.take(new_KTH, jnp.maximum(index_T, 0), axis=1)
            kept_KTH = jnp.where(index_T[:, None] < 0, old_KTH, shifted_KTH)
            return jax.lax.dynamic_update_slice(row_LKSH, kept_KTH[None], at)

        over_rows = jax.vmap(write, in_axes=(1, 0, 0), out_axes=1)
        return over_rows(all_LBKSH, new_BKTH, start_B)


def _take(x_BSKH: jax.Array, index_BW: jax.Array) -> jax.Array:
    """The entries of each row at its indices, [B, W, K, H]."""
    return jnp.take_along_axis(x_BSKH, index_BW[:, :, None, None], axis=1)
