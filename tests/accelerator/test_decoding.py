"""Decoding with a cache on the device against its forward pass of whole rows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from rrope_jax.evaluation.generation import Generator
from rrope_jax.model import Decoder, ModelConfig, init_cache
from rrope_jax.rope import RopeSpec

pytestmark = [pytest.mark.accelerator, pytest.mark.slow]

B, T, PROMPT = 2, 48, 40
SPEC = RopeSpec(head_dim=16, scaling="yarn", factor=4.0, original_context=16, resonance=True)
# Of the largest logit. In float32, sums of another length. In bfloat16, of which a unit is 2^-8,
# two layers round some ten times.
TOLERANCES = {"float32": 2e-5, "bfloat16": 2.0**-5}


def _decoder(dtype: str) -> Decoder:
    config = ModelConfig(
        vocab_size=64,
        d_model=64,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        d_ff=128,
        compute_dtype=dtype,
        initializer_range=0.2,
    )
    return Decoder(config, SPEC, rngs=nnx.Rngs(1))


TOKENS = np.random.default_rng(0).integers(0, 64, (B, T)).astype(np.int32)


@pytest.mark.parametrize("dtype", TOLERANCES)
def test_prompt_and_tokens_are_the_whole(dtype: str) -> None:
    decoder = _decoder(dtype)
    with jax.default_matmul_precision("float32"):
        whole = np.asarray(jax.jit(lambda: decoder(jnp.asarray(TOKENS)))(), np.float32)
        decode = jax.jit(lambda tokens_BT, cache: decoder.decode(tokens_BT, cache))
        logits, cache = decode(TOKENS[:, :PROMPT], init_cache(decoder.config, B, T))
        pieces = [logits]
        for place in range(PROMPT, T):
            logits, cache = decode(TOKENS[:, place : place + 1], cache)
            pieces.append(logits)
    decoded = np.concatenate([np.asarray(x, np.float32) for x in pieces], axis=1)
    error = np.max(np.abs(decoded - whole)) / np.max(np.abs(whole))
    assert error <= TOLERANCES[dtype], f"{error:.2e} of the largest logit"


def test_greedy_tokens_are_the_most_probable_ones() -> None:
    """Those that the forward pass of the whole text prefers, or as good as prefers."""
    decoder, prompt = _decoder("float32"), TOKENS[0, :PROMPT].tolist()
    with jax.default_matmul_precision("float32"):
        generator = Generator(decoder)
        cache = generator.read([prompt], capacity=T)
        (written,) = generator.generate(prompt[-1:], cache, max_tokens=T - PROMPT)
        text = jnp.asarray([[*prompt, *written]], jnp.int32)
        logits = np.asarray(jax.jit(lambda: decoder(text))())[0, PROMPT - 1 : -1]
    assert len(written) == T - PROMPT
    chosen = logits[np.arange(len(written)), written]
    np.testing.assert_array_less(logits.max(axis=-1) - chosen, 1e-3)
