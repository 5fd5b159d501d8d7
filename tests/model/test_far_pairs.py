"""Attention in which far pairs have other positions, against a table of logits built by hand."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from rrope_jax.model import Decoder, KVCache, ModelConfig, init_cache
from rrope_jax.model.attention import chunked
from rrope_jax.model.attention.call import CallShape, FarPairs
from rrope_jax.model.attention.choice import attention, choose
from rrope_jax.model.attention.chunked import chunked_attention
from rrope_jax.model.attention.mask import CausalMask
from rrope_jax.model.cache import cache_bytes
from rrope_jax.model.platform.operations import Chunks
from rrope_jax.rope import RopeSpec
from tests.closeness import assert_close
from tests.posgen.conftest import quick_compilation as quick_compilation

pytestmark = pytest.mark.usefixtures("quick_compilation")

T = 21
TOKENS = jnp.asarray(np.random.default_rng(0).integers(0, 29, (2, T)), jnp.int32)
SPECS = {
    "self_extend": RopeSpec(head_dim=4, far_positions="self_extend", far_window=5, far_group=3),
    "resonance_jet_long_yarn": RopeSpec(
        head_dim=4,
        theta=100.0,
        scaling="yarn",
        factor=2.0,
        original_context=8,
        resonance=True,
        far_positions="jet_long",
        far_window=3,
        far_context=8,
        llama_4_scaling_beta=0.3,
    ),
}


def _random(seed: int, *shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def _reference(
    arrays: list[np.ndarray], visible_BTS: np.ndarray, is_far_BTS: np.ndarray
) -> np.ndarray:
    """In float64, pair by pair: one softmax over the logits of both kinds."""
    q, k, v, far_q, far_k = (np.asarray(each, np.float64) for each in arrays)
    group = q.shape[2] // k.shape[2]
    k, v, far_k = (np.repeat(each, group, axis=2) for each in (k, v, far_k))
    near = np.einsum("btnh,bsnh->bnts", q, k)
    far = np.einsum("btnh,bsnh->bnts", far_q, far_k)
    logits = np.where(is_far_BTS[:, None], far, near)
    weights = np.where(visible_BTS[:, None], np.exp(logits - logits.max(-1, keepdims=True)), 0)
    return np.einsum("bnts,bsnh->btnh", weights / weights.sum(-1, keepdims=True), v)


MASKS = {
    "whole rows": (CausalMask(), 13, 13),
    "a sliding window": (CausalMask(window=9), 13, 13),
    "continued": (CausalMask(start_B=jnp.array([0, 6])), 7, 13),
    "one query": (CausalMask(start_B=jnp.array([3, 12])), 1, 13),
    "segments": (CausalMask(jnp.array([[0] * 7 + [1] * 6, [0] * 2 + [1] * 11])), 13, 13),
}


def _arrays(queries: int, keys: int) -> list[jax.Array]:
    """Queries, keys and values, and those of far pairs; two queries share a key head."""
    shapes = ((queries, 4), (keys, 2), (keys, 2), (queries, 4), (keys, 2))
    return [_random(seed, 2, length, heads, 6) for seed, (length, heads) in enumerate(shapes)]


def _chunked(mask: CausalMask, chunks: Chunks, window: Any) -> Any:
    def run(q: Any, k: Any, v: Any, far_q: Any, far_k: Any) -> jax.Array:
        places = (mask.start_B, mask.segment_ids_BT, mask.key_segments)
        far = FarPairs(far_q, far_k, window)
        return chunked_attention(q, k, v, *places, chunks, mask.window, far)

    return run


def _dense(mask: CausalMask, window: Any) -> Any:
    def run(q: Any, k: Any, v: Any, far_q: Any, far_k: Any) -> jax.Array:
        far = FarPairs(far_q, far_k, window)
        return attention(q, k, v, mask, implementation="xla", far=far)

    return run


@pytest.mark.smoke
@pytest.mark.parametrize("window", [1, 4])
@pytest.mark.parametrize(("mask", "queries", "keys"), MASKS.values(), ids=MASKS)
def test_one_softmax_goes_over_near_and_far_pairs(
    mask: CausalMask, queries: int, keys: int, window: int
) -> None:
    arrays = _arrays(queries, keys)
    place = np.arange(queries)[None, :, None] + (
        0 if mask.start_B is None else np.asarray(mask.start_B)[:, None, None]
    )
    is_far = np.broadcast_to(place - np.arange(keys) >= window, (2, queries, keys))
    visible = np.broadcast_to(mask.dense(queries, keys), (2, queries, keys))
    expected = _reference([np.asarray(each) for each in arrays], visible, is_far)
    assert_close(jax.jit(_dense(mask, window))(*arrays), expected)
    for chunks in (Chunks(4, 3, True), Chunks(3, 4, False), Chunks(32, 32, True)):
        assert_close(jax.jit(_chunked(mask, chunks, window))(*arrays), expected)


@pytest.mark.parametrize("name", ["whole rows", "segments", "a sliding window"])
@pytest.mark.parametrize("one_by_one", [True, False])
def test_gradients_in_blocks_are_those_over_all_pairs(name: str, one_by_one: bool) -> None:
    """Under jit with a window that is an argument, as one program of many methods has it."""
    mask, queries, keys = MASKS[name]
    arrays, weights = _arrays(queries, keys), _random(9, 2, queries, 4, 6)

    def gradients(run: Any) -> Any:
        def loss(window: jax.Array, *arrays: jax.Array) -> jax.Array:
            return jnp.sum(run(window)(*arrays) * weights)

        return jax.jit(jax.grad(loss, (1, 2, 3, 4, 5)))(jnp.int32(4), *arrays)

    in_blocks = gradients(lambda window: _chunked(mask, Chunks(4, 3, one_by_one), window))
    for found, expected in zip(in_blocks, gradients(lambda w: _dense(mask, w)), strict=True):
        assert_close(found, expected)


def test_gradients_are_differences_of_the_reference() -> None:
    """Of a sum of outputs in float64, along a random direction in all five arrays."""
    arrays, weights = _arrays(13, 13), np.asarray(_random(9, 2, 13, 4, 6), np.float64)
    directions = [_random(20 + index, *each.shape) for index, each in enumerate(arrays)]
    distance = np.arange(13)[:, None] - np.arange(13)
    masks = [np.broadcast_to(each, (2, 13, 13)) for each in (distance >= 0, distance >= 4)]

    def loss(step: float) -> float:
        moved = [
            np.asarray(each, np.float64) + step * np.asarray(direction, np.float64)
            for each, direction in zip(arrays, directions, strict=True)
        ]
        return float(np.sum(_reference(moved, *masks) * weights))

    slope = (loss(1e-4) - loss(-1e-4)) / 2e-4
    run = _chunked(CausalMask(), Chunks(4, 3, True), 4)
    gradients = jax.jit(jax.grad(lambda *arrays: jnp.sum(run(*arrays) * weights), (0, 1, 2, 3, 4)))
    found = sum(
        float(jnp.sum(gradient * direction))
        for gradient, direction in zip(gradients(*arrays), directions, strict=True)
    )
    assert found == pytest.approx(slope, rel=1e-4)


def test_blocks_outside_of_both_bands_are_not_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every product of two blocks calls back: two in each block of each band."""
    calls = []
    product = chunked._product

    def counted(subscripts: str, x: jax.Array, y: jax.Array) -> jax.Array:
        jax.debug.callback(lambda: calls.append(subscripts))
        return product(subscripts, x, y)

    monkeypatch.setattr(chunked, "_product", counted)
    arrays = [_random(seed, 1, 32, 1, 4) for seed in range(5)]
    run = _chunked(CausalMask(window=20), Chunks(4, 4, True), 8)
    jax.block_until_ready(jax.jit(run)(*arrays))
    jax.effects_barrier()
    distance = np.arange(32)[:, None] - np.arange(32)
    near, far = (distance >= 0) & (distance < 8), (distance >= 8) & (distance < 20)
    blocks = [band.reshape(8, 4, 8, 4).any((1, 3)).sum() for band in (near, far)]
    assert len(calls) == 2 * sum(blocks)


def _decoder(spec: RopeSpec, **fields: Any) -> Decoder:
    shape: dict[str, Any] = {
        "vocab_size": 29,
        "d_model": 16,
        "num_layers": 3,
        "num_heads": 4,
        "num_kv_heads": 2,
        "d_ff": 24,
        "initializer_range": 0.5,
    }
    return Decoder(ModelConfig(**shape | fields), spec, rngs=nnx.Rngs(1))


def _logits(decoder: Decoder, length: int = T) -> jax.Array:
    logits: jax.Array = jax.jit(lambda: decoder(TOKENS[:, :length]))()
    return logits


PLANS: dict[str, dict[str, Any]] = {
    "a window with far pairs": {
        "layer_types": ("sliding_attention", "full_attention", "nope"),
        "sliding_window": 9,
    },
    "a window without": {
        "layer_types": ("sliding_attention", "full_attention"),
        "sliding_window": 3,
    },
}


@pytest.mark.parametrize(
    ("name", "plan", "implementation"),
    [
        ("self_extend", "a window with far pairs", "xla"),
        ("self_extend", "a window with far pairs", "chunked"),
        ("resonance_jet_long_yarn", "a window without", "xla"),
        pytest.param(
            "resonance_jet_long_yarn", "a window without", "chunked", marks=pytest.mark.heavy
        ),
    ],
)
def test_decoding_in_pieces_equals_the_whole(name: str, plan: str, implementation: str) -> None:
    decoder = _decoder(SPECS[name], attention=implementation, **PLANS[plan])
    expected, logits = _logits(decoder), []
    decode = jax.jit(lambda tokens_BT, cache: decoder.decode(tokens_BT, cache))
    cache, start = init_cache(decoder.config, 2, T, decoder.rope), 0
    for piece in (8, 1, 1, 8, 1, 1, 1):
        piece_logits, cache = decode(TOKENS[:, start : start + piece], cache)
        logits.append(piece_logits)
        start += piece
    assert_close(jnp.concatenate(logits, axis=1), expected)


def test_padding_leaves_no_trace() -> None:
    """Rows of 4 and 16 tokens, read in pieces of 8 with padding, each go on as if alone."""
    decoder = _decoder(SPECS["self_extend"], **PLANS["a window with far pairs"])
    expected_BTV = _logits(decoder)
    lengths = np.array([4, 16])
    padded_BT = jnp.where(np.arange(16) < lengths[:, None], TOKENS[:, :16], 0)

    @jax.jit
    def decode(tokens_BT: jax.Array, cache: KVCache, count_B: jax.Array | None = None) -> Any:
        return decoder.decode(tokens_BT, cache, count_B=count_B)

    cache = init_cache(decoder.config, 2, T, decoder.rope)
    for start in (0, 8):
        count_B = jnp.asarray(np.clip(lengths - start, 0, 8), jnp.int32)
        _, cache = decode(padded_BT[:, start : start + 8], cache, count_B)
    for step in range(4):
        place_B = lengths + step
        logits_B1V, cache = decode(TOKENS[jnp.arange(2), place_B][:, None], cache)
        assert_close(logits_B1V[:, 0], expected_BTV[jnp.arange(2), place_B])


def test_far_positions_change_the_tokens_that_see_far_ones_only() -> None:
    plain, extended = (
        _logits(_decoder(spec)) for spec in (RopeSpec(head_dim=4), SPECS["self_extend"])
    )
    assert_close(extended[:, :5], plain[:, :5])
    # the pairs (5, 0) and (6, 1) happen to be as far apart as they were
    assert np.abs(extended[:, 7:] - plain[:, 7:]).max(-1).min() > 1e-3
    # rows without any far pair are computed as if there were no such method
    short = _logits(_decoder(SPECS["self_extend"]), 5)
    np.testing.assert_array_equal(short, _logits(_decoder(RopeSpec(head_dim=4)), 5))


def test_a_cache_holds_far_keys_where_there_are_far_pairs() -> None:
    decoder = _decoder(SPECS["self_extend"], **PLANS["a window without"])
    cache = init_cache(decoder.config, 2, T, decoder.rope)
    assert cache.far_key_LBKSH is not None
    assert cache.far_key_LBKSH.shape == cache.key_LBKSH.shape
    assert cache.far_window_key_LBKWH is None
    assert init_cache(decoder.config, 2, 5, decoder.rope).far_key_LBKSH is None
    without = cache_bytes(decoder.config, 2, T)
    assert cache_bytes(decoder.config, 2, T, decoder.rope) == without + cache.far_key_LBKSH.nbytes


def test_a_cache_without_far_keys_is_refused() -> None:
    decoder = _decoder(SPECS["self_extend"])
    cache = init_cache(decoder.config, 2, T)
    with pytest.raises(
        ValueError, match="no keys for the far pairs of full_attention layers; make"
    ):
        jax.eval_shape(lambda: decoder.decode(TOKENS, cache))


def test_fused_kernels_are_not_chosen_and_say_why(monkeypatch: pytest.MonkeyPatch) -> None:
    shape = CallShape(B=1, T=4096, S=4096, N=2, K=2, H=64, dtype=np.dtype(jnp.bfloat16), far=True)
    for platform, name in (("tpu", "splash"), ("gpu", "cudnn")):
        monkeypatch.setattr(
            "rrope_jax.model.platform.operations.backend_platform", lambda here=platform: here
        )
        assert choose(shape).name == "chunked"
        with pytest.raises(ValueError, match=f"'{name}' cannot be used here: it has one rotation"):
            choose(shape, name)


def test_rows_are_not_split_over_devices() -> None:
    shape = CallShape(B=1, T=64, S=64, N=2, K=2, H=64, dtype=np.dtype("float32"), far=True)
    axes = {"data": 1, "fsdp": 1, "tensor": 1, "seq": 2}
    mesh = jax.sharding.AbstractMesh(tuple(axes.values()), tuple(axes))
    with jax.sharding.use_abstract_mesh(mesh), pytest.raises(ValueError, match=r"set mesh\.seq=1"):
        choose(shape)
