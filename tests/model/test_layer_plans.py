"""Models whose layers differ: windows, layers without rotation, an embedding for each type."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from rrope_jax import rope
from rrope_jax.model import Decoder, KVCache, ModelConfig, init_cache
from rrope_jax.model.layer_types import repeat
from rrope_jax.rope import RopeSpec
from tests.closeness import assert_close

PATTERN = ("sliding_attention", "sliding_attention", "full_attention", "nope")
MODEL = ModelConfig(
    vocab_size=29,
    d_model=16,
    num_layers=7,  # a period and three layers more
    num_heads=4,
    num_kv_heads=2,
    d_ff=24,
    layer_types=PATTERN,
    sliding_window=5,
    initializer_range=0.4,
)
SPEC = RopeSpec(
    head_dim=4,
    scaling="yarn",
    factor=4.0,
    original_context=8,
    llama_4_scaling_beta=0.3,
    sliding_attention=RopeSpec(head_dim=4, theta=100.0),
)
TOKENS = jnp.asarray(np.random.default_rng(0).integers(0, 29, (2, 21)), jnp.int32)


@functools.cache
def _decoder(model: ModelConfig = MODEL, spec: RopeSpec = SPEC) -> Decoder:
    decoder = Decoder(model, spec, rngs=nnx.Rngs(0))
    # norms and biases at random, so that leaving one out is seen
    state = nnx.state(decoder)
    keys = iter(jax.random.split(jax.random.key(1), 99))
    state = jax.tree.map(
        lambda x: x + 0.3 * jax.random.normal(next(keys), x.shape) if x.ndim < 4 else x, state
    )
    nnx.update(decoder, state)
    return decoder


def _norm(x: Any, scale: Any, config: ModelConfig) -> Any:
    scale = scale + 1 if config.norm_offset else scale
    axes = tuple(range(-scale.ndim, 0))
    return x / np.sqrt(np.mean(x**2, axis=axes, keepdims=True) + config.rms_norm_eps) * scale


def _reference(decoder: Decoder, tokens_BT: Any) -> Any:
    """The logits, layer by layer and pair by pair in float64, from the words of `ModelConfig`."""
    config, spec = decoder.config, decoder.rope
    p = jax.tree.map(lambda x: np.asarray(x, np.float64), nnx.to_pure_dict(nnx.state(decoder)))
    T = tokens_BT.shape[1]
    x = p["embedding"][tokens_BT] * config.embedding_scale
    for layer, kind in enumerate(repeat(config.layer_types, config.num_layers)):
        w = jax.tree.map(lambda each: each[layer], p["blocks"])  # noqa: B023
        a = w["attention"]
        h = _norm(x, w["attention_norm"]["scale"], config) if "attention_norm" in w else x
        q, k, v = (np.einsum("btd,dnh->btnh", h, a[name]) for name in ("query", "key", "value"))
        if config.qkv_bias:
            q, k, v = q + a["query_bias"], k + a["key_bias"], v + a["value_bias"]
        if config.qk_norm != "none":
            q = _norm(q, a["query_norm"]["scale"], config)
            k = _norm(k, a["key_norm"]["scale"], config)
        if kind != "nope":
            own = spec.of(kind)
            table = rope.frequencies(own)
            angle = np.arange(T)[:, None] * table.inv_freq
            cos, sin = (f(angle)[:, None] * table.attention_factor for f in (np.cos, np.sin))
            half = cos.shape[-1]
            q, k = (
                np.concatenate(
                    [
                        y[..., :half] * cos - y[..., half:] * sin,
                        y[..., half:] * cos + y[..., :half] * sin,
                    ],
                    axis=-1,
                )
                for y in (q, k)
            )
            if own.llama_4_scaling_beta:
                context = np.arange(T) // own.original_context
                q = q * (1 + own.llama_4_scaling_beta * np.log(1 + context))[:, None, None]
        groups = config.num_heads // config.kv_heads
        k, v = np.repeat(k, groups, axis=2), np.repeat(v, groups, axis=2)
        logits = np.einsum("btnh,bsnh->bnts", q, k) * config.scale
        distance = np.arange(T)[:, None] - np.arange(T)
        window = config.sliding_window if kind == "sliding_attention" else T
        logits = np.where((distance >= 0) & (distance < window), logits, -np.inf)
        weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
        weights /= weights.sum(axis=-1, keepdims=True)
        mixed = np.einsum("bnts,bsnh,nhd->btd", weights, v, a["out"])
        if "attention_post_norm" in w:
            mixed = _norm(mixed, w["attention_post_norm"]["scale"], config)
        x = x + config.residual_scale * mixed
        h = _norm(x, w["feed_forward_norm"]["scale"], config) if "feed_forward_norm" in w else x
        f = w["feed_forward"]
        gate = h @ f["gate"]
        if config.activation == "swiglu":
            gate = gate / (1 + np.exp(-gate))
        else:
            gate = gate / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (gate + 0.044715 * gate**3)))
        h = (gate * (h @ f["up"])) @ f["down"]
        if "feed_forward_post_norm" in w:
            h = _norm(h, w["feed_forward_post_norm"]["scale"], config)
        x = x + config.residual_scale * h
    x = _norm(x, p["final_norm"]["scale"], config) * config.logit_scale
    return x @ (p["embedding"].T if config.tie_embeddings else p["output"])


FAMILIES = {
    "plain": {},
    "qwen2": {"qkv_bias": True, "tie_embeddings": True},
    "qwen3": {"qk_norm": "head"},
    "olmo": {"qk_norm": "all_heads", "norm_placement": "after"},
    "gemma": {
        "qk_norm": "head",
        "norm_placement": "both",
        "norm_offset": True,
        "activation": "geglu",
        "embedding_scale": 4.0,
        "attention_scale": 0.3,
    },
    "granite": {"residual_scale": 0.22, "logit_scale": 0.125, "embedding_scale": 12.0},
}


@pytest.mark.parametrize("fields", FAMILIES.values(), ids=FAMILIES)
def test_logits_are_those_of_the_words(fields: dict[str, Any]) -> None:
    decoder = _decoder(dataclasses.replace(MODEL, **fields))
    assert_close(jax.jit(lambda: decoder(TOKENS))(), _reference(decoder, np.asarray(TOKENS)))


def _decode(decoder: Decoder) -> Any:
    return jax.jit(
        lambda tokens_BT, cache, count_B=None: decoder.decode(tokens_BT, cache, count_B=count_B)
    )


@pytest.mark.parametrize("pieces", [(3, 1, 1, 1, 9, 1, 5), (17, 1, 3)])
@pytest.mark.parametrize("window", [1, 5, 30])
def test_decoding_equals_the_whole(pieces: tuple[int, ...], window: int) -> None:
    """Prompts in pieces shorter and longer than the window, and single steps beyond it."""
    decoder = _decoder(dataclasses.replace(MODEL, sliding_window=window))
    expected_BTV = jax.jit(lambda: decoder(TOKENS))()
    decode, cache, start, logits = _decode(decoder), init_cache(decoder.config, 2, 24), 0, []
    assert cache.window_key_LBKWH.shape == (4, 2, 2, min(window, 24), 4)
    assert cache.key_LBKSH.shape == (3, 2, 2, 24, 4)
    for piece in pieces:
        piece_BTV, cache = decode(TOKENS[:, start : start + piece], cache)
        logits.append(piece_BTV)
        start += piece
    assert_close(jnp.concatenate(logits, axis=1), expected_BTV)


def test_padding_leaves_no_trace() -> None:
    """Rows of 4 and 16 tokens, read in pieces of 8 with padding, each go on as if alone."""
    decoder = _decoder()
    expected_BTV = jax.jit(lambda: decoder(TOKENS))()
    lengths = np.array([4, 16])
    padded_BT = jnp.where(np.arange(16) < lengths[:, None], TOKENS[:, :16], 0)
    decode, cache = _decode(decoder), init_cache(decoder.config, 2, 24)
    for start in (0, 8):
        count_B = jnp.asarray(np.clip(lengths - start, 0, 8), jnp.int32)
        _, cache = decode(padded_BT[:, start : start + 8], cache, count_B)
    np.testing.assert_array_equal(cache.length_B, lengths)
    for step in range(5):
        place_B = lengths + step
        logits_B1V, cache = decode(TOKENS[jnp.arange(2), place_B][:, None], cache)
        assert_close(logits_B1V[:, 0], expected_BTV[jnp.arange(2), place_B])


def test_layers_cut_out_before_a_loop() -> None:
    decoder = _decoder()
    layers = decoder.layers_for_loop()

    @jax.jit
    def loop() -> tuple[KVCache, jax.Array]:
        def step(cache: KVCache, token: jax.Array) -> tuple[KVCache, jax.Array]:
            logits_BTV, cache = decoder.decode(token[None, None], cache, layers=layers)
            return cache, logits_BTV[0, 0]

        return jax.lax.scan(step, init_cache(decoder.config, 1, 21), TOKENS[0])

    assert_close(loop()[1], jax.jit(lambda: decoder(TOKENS[:1]))()[0])


def test_segments_are_rows_of_their_own() -> None:
    decoder = _decoder()
    positions_BT = jnp.concatenate([jnp.arange(8), jnp.arange(13)])[None]
    segment_ids_BT = jnp.array([[0] * 8 + [1] * 13])
    packed_BTV = jax.jit(lambda: decoder(TOKENS[:1], positions_BT, segment_ids_BT))()
    assert_close(packed_BTV[:, 8:], jax.jit(lambda: decoder(TOKENS[:1, 8:]))())


@pytest.mark.parametrize("remat", ["none", "full", "dots"])
def test_gradients_reach_every_layer(remat: str) -> None:
    """Derivatives along a random direction are differences of the loss, in all layers."""
    decoder = _decoder(dataclasses.replace(MODEL, remat=remat))
    graph, params = nnx.split(decoder)
    pure = nnx.to_pure_dict(params)

    @jax.jit
    def loss(pure: Any) -> jax.Array:
        state = jax.tree.unflatten(jax.tree.structure(params), jax.tree.leaves(pure))
        return jnp.mean(jax.nn.log_softmax(nnx.merge(graph, state)(TOKENS))[..., 3])

    gradient = jax.grad(loss)(pure)["blocks"]["attention"]["query"]
    query = pure["blocks"]["attention"]["query"]
    for layer in range(MODEL.num_layers):
        direction = jax.random.normal(jax.random.key(layer), query.shape[1:])
        step = 1e-4 * jnp.zeros_like(query).at[layer].set(direction)

        def moved(step: jax.Array) -> float:
            attention = pure["blocks"]["attention"] | {"query": query + step}
            return float(loss(pure | {"blocks": pure["blocks"] | {"attention": attention}}))

        difference = (moved(step) - moved(-step)) / 2
        # curvature, and the loss's rounding over a small difference
        assert float(jnp.vdot(gradient, step)) == pytest.approx(difference, rel=0.02, abs=3e-6)


def test_compile_time_does_not_grow_with_depth() -> None:
    def lines(num_layers: int) -> int:
        config = dataclasses.replace(MODEL, num_layers=num_layers)
        graph, params = nnx.split(nnx.eval_shape(lambda: Decoder(config, SPEC, rngs=nnx.Rngs(0))))
        lowered = jax.jit(lambda params: nnx.merge(graph, params)(TOKENS)).lower(params)
        return len(lowered.as_text().splitlines())

    assert lines(8) == lines(24)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"layer_types": ("local",)}, "layer_types has the unknown name 'local'"),
        ({"layer_types": ()}, "layer_types has 0 entries but num_layers=7"),
        ({"layer_types": ("nope",) * 8, "sliding_window": None}, "8 entries but num_layers=7"),
        ({"layer_types": "nope"}, "layer_types='nope' must be a list of strings"),
        ({"sliding_window": None}, "sliding_window is not set, but layer_types has"),
        ({"layer_types": ("nope",)}, "sliding_window=5 has no effect without"),
        ({"sliding_window": 0}, "sliding_window=0 must be at least 1"),
        ({"qk_norm": "heads"}, "choose one of none, head, all_heads"),
        ({"norm_placement": "pre"}, "choose one of before, after, both"),
        ({"residual_scale": 0.0}, "residual_scale=0.0 must be greater than 0"),
    ],
)
def test_refuses(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(MODEL, **fields)


def test_a_list_and_its_pattern_are_one_model() -> None:
    listed = dataclasses.replace(MODEL, layer_types=[*PATTERN, *PATTERN[:3]])
    assert listed == MODEL
    assert hash(listed) == hash(MODEL)
    assert listed.layer_types == PATTERN
    assert dataclasses.replace(MODEL, num_layers=4).layer_types == PATTERN
