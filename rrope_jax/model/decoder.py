"""The decoder: embedding, scanned blocks, output. Axis letters: `rrope_jax.model`."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from rrope_jax.model.attention.call import CallShape
from rrope_jax.model.attention.choice import choose
from rrope_jax.model.attention.context_parallel import arrange
from rrope_jax.model.attention.mask import CausalMask
from rrope_jax.model.cache import KVCache, LayerCache
from rrope_jax.model.config import REMAT_POLICIES, ModelConfig
from rrope_jax.model.dropout import drop
from rrope_jax.model.layers import (
    STREAM,
    Attention,
    FeedForward,
    RMSNorm,
    parameter,
    read,
)
from rrope_jax.model.platform.operations import operations
from rrope_jax.model.products import project, project_to_rows
from rrope_jax.rope import RopeSpec, cos_sin
from rrope_jax.sharding import LogicalAxes, constrain

# Up to this many layers are unrolled: they compile quickly, and what they save for the backward
# pass need not be copied into stacked arrays and out again.
_UNROLLED_LAYERS = 4


class Block(nnx.Module):
    """A pre-norm block: attention, then feed-forward, each added to the residual stream."""

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
        cache: LayerCache | None = None,
    ) -> tuple[jax.Array, KVCache | None]:
        """Returns x_BTD and the extended cache, or None without a cache."""
        keys = [None] * 4 if dropout_key is None else list(jax.random.split(dropout_key, 4))
        q_BTNH, k_BSKH, v_BSKH = self.attention.project(self.attention_norm(x_BTD), rotation)
        grown = None
        if cache is not None:
            grown, k_BSKH, v_BSKH = cache.grow(k_BSKH, v_BSKH)
        mixed_BTD = self.attention.attend(q_BTNH, k_BSKH, v_BSKH, mask, keys[0])
        x_BTD = x_BTD + drop(mixed_BTD, self.dropout, keys[1])
        hidden_BTD = self.feed_forward(self.feed_forward_norm(x_BTD), keys[2])
        return x_BTD + drop(hidden_BTD, self.dropout, keys[3]), grown


class Decoder(nnx.Module):
    """A causal language model.

    The rotary embedding is a static spec: its cos and sin are computed on the fly and are neither
    parameters nor state. Layers are stacked along a leading axis and scanned, so compile time does
    not grow with depth.
    """

    def __init__(self, config: ModelConfig, rope: RopeSpec, *, rngs: nnx.Rngs):
        """Initializes the parameters in float32.

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
        embedding_VD = std * jax.random.normal(rngs.params(), (V, D), jnp.float32)
        self.embedding = parameter(embedding_VD, ("vocab_size", "d_model"))
        keys = jax.random.split(rngs.params(), config.num_layers)
        self.blocks = nnx.vmap(lambda key: Block(config, rngs=nnx.Rngs(params=key)))(keys)
        self.final_norm = RMSNorm(config)
        if config.tie_embeddings:
            self.output = None
        else:
            out_std = D**-0.5 if config.initialization == "t5" else config.initializer_range
            output_DV = out_std * jax.random.normal(rngs.params(), (D, V), jnp.float32)
            self.output = parameter(output_DV, ("d_model", "vocab_size"))

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
          segment_ids_BT: int32[B, T]; tokens see only their own segment. None for one segment.
          rotation: cos and sin from `rope.cos_sin`, float32[B or 1, T, d/2] or [T, d/2]. They
            replace those of the model's spec at `positions_BT`, so one program can serve many
            specs.
          dropout_key: a PRNG key; None turns dropout off.

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
        arranged: bool = False,
    ) -> jax.Array:
        """The normalized final hidden state, [B, T, D] in the compute dtype; see `__call__`.

        If `arranged`, the tokens of all arguments and of the result are in the order of
        `context_parallel.arrange`, which balances the work between the devices along a row.
        """
        T = tokens_BT.shape[1]
        if rotation is None:
            if positions_BT is None:
                positions_BT = jnp.arange(T, dtype=jnp.int32)[None]
                positions_BT = arrange(positions_BT) if arranged else positions_BT
            rotation = cos_sin(self.rope, positions_BT, seq_len=T)
        mask = CausalMask(segment_ids_BT, arranged=arranged)
        embedding_key = final_key = keys_L = None
        if dropout_key is not None:
            embedding_key, rest_key = jax.random.split(dropout_key)
            keys = jax.random.split(rest_key, self.config.num_layers + 1)
            keys_L, final_key = keys[:-1], keys[-1]
        graph, params_L = nnx.split(self.blocks)

        def block(x_BTD: jax.Array, layer: tuple[Any, Any]) -> tuple[jax.Array, None]:
            params, key = layer
            x_BTD, _ = nnx.merge(graph, params)(x_BTD, rotation, mask, key)
            return x_BTD, None

        x_BTD = self._embed(tokens_BT, embedding_key)
        x_BTD, _ = self._scan(block, x_BTD, (params_L, keys_L))
        return drop(self.final_norm(x_BTD), self.config.dropout, final_key)

    def decode(
        self,
        tokens_BT: jax.Array,
        cache: KVCache,
        positions_BT: jax.Array | None = None,
        *,
        layers: Sequence[Any] | None = None,
    ) -> tuple[jax.Array, KVCache]:
        """Continues cached sequences by T tokens (a prompt, or one token each).

        Args:
          tokens_BT: int32[B, T], appended to every row.
          cache: from `init_cache` or an earlier call; `length_B + T` must not exceed its capacity.
          positions_BT: int32[B, T], rotary positions; None continues from the row's length.
          layers: the result of `layers_for_loop()` if tokens are decoded in a loop.

        Returns:
          Logits, float32[B, T, V], and the extended cache.
        """
        T = tokens_BT.shape[1]
        index_BT = cache.length_B[:, None] + jnp.arange(T, dtype=jnp.int32)
        # frequencies by capacity, so that cached keys stay valid as the sequence grows
        rotation = cos_sin(
            self.rope, index_BT if positions_BT is None else positions_BT, seq_len=cache.capacity
        )
        mask = CausalMask(start_B=cache.length_B)
        graph, params_L = nnx.split(self.blocks)

        def block(carry: tuple[jax.Array, KVCache], layer: tuple[Any, Any]) -> tuple[Any, None]:
            (x_BTD, cache), (params, index) = carry, layer
            layer_cache = LayerCache(cache, index)
            return nnx.merge(graph, params)(x_BTD, rotation, mask, cache=layer_cache), None

        carry = self._embed(tokens_BT), cache
        if layers is None:
            index_L = jnp.arange(self.config.num_layers, dtype=jnp.int32)
            carry, _ = self._scan(block, carry, (params_L, index_L))
        else:
            for index, params in enumerate(layers):
                carry, _ = block(carry, (params, index))
        x_BTD, cache = carry
        logits_BTV = self.logits(self.final_norm(x_BTD))
        return logits_BTV, cache._replace(length_B=cache.length_B + T)

    def layers_for_loop(self) -> Sequence[Any] | None:
        """The `layers` argument of `decode`, for a loop over tokens. Call it outside of jit.

        On platforms that would otherwise copy every layer out of the stack for every token, this
        returns the parameters of each layer separately; they share the memory of the stack. Compile
        time then grows with depth. Returns None on platforms where this does not help.
        """
        unstack = operations().unstack
        return None if unstack is None else unstack(nnx.split(self.blocks)[1])

    def logits(self, hidden_BTD: jax.Array) -> jax.Array:
        """Logits, float32[B, T, V], of the final hidden state."""
        scaled_BTD = hidden_BTD * jnp.asarray(self.config.logit_scale, hidden_BTD.dtype)
        if self.output is None:
            logits_BTV = project_to_rows(scaled_BTD, read(self.embedding))
        else:
            logits_BTV = project(scaled_BTD, read(self.output), preferred_element_type=jnp.float32)
        return constrain(logits_BTV, ("batch", "length", "vocab_size"))

    def _embed(self, tokens_BT: jax.Array, dropout_key: jax.Array | None = None) -> jax.Array:
        """The embedded tokens, x_BTD in the compute dtype."""
        embedding_VD = read(self.embedding).astype(self.config.compute_dtype)
        # gather the embedding along d_model before the lookup instead of the activations after it
        x_BTD = constrain(constrain(embedding_VD, ("vocab_size", None))[tokens_BT], STREAM)
        return drop(x_BTD, self.config.dropout, dropout_key)

    def _scan(self, block: Callable[..., Any], carry: Any, layers_L: Any) -> tuple[Any, Any]:
        """Scans a block function over stacked layers, with the remat policy."""
        if self.config.remat == "none" and self.config.num_layers <= _UNROLLED_LAYERS:
            return jax.lax.scan(block, carry, layers_L, unroll=True)
        # not unrolled: in straight-line code, XLA merges recomputed results and so keeps them
        policy = REMAT_POLICIES[self.config.remat]
        block = jax.checkpoint(block, policy=policy, prevent_cse=False)
        return jax.lax.scan(block, carry, layers_L)


def abstract_decoder(config: ModelConfig, rope: RopeSpec) -> Decoder:
    """A decoder whose parameters are `jax.ShapeDtypeStruct`s, which take no memory."""
    return nnx.eval_shape(lambda: Decoder(config, rope, rngs=nnx.Rngs(0)))


def attention_name(
    config: ModelConfig, rows: int, length: int, *, segmented: bool, dropout: bool
) -> str:
    """The attention implementation that a decoder uses for whole sequences on the current mesh.

    Args:
      config: the model.
      rows, length: size of the batch, in rows and tokens per row; the mesh may split both.
      segmented: whether rows hold several segments.
      dropout: whether the attention weights have dropout.

    Returns:
      A key of `attention.choice.IMPLEMENTATIONS`.

    Raises:
      ValueError: the configured implementation cannot run here.
    """
    shape = CallShape(
        B=rows,
        T=length,
        S=length,
        N=config.num_heads,
        K=config.kv_heads,
        H=config.head_size,
        dtype=jnp.dtype(config.compute_dtype),
        segmented=segmented,
        dropout=dropout,
        arranged=True,
    )
    return choose(shape, config.attention).name


@functools.lru_cache(maxsize=16)
def parameter_layout(
    config: ModelConfig,
) -> Mapping[tuple[str, ...], tuple[tuple[int, ...], LogicalAxes]]:
    """Path in the pure dict of parameters -> shape and logical axes of every parameter."""
    decoder = abstract_decoder(config, RopeSpec(head_dim=config.head_size))
    layout = {}
    for path, param in nnx.to_flat_state(nnx.state(decoder, nnx.Param)):
        axes = (None, *param.axes) if path[0] == "blocks" else param.axes
        layout[tuple(map(str, path))] = param.shape, axes
    return layout
