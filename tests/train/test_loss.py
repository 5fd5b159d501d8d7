"""The chunked cross-entropy against optax's on whole logits."""

import dataclasses

import jax
import jax.numpy as jnp
import optax
import pytest
from flax import nnx

from rrope_jax.model import Decoder
from rrope_jax.model.presets import PRESETS
from rrope_jax.train.loss import next_token_losses
from tests.closeness import assert_close

TINY = PRESETS["tiny"]
B, T = 2, 13


@pytest.fixture(scope="module")
def batch() -> tuple[Decoder, jax.Array, jax.Array]:
    decoder = Decoder(TINY.model, TINY.rope, rngs=nnx.Rngs(0))
    keys = jax.random.split(jax.random.key(1))
    hidden_BTD = jax.random.normal(keys[0], (B, T, TINY.model.d_model))
    targets_BT = jax.random.randint(keys[1], (B, T), 0, TINY.model.vocab_size)
    return decoder, hidden_BTD, targets_BT


# less than a token of each row, one of each, uneven, exactly half, and all of them or more
@pytest.mark.parametrize("chunk", [1, 2, 6, 14, 25, 26, 1000])
def test_losses_are_those_of_whole_logits(
    batch: tuple[Decoder, jax.Array, jax.Array], chunk: int
) -> None:
    decoder, hidden_BTD, targets_BT = batch
    expected_BT = optax.softmax_cross_entropy_with_integer_labels(
        decoder.logits(hidden_BTD), targets_BT
    )
    found_BT = next_token_losses(decoder, hidden_BTD, targets_BT, chunk=chunk)
    assert found_BT.dtype == jnp.float32
    assert_close(found_BT, expected_BT)


@pytest.mark.parametrize("chunk", [2, 6, 1000])
def test_gradients_are_those_of_whole_logits(
    batch: tuple[Decoder, jax.Array, jax.Array], chunk: int
) -> None:
    decoder, hidden_BTD, targets_BT = batch
    graph, params = nnx.split(decoder)
    weights_BT = jax.random.uniform(jax.random.key(2), (B, T))

    @jax.jit
    def chunked(params: nnx.State, hidden_BTD: jax.Array) -> jax.Array:
        decoder = nnx.merge(graph, params)
        return (next_token_losses(decoder, hidden_BTD, targets_BT, chunk=chunk) * weights_BT).sum()

    @jax.jit
    def whole(params: nnx.State, hidden_BTD: jax.Array) -> jax.Array:
        logits_BTV = nnx.merge(graph, params).logits(hidden_BTD)
        losses_BT = optax.softmax_cross_entropy_with_integer_labels(logits_BTV, targets_BT)
        return (losses_BT * weights_BT).sum()

    found = jax.grad(chunked, argnums=(0, 1))(params, hidden_BTD)
    expected = jax.grad(whole, argnums=(0, 1))(params, hidden_BTD)
    for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert_close(ours, theirs)


def test_memory_is_that_of_a_chunk() -> None:
    """Of the program that XLA compiles, forward and backward."""
    model = dataclasses.replace(TINY.model, vocab_size=2048)
    graph, params = nnx.split(Decoder(model, TINY.rope, rngs=nnx.Rngs(0)))
    tokens = 1024

    def temporary_bytes(chunk: int) -> int:
        def total(params: nnx.State, hidden_BTD: jax.Array, targets_BT: jax.Array) -> jax.Array:
            decoder = nnx.merge(graph, params)
            return next_token_losses(decoder, hidden_BTD, targets_BT, chunk=chunk).sum()

        hidden_BTD = jnp.zeros((B, tokens, model.d_model))
        targets_BT = jnp.zeros((B, tokens), jnp.int32)
        program = jax.jit(jax.grad(total, argnums=(0, 1)))
        memory = program.lower(params, hidden_BTD, targets_BT).compile().memory_analysis()
        assert memory is not None
        return memory.temp_size_in_bytes

    logits_bytes = B * tokens * model.vocab_size * 4
    assert temporary_bytes(B * tokens) > logits_bytes
    assert temporary_bytes(64) < logits_bytes / 4


def test_chunk_must_be_positive(batch: tuple[Decoder, jax.Array, jax.Array]) -> None:
    with pytest.raises(ValueError, match="chunk=0 must be at least 1"):
        next_token_losses(*batch, chunk=0)
