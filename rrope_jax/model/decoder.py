"""The decoder: embedding, scanned blocks, output. Axis letters: `rrope_jax.model`."""

import dataclasses
import functools
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import ArrayLike

from rrope_jax.model.attention.call import CallShape
from rrope_jax.model.attention.choice import choose
from rrope_jax.model.attention.context_parallel import arrange
from rrope_jax.model.attention.mask import CausalMask
from rrope_jax.model.cache import KVCache, LayerCache, check_far_keys, constrain_cache, slots
from rrope_jax.model.config import REMAT_POLICIES, WEIGHT_DTYPES, ModelConfig
from rrope_jax.model.dropout import drop
from rrope_jax.model.far_layers import far_positions_by_type
from rrope_jax.model.layer_types import LAYER_TYPES
from rrope_jax.model.layers import (
    STREAM,
    Attention,
    FarRotation,
    FeedForward,
    RMSNorm,
    Rotation,
    parameter,
    read,
)
from rrope_jax.model.platform.operations import operations
from rrope_jax.model.products import project, project_to_rows
from rrope_jax.rope import RopeSpec, cos_sin, query_temperature
from rrope_jax.sharding import LogicalAxes, constrain

# Up to this many layers are unrolled: they compile quickly, and what they save for the backward
# pass need not be copied into stacked arrays and out again.
_UNROLLED_LAYERS = 4


Rotations = Mapping[str, Rotation | None]
"""The rotation of each layer type; None where there is none."""


class Block(nnx.Module):
    """Attention, then feed-forward, each with its norms and added to the residual stream."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        def norm(*placements: str) -> RMSNorm | None:
            is_there = config.norm_placement in placements
            return RMSNorm(config, (config.d_model,)) if is_there else None

        self.attention_norm = norm("before", "both")
        self.attention = Attention(config, rngs=rngs)
        self.attention_post_norm = norm("after", "both")
        self.feed_forward_norm = norm("before", "both")
        self.feed_forward = FeedForward(config, rngs=rngs)
        self.feed_forward_post_norm = norm("after", "both")
        self.config = config

    def __call__(
        self,
        x_BTD: jax.Array,
        rotation: Rotation | None,
        mask: CausalMask | None,
        dropout_key: jax.Array | None = None,
        cache: LayerCache | None = None,
    ) -> tuple[jax.Array, KVCache | None]:
        """Returns x_BTD and the extended cache, or None without a cache, which has its own mask."""
        keys = [None] * 4 if dropout_key is None else list(jax.random.split(dropout_key, 4))
        q_BTNH, k_BSKH, v_BSKH, far = self.attention.project(
            _normed(self.attention_norm, x_BTD), rotation
        )
        grown = None
        if cache is not None:
            far_k_BSKH = None if far is None else far.k_BSKH
            grown, k_BSKH, v_BSKH, far_k_BSKH, mask = cache.grow(k_BSKH, v_BSKH, far_k_BSKH)
            if far is not None and far_k_BSKH is not None:
                far = far._replace(k_BSKH=far_k_BSKH)
        assert mask is not None
        mixed_BTD = self.attention.attend(q_BTNH, k_BSKH, v_BSKH, mask, keys[0], far)
        x_BTD = self._add(x_BTD, _normed(self.attention_post_norm, mixed_BTD), keys[1])
        hidden_BTD = self.feed_forward(_normed(self.feed_forward_norm, x_BTD), keys[2])
        return self._add(x_BTD, _normed(self.feed_forward_post_norm, hidden_BTD), keys[3]), grown

    def _add(
        self, x_BTD: jax.Array, output_BTD: jax.Array, dropout_key: jax.Array | None
    ) -> jax.Array:
        """The residual stream with the output of a sublayer."""
        if self.config.residual_scale != 1:
            output_BTD = output_BTD * jnp.asarray(self.config.residual_scale, output_BTD.dtype)
        return x_BTD + drop(output_BTD, self.config.dropout, dropout_key)


def _normed(norm: RMSNorm | None, x_BTD: jax.Array) -> jax.Array:
    return x_BTD if norm is None else norm(x_BTD)


class Decoder(nnx.Module):
    """A causal language model.

    The rotary embedding is a static spec: its cos and sin are computed on the fly, once for all
    layers that share them, and are neither parameters nor state. Layers are stacked along a leading
    axis and scanned, one period of `layer_types` at a time, so compile time does not grow with
    depth.
    """

    def __init__(self, config: ModelConfig, rope: RopeSpec, *, rngs: nnx.Rngs):
        """Initializes the parameters in float32, then rounds them to the config's weight_dtype.

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
        dtype = WEIGHT_DTYPES[config.weight_dtype].embeddings
        self.embedding = parameter(embedding_VD.astype(dtype), ("vocab_size", "d_model"))
        keys = jax.random.split(rngs.params(), config.num_layers)
        self.blocks = nnx.vmap(lambda key: Block(config, rngs=nnx.Rngs(params=key)))(keys)
        self.final_norm = RMSNorm(config, (D,))
        if config.tie_embeddings:
            self.output = None
        else:
            out_std = D**-0.5 if config.initialization == "t5" else config.initializer_range
            output_DV = out_std * jax.random.normal(rngs.params(), (D, V), jnp.float32)
            self.output = parameter(output_DV.astype(dtype), ("d_model", "vocab_size"))

    def __call__(
        self,
        tokens_BT: jax.Array,
        positions_BT: jax.Array | None = None,
        segment_ids_BT: jax.Array | None = None,
        *,
        rotation: tuple[jax.Array, jax.Array] | Rotations | None = None,
        dropout_key: jax.Array | None = None,
    ) -> jax.Array:
        """Next-token logits of whole sequences.

        Args:
          tokens_BT: int32[B, T].
          positions_BT: int32[B, T] or [T], rotary positions; None counts from 0.
          segment_ids_BT: int32[B, T]; tokens see only their own segment. None for one segment.
          rotation: cos and sin from `rope.cos_sin`, float32[B or 1, T, d/2] or [T, d/2], for all
            layers that rotate, or a mapping from layer types, such as the result of `rotations`.
            They replace those of the model's spec at `positions_BT`, so one program can serve many
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
        rotation: tuple[jax.Array, jax.Array] | Rotations | None = None,
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
            rotation = rotations(self.config, self.rope, positions_BT, seq_len=T)
        by_type = _by_type(self.config, rotation)
        embedding_key = final_key = keys_L = None
        if dropout_key is not None:
            embedding_key, rest_key = jax.random.split(dropout_key)
            keys = jax.random.split(rest_key, self.config.num_layers + 1)
            keys_L, final_key = keys[:-1], keys[-1]
        graph, params_L = nnx.split(self.blocks)

        def block(layer_type: str, x_BTD: jax.Array, layer: tuple[Any, Any]) -> jax.Array:
            params, key = layer
            window = self.config.window_of(layer_type)
            mask = CausalMask(segment_ids_BT, arranged=arranged, window=window)
            x_BTD, _ = nnx.merge(graph, params)(x_BTD, by_type[layer_type], mask, key)
            return x_BTD

        x_BTD = self._embed(tokens_BT, embedding_key)
        x_BTD = self._scan(block, x_BTD, (params_L, keys_L))
        return drop(self.final_norm(x_BTD), self.config.dropout, final_key)

    def decode(
        self,
        tokens_BT: jax.Array,
        cache: KVCache,
        positions_BT: jax.Array | None = None,
        *,
        layers: Sequence[Any] | None = None,
        count_B: jax.Array | None = None,
    ) -> tuple[jax.Array, KVCache]:
        """Continues cached sequences by up to T tokens (a prompt, or one token each).

        Args:
          tokens_BT: int32[B, T], appended to every row.
          cache: from `init_cache` or an earlier call; the tokens of every row must fit its
            capacity, in a cache of one row those of the padding too. Models with far positions
            need one for their spec.
          positions_BT: int32[B, T], rotary positions; None continues from the row's length.
          layers: the result of `layers_for_loop()` if tokens are decoded in a loop.
          count_B: int32[B], how many of the tokens each row has; the others are padding at its end,
            which the cache forgets. None if every row has T.

        Returns:
          Logits, float32[B, T, V], and the extended cache.

        Raises:
          ValueError: the cache has no keys of far pairs, and the model needs them.
        """
        hidden_BTD, cache = self.decode_hidden(
            tokens_BT, cache, positions_BT, layers=layers, count_B=count_B
        )
        return self.logits(hidden_BTD), cache

    def decode_hidden(
        self,
        tokens_BT: jax.Array,
        cache: KVCache,
        positions_BT: jax.Array | None = None,
        *,
        layers: Sequence[Any] | None = None,
        count_B: jax.Array | None = None,
    ) -> tuple[jax.Array, KVCache]:
        """Like `decode`, with the normalized final hidden state, [B, T, D], in place of logits."""
        T = tokens_BT.shape[1]
        index_BT = cache.length_B[:, None] + jnp.arange(T, dtype=jnp.int32)
        # frequencies by capacity, so that cached keys stay valid as the sequence grows
        by_type = rotations(
            self.config,
            self.rope,
            index_BT if positions_BT is None else positions_BT,
            seq_len=cache.capacity,
        )
        check_far_keys(self.config, cache, {name for name in by_type if _has_far(by_type[name])})
        graph, params_L = nnx.split(self.blocks)

        def block(
            layer_type: str, carry: tuple[jax.Array, KVCache], layer: tuple[Any, Any]
        ) -> tuple[jax.Array, KVCache]:
            (x_BTD, cache), (params, slot) = carry, layer
            layer_cache = LayerCache(cache, slot, self.config.window_of(layer_type), count_B)
            x_BTD, grown = nnx.merge(graph, params)(
                x_BTD, by_type[layer_type], None, cache=layer_cache
            )
            assert grown is not None
            return x_BTD, grown

        carry = self._embed(tokens_BT), cache
        slot_L = slots(self.config.layer_types_of_all)
        if layers is None:
            carry = self._scan(block, carry, (params_L, jnp.asarray(slot_L)))
        else:
            types = self.config.layer_types_of_all
            for layer_type, params, slot in zip(types, layers, slot_L.tolist(), strict=True):
                carry = block(layer_type, carry, (params, slot))
        x_BTD, cache = carry
        count = T if count_B is None else count_B
        grown = constrain_cache(cache._replace(length_B=cache.length_B + count))
        return self.final_norm(x_BTD), grown

    def layers_for_loop(self) -> Sequence[Any] | None:
        """The `layers` argument of `decode`, for a loop over tokens. Call it outside of jit.

        On platforms that would otherwise copy every layer out of the stack for every token, this
        returns the parameters of each layer separately; they share the memory of the stack. Compile
        time then grows with depth. Returns None on platforms where this does not help, and for
        parameters that are not float32: the loop would keep all of them in float32.
        """
        unstack = operations().unstack
        if unstack is None or self.config.weight_dtype != "float32":
            return None
        return unstack(nnx.split(self.blocks)[1])

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
        if self.config.embedding_scale != 1:
            x_BTD = x_BTD * jnp.asarray(self.config.embedding_scale, x_BTD.dtype)
        return drop(x_BTD, self.config.dropout, dropout_key)

    def _scan(self, block: Callable[..., Any], carry: Any, layers_L: Any) -> Any:
        """Applies `block(layer_type, carry, layer)` to all layers, with the remat policy.

        Each iteration of the loop is one period of the layer types. What is left of the layers
        follows after the loop.
        """
        pattern, remat = self.config.layer_types, self.config.remat
        unroll = remat == "none" and self.config.num_layers <= _UNROLLED_LAYERS

        def apply(name: str, carry: Any, layer: Any, *, in_loop: bool = True) -> Any:
            of_type: Callable[..., Any] = functools.partial(block, name)
            if not unroll:  # outside of a loop, XLA would merge recomputed results and so keep them
                policy = REMAT_POLICIES[remat]
                of_type = jax.checkpoint(of_type, policy=policy, prevent_cse=not in_loop)
            return of_type(carry, layer)

        P = len(pattern)
        whole = self.config.num_layers // P * P

        def period(carry: Any, layers_P: Any) -> tuple[Any, None]:
            for index, name in enumerate(pattern):
                carry = apply(name, carry, layers_P if P == 1 else _layer(layers_P, index))
            return carry, None

        periods = layers_L
        if P > 1:
            periods = jax.tree.map(lambda x_L: x_L[:whole].reshape(-1, P, *x_L.shape[1:]), layers_L)
        carry, _ = jax.lax.scan(period, carry, periods, unroll=unroll or 1)
        for index in range(whole, self.config.num_layers):
            carry = apply(pattern[index - whole], carry, _layer(layers_L, index), in_loop=False)
        return carry


def rotations(
    config: ModelConfig,
    rope: RopeSpec,
    positions: ArrayLike,
    *,
    fraction: ArrayLike | None = None,
    seq_len: int | None = None,
) -> Rotations:
    """The rotation of each layer type of a model, computed once per distinct embedding.

    Args:
      config: the model.
      rope: its embedding.
      positions, fraction, seq_len: as for `rope.cos_sin`.
    """
    of_spec: dict[RopeSpec, Rotation] = {}
    by_type: dict[str, Rotation | None] = {}
    far_by_type = far_positions_by_type(config, rope, seq_len)
    for name in config.layer_types:
        if not LAYER_TYPES[name].rotates:
            by_type[name] = None
            continue
        spec = rope.of(name)
        if spec not in of_spec:
            cos, sin = cos_sin(spec, positions, fraction=fraction, seq_len=seq_len)
            of_spec[spec] = Rotation(cos, sin, query_temperature(spec, positions))
        by_type[name] = of_spec[spec]
        if (far := far_by_type.get(name)) is not None:
            of_queries = cos_sin(spec, far.of_queries(positions), seq_len=seq_len)
            of_keys = cos_sin(spec, far.of_keys(positions), seq_len=seq_len)
            rotation = FarRotation(*of_queries, *of_keys, far.window)
            by_type[name] = of_spec[spec]._replace(far=rotation)
    return by_type


def _has_far(rotation: Rotation | None) -> bool:
    return rotation is not None and rotation.far is not None


def _by_type(config: ModelConfig, rotation: tuple[Any, ...] | Rotations) -> Rotations:
    """Resolves cos and sin for all layers to those of each layer type."""
    if isinstance(rotation, Mapping):
        return rotation
    return {
        name: Rotation(*rotation) if LAYER_TYPES[name].rotates else None
        for name in config.layer_types
    }


def _layer(layers_L: Any, index: int) -> Any:
    """One layer of a stack."""
    return jax.tree.map(lambda x_L: x_L[index], layers_L)


def abstract_decoder(config: ModelConfig, rope: RopeSpec) -> Decoder:
    """A decoder whose parameters are `jax.ShapeDtypeStruct`s, which take no memory."""
    return nnx.eval_shape(lambda: Decoder(config, rope, rngs=nnx.Rngs(0)))


def parameter_bytes(config: ModelConfig) -> int:
    """The memory in bytes that a decoder's parameters take."""
    decoder = abstract_decoder(config, RopeSpec(head_dim=config.head_size))
    leaves = jax.tree.leaves(nnx.state(decoder, nnx.Param))
    return sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)


def attention_names(
    config: ModelConfig,
    rows: int,
    length: int,
    *,
    segmented: bool,
    dropout: bool,
    far: Collection[str] = (),
) -> dict[str, str]:
    """The attention implementations that a decoder uses for whole sequences on the current mesh.

    Args:
      config: the model.
      rows, length: size of the batch, in rows and tokens per row; the mesh may split both.
      segmented: whether rows hold several segments.
      dropout: whether the attention weights have dropout.
      far: the layer types in which far pairs have other positions.

    Returns:
      Layer type -> a key of `attention.choice.IMPLEMENTATIONS`.

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
    return {
        name: choose(
            dataclasses.replace(shape, window=config.window_of(name), far=name in far),
            config.attention,
        ).name
        for name in config.layer_types
    }


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
