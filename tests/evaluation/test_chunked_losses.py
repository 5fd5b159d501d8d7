"""Losses of rows that go through the model in chunks."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from rrope_jax.evaluation.chunked_losses import ChunkedLosses
from rrope_jax.evaluation.perplexity import Losses, Perplexity, PerplexitySetting
from rrope_jax.evaluation.units import run_units
from rrope_jax.model import init_cache
from rrope_jax.model.decoder import abstract_decoder
from rrope_jax.rope import RopeSpec
from tests.closeness import assert_close
from tests.evaluation.tiny import Memory, random_tokens, tiny_decoder

TOKENS = np.stack([random_tokens(1, 40), random_tokens(2, 40)])


@pytest.mark.parametrize(
    ("fields", "window"),
    [
        ({"scaling": "yarn", "factor": 4.0, "original_context": 16, "resonance": True}, 6),
        pytest.param(
            {"scaling": "dynamic_ntk", "factor": 2.0, "original_context": 16},
            None,
            marks=pytest.mark.heavy,
        ),
        ({"far_positions": "self_extend", "far_window": 8, "far_group": 4}, 12),
        pytest.param(
            {"far_positions": "jet_long", "far_window": 8, "far_context": 16},
            None,
            marks=pytest.mark.heavy,
        ),
    ],
)
def test_chunks_give_the_losses_of_a_whole_pass(fields: dict[str, Any], window: int | None) -> None:
    """Of windows too, which are smaller than a chunk, and of far pairs; the last chunk is cut."""
    decoder = tiny_decoder(RopeSpec(head_dim=8, **fields), sliding_window=window)
    whole = Losses(decoder)(TOKENS)
    chunked = ChunkedLosses(decoder, chunk=13 if window else 10)
    assert_close(chunked(TOKENS), whole)
    at_S = np.array([3, 10, 14, 39])  # one chunk predicts nothing
    if fields.get("resonance"):
        assert_close(chunked(TOKENS, at_S), whole[:, at_S - 1])


def _avals(jaxpr: Any) -> Iterator[Any]:
    for equation in jaxpr.eqns:
        yield from (each.aval for each in equation.outvars)
        for value in jax.tree.leaves(list(equation.params.values())):
            if hasattr(value, "jaxpr"):
                yield from _avals(value.jaxpr)
            elif hasattr(value, "eqns"):
                yield from _avals(value)


def test_nothing_grows_with_the_square_of_a_row_nor_has_all_logits() -> None:
    T, chunk, V = 1 << 15, 1024, 4096
    config = dataclasses.replace(tiny_decoder(sliding_window=64).config, vocab_size=V)
    decoder = abstract_decoder(config, RopeSpec(head_dim=8))
    losses = ChunkedLosses(decoder, chunk=chunk, logits_chunk=chunk)
    cache = jax.eval_shape(lambda: init_cache(config, 1, T))
    tokens_BC = jax.ShapeDtypeStruct((1, chunk), jnp.int32)
    traced = losses._run.trace(nnx.split(decoder)[1], tokens_BC, tokens_BC, cache)
    sizes = [aval.size for aval in _avals(traced.jaxpr.jaxpr) if hasattr(aval, "size")]
    assert len(sizes) > 100
    whole_layers = 2 * T * config.kv_heads * config.head_size
    assert max(sizes) <= max(whole_layers, 4 * chunk * V)
    assert max(sizes) < T * V / 8
    assert cache.window_key_LBKWH.shape[3] == 64


def test_perplexity_by_the_setting() -> None:
    decoder = tiny_decoder()
    results = []
    for chunk in (None, 16):
        setting = PerplexitySetting(contexts=(16, 40), chunk=chunk)
        benchmark, store = Perplexity(setting, decoder, [("a", TOKENS[0])]), Memory()
        run_units(benchmark.units, store)
        results.append((benchmark.units[0].name, benchmark.results(store)["perplexity"]))
    (whole_name, whole), (name, chunked) = results
    assert name != whole_name
    for one, other in zip(whole, chunked, strict=True):
        assert one["tokens"] == other["tokens"]
        assert other["loss"] == pytest.approx(one["loss"], rel=2e-5)
    with pytest.raises(ValueError, match="chunk=0 must be at least 1"):
        PerplexitySetting(chunk=0)
