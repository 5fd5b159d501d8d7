"""Decoding with a cache against the forward pass of whole sequences."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from rrope_jax.model import Decoder, KVCache, ModelConfig, init_cache
from rrope_jax.model.cache import cache_bytes
from rrope_jax.model.presets import PRESETS
from rrope_jax.rope import RopeSpec
from tests.closeness import assert_close

TOKENS = jnp.asarray(np.random.default_rng(0).integers(0, 29, (2, 9)), jnp.int32)
SPECS = {
    "none": RopeSpec(head_dim=4),
    "resonance_yarn": RopeSpec(
        head_dim=4, theta=100.0, scaling="yarn", factor=4.0, original_context=8, resonance=True
    ),
    "log_n": RopeSpec(head_dim=4, position_temperature="log_n", temperature_context=2),
}


def _decoder(spec: RopeSpec = SPECS["none"], **fields: Any) -> Decoder:
    shape: dict[str, Any] = {
        "vocab_size": 29,
        "d_model": 16,
        "num_layers": 2,
        "num_heads": 4,
        "d_ff": 24,
        "initializer_range": 0.5,
    }
    return Decoder(ModelConfig(**shape | fields), spec, rngs=nnx.Rngs(1))


def _in_pieces(
    decoder: Decoder, pieces: tuple[int, ...], capacity: int
) -> tuple[jax.Array, KVCache]:
    """Logits of TOKENS, decoded by so many tokens at a time."""
    decode = jax.jit(lambda tokens_BT, cache: decoder.decode(tokens_BT, cache))
    cache = init_cache(decoder.config, len(TOKENS), capacity)
    logits, start = [], 0
    for piece in pieces:
        piece_logits, cache = decode(TOKENS[:, start : start + piece], cache)
        logits.append(piece_logits)
        start += piece
    return jnp.concatenate(logits, axis=1), cache


@pytest.mark.smoke
@pytest.mark.parametrize(("name", "kv_heads"), [("none", 2), ("resonance_yarn", 1), ("log_n", 2)])
def test_prompt_and_steps_equal_the_whole(kv_heads: int, name: str) -> None:
    decoder = _decoder(SPECS[name], num_kv_heads=kv_heads)
    expected = jax.jit(lambda: decoder(TOKENS))()
    for pieces in ((5, 1, 1, 1, 1), (4, 3, 2)):
        logits, cache = _in_pieces(decoder, pieces, capacity=12)
        assert_close(logits, expected)
        np.testing.assert_array_equal(cache.length_B, [9, 9])
        assert cache.capacity == 12


def test_rows_of_different_lengths() -> None:
    """A batch whose rows are 4 and 7 tokens long continues each as if it were alone."""
    decoder = _decoder()
    decode = jax.jit(lambda tokens_BT, cache: decoder.decode(tokens_BT, cache))
    padded_BT = TOKENS[:, :7].at[0, 4:].set(0)
    _, cache = decode(padded_BT, init_cache(decoder.config, 2, 10))
    cache = cache._replace(length_B=jnp.array([4, 7]))  # what the padding wrote is overwritten
    expected_BTV = jax.jit(lambda: decoder(TOKENS))()
    for step in range(2):
        place_B = jnp.array([4, 7]) + step
        logits_B1V, cache = decode(TOKENS[jnp.arange(2), place_B][:, None], cache)
        assert_close(logits_B1V[:, 0], expected_BTV[jnp.arange(2), place_B])
    np.testing.assert_array_equal(cache.length_B, [6, 9])


def test_given_positions() -> None:
    decoder = _decoder()
    positions_BT = jnp.stack([jnp.arange(9) * 2, jnp.arange(9) + 100])
    expected = jax.jit(lambda: decoder(TOKENS, positions_BT))()
    decode = jax.jit(lambda tokens_BT, cache, at_BT: decoder.decode(tokens_BT, cache, at_BT))
    cache, pieces = init_cache(decoder.config, 2, 9), []
    for start in (0, 3, 6):
        piece = slice(start, start + 3)
        logits, cache = decode(TOKENS[:, piece], cache, positions_BT[:, piece])
        pieces.append(logits)
    assert_close(jnp.concatenate(pieces, axis=1), expected)


def test_in_bfloat16() -> None:
    decoder = _decoder(compute_dtype="bfloat16", num_kv_heads=2, initializer_range=0.2)
    expected = jax.jit(lambda: decoder(TOKENS))()
    logits, cache = _in_pieces(decoder, (7, 1, 1), capacity=9)
    assert cache.key_LBKSH.dtype == cache.value_LBKSH.dtype == jnp.bfloat16
    assert logits.dtype == jnp.float32
    np.testing.assert_allclose(logits, expected, rtol=0, atol=0.02 * np.abs(expected).max())


def test_a_cache_holds_key_heads_only() -> None:
    cache = init_cache(_decoder(num_kv_heads=1).config, batch_size=3, capacity=7)
    assert cache.key_LBKSH.shape == cache.value_LBKSH.shape == (2, 3, 1, 7, 4)
    np.testing.assert_array_equal(cache.length_B, [0, 0, 0])


def test_scaling_by_length_is_that_of_the_capacity() -> None:
    """Keys in the cache stay as they were rotated, so the tables must not change on the way."""
    spec = RopeSpec(head_dim=4, scaling="dynamic_ntk", factor=2.0, original_context=8)
    decoder = _decoder(spec)
    logits, _ = _in_pieces(decoder, (4, 5), capacity=16)
    stretched = _decoder(
        RopeSpec(head_dim=4, theta=10000 * (2 * 16 / 8 - 1) ** 2)  # d / (d - 2) = 2
    )
    assert_close(logits, jax.jit(lambda: stretched(TOKENS))())


def test_decoding_needs_an_attention_that_can() -> None:
    decoder = _decoder(attention="cudnn", compute_dtype="bfloat16")
    cache = init_cache(decoder.config, 2, 9)
    with pytest.raises(ValueError, match="attention='cudnn' cannot be used here"):
        jax.eval_shape(lambda: decoder.decode(TOKENS, cache))


def test_decoding_with_the_layers_cut_out_before() -> None:
    """In a loop over tokens, one row, which takes other products than many rows."""
    decoder = _decoder(num_kv_heads=2, tie_embeddings=True)
    expected_BTV = jax.jit(lambda: decoder(TOKENS[:1]))()

    layers = decoder.layers_for_loop()

    @jax.jit
    def loop() -> tuple[KVCache, jax.Array]:
        def step(cache: KVCache, token: jax.Array) -> tuple[KVCache, jax.Array]:
            logits_BTV, cache = decoder.decode(token[None, None], cache, layers=layers)
            return cache, logits_BTV[0, 0]

        return jax.lax.scan(step, init_cache(decoder.config, 1, 9), TOKENS[0])

    cache, logits_TV = loop()
    assert_close(logits_TV, expected_BTV[0])
    np.testing.assert_array_equal(cache.length_B, [9])


def test_layers_cut_out_share_the_memory_of_the_stack() -> None:
    decoder = _decoder()
    layers = decoder.layers_for_loop()
    if layers is None:
        pytest.skip(f"on {jax.default_backend()}, layers stay in their stack")
    stack = decoder.blocks.feed_forward.up[...]
    begin, size = stack.unsafe_buffer_pointer(), stack.nbytes // len(layers)
    assert size % 64 == 0
    arrays = [layer.feed_forward.up[...] for layer in layers]
    addresses = [array.unsafe_buffer_pointer() for array in arrays]
    if begin % 64 == 0:
        assert addresses == [begin + index * size for index in range(len(layers))]
    np.testing.assert_array_equal(jnp.stack(arrays), stack)


def test_the_memory_of_sliding_layers_does_not_grow() -> None:
    """Gemma 3 270M: 3 layers see everything, 15 have rings of 512; a head of 256, float32."""
    model = PRESETS["gemma3_270m"].model
    of_token = 2 * 256 * 4
    for capacity in (2048, 32_768):
        assert cache_bytes(model, 1, capacity) == of_token * (3 * capacity + 15 * 512) + 4
    assert cache_bytes(model, 2, 100) == 2 * (of_token * 18 * 100 + 4)
    everywhere = model.changed({"layer_types": ("full_attention",)})
    assert cache_bytes(model, 1, 32_768) / cache_bytes(everywhere, 1, 32_768) < 0.18
