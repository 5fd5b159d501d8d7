"""The attention mask."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

# finite, so that the difference of two masked logits is not NaN
MASKED = -0.7 * float(jnp.finfo(jnp.float32).max)


# Smaller blocks would be small for the matrix units of accelerators.
_SMALLEST_BLOCK = 128


def block_for_window(block: int, window: int | None) -> int:
    """A block of tokens, made smaller for a sliding window that is not much larger.

    A block of Q queries is multiplied with about Q + C + `window` keys in blocks of C, so large
    blocks would make small windows expensive.
    """
    if window is None:
        return block
    half = (1 << (window - 1).bit_length()) // 2
    return min(block, max(_SMALLEST_BLOCK, half))


class CausalMask(NamedTuple):
    """A query sees the keys of its own segment that do not come after it.

    "After" refers to the order of the sequence, not to rotary positions, which sampling may repeat
    or skip. By default, queries and keys are the same tokens in one segment.

    Attributes:
      segment_ids_BT: int32[B, T], of the queries; tokens see each other only if ids are equal.
      key_segment_ids_BS: int32[B, S], of the keys; None if they are the same tokens.
      start_B: int32[B], the index of a row's first query among its keys, for queries that continue
        a cached sequence; None for 0.
      arranged: whether tokens are in the order of `context_parallel.arrange`.
      window: a query sees none but its own key and the `window` - 1 keys before it, a sliding
        window; None for no such limit. An int, never traced.
    """

    segment_ids_BT: jax.Array | None = None
    key_segment_ids_BS: jax.Array | None = None
    start_B: jax.Array | None = None
    arranged: bool = False
    window: int | None = None

    @property
    def key_segments(self) -> jax.Array | None:
        """`key_segment_ids_BS` with its default resolved."""
        return self.segment_ids_BT if self.key_segment_ids_BS is None else self.key_segment_ids_BS

    def dense(self, T: int, S: int) -> jax.Array:
        """The mask as bool[B or 1, T, S], True for visible pairs."""
        query_BT, key_S = self._queries(T), jnp.arange(S, dtype=jnp.int32)
        visible_BTS = key_S <= query_BT[:, :, None]
        if self.window is not None:
            visible_BTS &= key_S > query_BT[:, :, None] - self.window
        if self.segment_ids_BT is not None and self.key_segments is not None:
            visible_BTS &= self.segment_ids_BT[:, :, None] == self.key_segments[:, None, :]
        return visible_BTS

    def far(self, T: int, S: int, window: ArrayLike) -> jax.Array:
        """The pairs of a key and a query at least `window` tokens after it, bool[B or 1, T, S]."""
        return self._queries(T)[:, :, None] - jnp.arange(S, dtype=jnp.int32) >= window

    def _queries(self, T: int) -> jax.Array:
        """The indices of the queries among the keys, int32[B or 1, T]."""
        query_T = jnp.arange(T, dtype=jnp.int32)
        return query_T[None] if self.start_B is None else self.start_B[:, None] + query_T
