"""The decoder: embedding, scanned blocks, output. Letters: see layers.py and attention.py."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from rrope_jax.model.attention import CausalMask
from rrope_jax.model.cache import KVCache, write_rows
from rrope_jax.model.config import REMAT_POLICIES, ModelConfig
from rrope_jax.model.dropout import drop
from rrope_jax.model.layers import Attention, FeedForward, RMSNorm, project
from rrope_jax.rope import RopeSpec, cos_sin

# So few layers are written out instead of looped over: compiling them takes little time, and what
# they keep for the backward pass need not be copied into stacked arrays and out again.
_UNROLLED_LAYERS = 4


class Block(nnx.Module):
    """One pre-norm block: attention, then feed-forward, each added to the residual stream."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        self.attention_norm = RMSNorm(config)
        self.attention = Attention(config, rngs=rngs)
        self.feed_forward_norm = RMSNorm(config)
        self.feed_forward = FeedForward(config, rngs=rngs)
        self.dropout = config.dropout

    def __call__(
        self,
        x_BTD: jax.Array,
        rotation: tuple[jax.Array, jax.Array],
        mask: CausalMask,
        dropout_key: jax.Array | None = None,
        cache: tuple[jax.Array, jax.Array, jax.Array] | None = None,
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array] | None]:
        """Returns x_BTD and, with a cache (key_BSKH, value_BSKH, length_B), the grown one."""
        keys = [None] * 4 if dropout_key is None else list(jax.random.split(dropout_key, 4))
        q_BTNH, k_BSKH, v_BSKH = self.attention.project(self.attention_norm(x_BTD), rotation)
        grown = None
        if cache is not None:
            key_BSKH, value_BSKH, length_B = cache
            k_BSKH = write_rows(key_BSKH, k_BSKH, length_B)
            v_BSKH = write_rows(value_BSKH, v_BSKH, length_B)
            grown = (k_BSKH, v_BSKH)
        mixed_BTD = self.attention.attend(q_BTNH, k_BSKH, v_BSKH, mask, keys[0])
        x_BTD = x_BTD + drop(mixed_BTD, self.dropout, keys[1])
        hidden_BTD = self.feed_forward(self.feed_forward_norm(x_BTD), keys[2])
        return x_BTD + drop(hidden_BTD, self.dropout, keys[3]), grown


class Decoder(nnx.Module):
    """A causal language model.

    The rotary embedding is a static spec: its tables are computed where they are used and are
    neither parameters nor state. Layers are stacked along a leading axis and scanned, so compile
    time does not grow with depth.
    """

    def __init__(self, config: ModelConfig, rope: RopeSpec, *, rngs: nnx.Rngs):
        """Initialises parameters (float32).

        Raises:
          ValueError: the spec's head_dim is not the model's.
        """
        if rope.head_dim != config.head_size:
            raise ValueError(
                f"rope.head_dim={rope.head_dim} differs from the model's head_dim="
                f"{config.head_size}; leave rope.head_dim unset to take the model's"
            )
        self.config = config
        self.rope = rope
        std = 1.0 if config.initialization == "t5" else config.initializer_range
        V, D = config.vocab_size, config.d_model
        self.embedding = nnx.Param(std * jax.random.normal(rngs.params(), (V, D), jnp.float32))
        keys = jax.random.split(rngs.params(), config.num_layers)
        self.blocks = nnx.vmap(lambda key: Block(config, rngs=nnx.Rngs(params=key)))(keys)
        self.final_norm = RMSNorm(config)
        if config.tie_embeddings:
            self.output = None
        else:
            out_std = D**-0.5 if config.initialization == "t5" else config.initializer_range
            self.output = nnx.Param(out_std * jax.random.normal(rngs.params(), (D, V), jnp.float32))

    def __call__(
        self,
        tokens_BT: jax.Array,
        positions_BT: jax.Array | None = None,
        segment_ids_BT: jax.Array | None = None,
        *,
        rotation: tuple[jax.Array, jax.Array] | None = None,
        dropout_key: jax.Array | None = None,
    ) -> jax.Array:
        """Next-token logits of whole sequences.

        Args:
          tokens_BT: int32[B, T].
          positions_BT: int32[B, T] or [T], rotary positions; None counts from 0.
          segment_ids_BT: int32[B, T]; tokens see only their own segment. None is one segment.
          rotation: cos and sin from `rope.cos_sin`, float32[B or 1, T, d/2] or [T, d/2], instead
            of those of the model's own spec at `positions_BT`: lets one program serve many specs.
          dropout_key: turns dropout on.

        Returns:
          float32[B, T, V].
        """
        hidden_BTD = self.hidden(
            tokens_BT, positions_BT, segment_ids_BT, rotation=rotation, dropout_key=dropout_key
        )
        return self.logits(hidden_BTD)

    def hidden(
        self,
        tokens_BT: jax.Array,
        positions_BT: jax.Array | None = None,
        segment_ids_BT: jax.Array | None = None,
        *,
        rotation: tuple[jax.Array, jax.Array] | None = None,
        dropout_key: jax.Array | None = None,
    ) -> jax.Array:
        """The normalised final hidden state, [B, T, D] in the compute dtype: see `__call__`."""
        T = tokens_BT.shape[1]
        index_T = jnp.arange(T, dtype=jnp.int32)
        if rotation is None:
            rotation = cos_sin(
                self.rope, index_T if positions_BT is None else positions_BT, seq_len=T
            )
        mask = CausalMask(segment_ids_BT=segment_ids_BT)
        x_BTD, key = self._embed(tokens_BT, dropout_key)
        graph, stacked = nnx.split(self.blocks)

        def block(x_BTD: jax.Array, layer: tuple[Any, Any]) -> tuple[jax.Array, None]:
            params, layer_key = layer
            x_BTD, _ = nnx.merge(graph, params)(x_BTD, rotation, mask, layer_key)
            return x_BTD, None

        layer_keys = None if key is None else jax.random.split(key, self.config.num_layers)
        x_BTD, _ = self._scan(block, x_BTD, (stacked, layer_keys))
        return self._finish(x_BTD, key)

    def decode(
        self, tokens_BT: jax.Array, cache: KVCache, positions_BT: jax.Array | None = None
    ) -> tuple[jax.Array, KVCache]:
        """Continues cached sequences by T tokens (a prompt, or one token each).

        Args:
          tokens_BT: int32[B, T], appended to every row.
          cache: from `init_cache` or an earlier call; `length_B + T` must not pass its capacity.
          positions_BT: rotary positions; None continues from the row's length.

        Returns:
          Logits float32[B, T, V] and the grown cache.
        """
        T = tokens_BT.shape[1]
        index_BT = cache.length_B[:, None] + jnp.arange(T, dtype=jnp.int32)
        # tables by capacity: keys stay valid while the sequence grows within the cache
        rotation = cos_sin(
            self.rope, index_BT if positions_BT is None else positions_BT, seq_len=cache.capacity
        )
        mask = CausalMask(start_B=cache.length_B)
        x_BTD, _ = self._embed(tokens_BT, None)
        graph, stacked = nnx.split(self.blocks)

        def block(x_BTD: jax.Array, layer: tuple[Any, ...]) -> tuple[jax.Array, Any]:
            params, key_BSKH, value_BSKH = layer
            layer_cache = (key_BSKH, value_BSKH, cache.length_B)
            return nnx.merge(graph, params)(x_BTD, rotation, mask, cache=layer_cache)

        x_BTD, (key_LBSKH, value_LBSKH) = self._scan(
            block, x_BTD, (stacked, cache.key_LBSKH, cache.value_LBSKH)
        )
        logits_BTV = self.logits(self._finish(x_BTD, None))
        return logits_BTV, KVCache(key_LBSKH, value_LBSKH, cache.length_B + T)

    def logits(self, hidden_BTD: jax.Array) -> jax.Array:
        """float32[B, T, V] from the final hidden state."""
        scaled_BTD = hidden_BTD * jnp.asarray(self.config.logit_scale, hidden_BTD.dtype)
        kernel_DV = self.embedding[...].T if self.output is None else self.output[...]
        return project(scaled_BTD, kernel_DV, preferred_element_type=jnp.float32)

    def _embed(
        self, tokens_BT: jax.Array, dropout_key: jax.Array | None
    ) -> tuple[jax.Array, jax.Array | None]:
        """The embedded tokens, and a key for the layers after them."""
        x_BTD = self.embedding[...].astype(self.config.compute_dtype)[tokens_BT]
        if dropout_key is None:
            return x_BTD, None
        own_key, rest_key = jax.random.split(dropout_key)
        return drop(x_BTD, self.config.dropout, own_key), rest_key

    def _finish(self, x_BTD: jax.Array, dropout_key: jax.Array | None) -> jax.Array:
        last_key = None if dropout_key is None else jax.random.fold_in(dropout_key, 1)
        return drop(self.final_norm(x_BTD), self.config.dropout, last_key)

    def _scan(self, block: Any, x_BTD: jax.Array, layers: Any) -> tuple[jax.Array, Any]:
        """Runs a block function over the stacked layers."""
        policy = REMAT_POLICIES[self.config.remat]
        if policy is None:
            unroll = self.config.num_layers <= _UNROLLED_LAYERS
            return jax.lax.scan(block, x_BTD, layers, unroll=unroll)
        # always as a loop: XLA finds what straight-line code computes twice, and keeps the first
        block = jax.checkpoint(block, policy=policy, prevent_cse=False)
        return jax.lax.scan(block, x_BTD, layers)
