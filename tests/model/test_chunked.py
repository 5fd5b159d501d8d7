"""Attention in blocks against attention over all pairs, and what it saves."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rrope_jax.model.attention import chunked
from rrope_jax.model.attention.choice import attention
from rrope_jax.model.attention.chunked import chunked_attention
from rrope_jax.model.attention.mask import CausalMask
from rrope_jax.model.platform.operations import Chunks

SCALE = 0.6


def _random(seed: int, *shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def _outputs_and_gradients(run: Any, *qkv: jax.Array) -> list[jax.Array]:
    def differentiated(*qkv: jax.Array) -> list[jax.Array]:
        out, pull = jax.vjp(run, *qkv)
        gradient = jnp.sin(jnp.arange(out.size, dtype=jnp.float32)).reshape(out.shape)
        return [out, *pull(gradient.astype(out.dtype))]

    outputs: list[jax.Array] = jax.jit(differentiated)(*qkv)
    return outputs


def _both(
    q: jax.Array, k: jax.Array, v: jax.Array, mask: CausalMask, chunks: Chunks
) -> tuple[list[jax.Array], list[jax.Array]]:
    def chunked(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        segments = (mask.segment_ids_BT, mask.key_segments)
        return chunked_attention(q * SCALE, k, v, mask.start_B, *segments, chunks, mask.window)

    def over_all_pairs(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        return attention(q * SCALE, k, v, mask, implementation="xla")

    return _outputs_and_gradients(chunked, q, k, v), _outputs_and_gradients(over_all_pairs, q, k, v)


def _check(q: jax.Array, k: jax.Array, v: jax.Array, mask: CausalMask, chunks: Chunks) -> None:
    for result, expected in zip(*_both(q, k, v, mask, chunks), strict=True):
        np.testing.assert_allclose(result, expected, rtol=0, atol=2e-6 * np.abs(expected).max())


@pytest.mark.smoke
@pytest.mark.parametrize("one_by_one", [True, False])
@pytest.mark.parametrize(("query_block", "key_block"), [(4, 6), (32, 32)])
def test_causal(query_block: int, key_block: int, one_by_one: bool) -> None:
    """Length 13 fills no block; two queries per key head; the largest blocks exceed it."""
    q, k, v = _random(0, 2, 13, 4, 6), _random(1, 2, 13, 2, 6), _random(2, 2, 13, 2, 6)
    _check(q, k, v, CausalMask(), Chunks(query_block, key_block, one_by_one))


@pytest.mark.parametrize("one_by_one", [True, False])
def test_segments(one_by_one: bool) -> None:
    """Also such that come back, and different ones in the rows of a batch."""
    q, k, v = _random(0, 3, 13, 3, 4), _random(1, 3, 13, 1, 4), _random(2, 3, 13, 1, 4)
    segments = jnp.array(
        [
            [0, 0, 0, 1, 1, 1, 1, 1, 1, 2, 3, 3, 3],
            [5, 5, 2, 2, 2, 5, 5, -1, -1, -1, 2, 2, 5],
            [7] * 13,
        ]
    )
    _check(q, k, v, CausalMask(segment_ids_BT=segments), Chunks(4, 2, one_by_one))


@pytest.mark.parametrize("one_by_one", [True, False])
def test_segments_of_keys(one_by_one: bool) -> None:
    """Keys whose ids are not those of the queries at the same place."""
    q, k, v = _random(0, 2, 13, 2, 4), _random(1, 2, 13, 2, 4), _random(2, 2, 13, 2, 4)
    segments = jnp.array([[1] * 5 + [2] * 8, [3] * 13])
    of_keys = jnp.array([[1, 2] * 6 + [1], [3, 9, 9, 3, 9, 9, 9, 9, 9, 9, 9, 3, 9]])
    _check(q, k, v, CausalMask(segments, of_keys), Chunks(4, 2, one_by_one))


def test_a_query_that_sees_nothing_is_finite() -> None:
    q, k, v = _random(0, 1, 6, 1, 4), _random(1, 1, 6, 1, 4), _random(2, 1, 6, 1, 4)
    mask = CausalMask(jnp.array([[5, 1, 1, 1, 1, 5]]), jnp.array([[1, 1, 1, 1, 1, 5]]))
    for result in _both(q, k, v, mask, Chunks(2, 2, one_by_one=True))[0]:
        assert jnp.isfinite(result).all()


@pytest.mark.parametrize("one_by_one", [True, False])
def test_continued_sequences(one_by_one: bool) -> None:
    """A prompt of 5 tokens after 0, 4 and 9 cached ones, with room left in the cache."""
    q, k, v = _random(0, 3, 5, 2, 4), _random(1, 3, 17, 2, 4), _random(2, 3, 17, 2, 4)
    _check(q, k, v, CausalMask(start_B=jnp.array([0, 4, 9])), Chunks(2, 3, one_by_one))


@pytest.mark.parametrize("one_by_one", [True, False])
def test_a_piece_of_packed_rows(one_by_one: bool) -> None:
    """Queries from places 5 and 8 of rows of 13 tokens, one of them in the midst of a document."""
    q, k, v = _random(0, 2, 5, 2, 4), _random(1, 2, 13, 1, 4), _random(2, 2, 13, 1, 4)
    keys = jnp.array([[0] * 3 + [1] * 6 + [2] + [3] * 3, [5] * 2 + [2] * 3 + [5] * 6 + [6] * 2])
    queries = jnp.stack([keys[0, 5:10], keys[1, 8:13]])
    mask = CausalMask(queries, keys, start_B=jnp.array([5, 8]))
    _check(q, k, v, mask, Chunks(2, 3, one_by_one))


@pytest.mark.parametrize("one_by_one", [True, False])
@pytest.mark.parametrize(("query_block", "key_block"), [(3, 2), (4, 6)])
@pytest.mark.parametrize("window", [2, 6])
def test_windows(window: int, query_block: int, key_block: int, one_by_one: bool) -> None:
    """Of less and of more than a block; 13 tokens, two queries per key head."""
    q, k, v = _random(0, 2, 13, 4, 6), _random(1, 2, 13, 2, 6), _random(2, 2, 13, 2, 6)
    _check(q, k, v, CausalMask(window=window), Chunks(query_block, key_block, one_by_one))


def test_in_a_window_of_one_token_values_are_the_result() -> None:
    q, k, v = _random(0, 2, 13, 4, 6), _random(1, 2, 13, 2, 6), _random(2, 2, 13, 2, 6)
    result = chunked_attention(q, k, v, None, None, None, Chunks(4, 3, False), 1)
    np.testing.assert_allclose(result, np.repeat(v, 2, axis=2), rtol=1e-6)


@pytest.mark.parametrize("one_by_one", [True, False])
@pytest.mark.parametrize("window", [2, 5])
def test_windows_of_segments(window: int, one_by_one: bool) -> None:
    """Some segments are shorter than the window, and others longer."""
    q, k, v = _random(0, 2, 13, 2, 4), _random(1, 2, 13, 1, 4), _random(2, 2, 13, 1, 4)
    segments = jnp.array([[0] * 3 + [1] * 7 + [2] + [3] * 2, [5, 5, 2, 2, 5, 5, 5] + [2] * 6])
    _check(q, k, v, CausalMask(segments, window=window), Chunks(4, 2, one_by_one))


@pytest.mark.parametrize("one_by_one", [True, False])
def test_windows_of_continued_sequences(one_by_one: bool) -> None:
    """A prompt of 5 tokens after 0, 4 and 9 cached ones, with room left in the cache."""
    q, k, v = _random(0, 3, 5, 2, 4), _random(1, 3, 17, 2, 4), _random(2, 3, 17, 2, 4)
    for window in (3, 7):
        mask = CausalMask(start_B=jnp.array([0, 4, 9]), window=window)
        _check(q, k, v, mask, Chunks(2, 3, one_by_one))


@pytest.mark.parametrize("one_by_one", [True, False])
def test_a_prompt_after_a_ring(one_by_one: bool) -> None:
    """5 tokens after a ring of 6, of which 6, 2 and no entries are valid."""
    q, k, v = _random(0, 3, 5, 2, 4), _random(1, 3, 11, 2, 4), _random(2, 3, 11, 2, 4)
    keys = jnp.array([[0] * 11, [-1] * 4 + [0] * 7, [-1] * 6 + [0] * 5])
    start = jnp.full((3,), 6)
    mask = CausalMask(jnp.zeros((3, 5), jnp.int32), keys, start, window=6)
    _check(q, k, v, mask, Chunks(2, 3, one_by_one))


@pytest.mark.parametrize("implementation", ["chunked", "xla"])
def test_a_window_over_all_keys_is_none(implementation: str) -> None:
    q, k, v = _random(0, 2, 13, 4, 6), _random(1, 2, 13, 2, 6), _random(2, 2, 13, 2, 6)

    def run(window: int | None) -> list[jax.Array]:
        def attend(*qkv: jax.Array) -> jax.Array:
            return attention(*qkv, CausalMask(window=window), implementation=implementation)

        return _outputs_and_gradients(attend, q, k, v)

    for window in (13, 100):
        for result, expected in zip(run(window), run(None), strict=True):
            np.testing.assert_array_equal(result, expected)
    assert np.abs(run(12)[0] - run(None)[0])[:, 12:].max() > 1e-3


@given(data=st.data())
@settings(max_examples=8, deadline=None)
@pytest.mark.slow
def test_any_shape(data: st.DataObject) -> None:
    def draw(low: int, high: int) -> int:
        return data.draw(st.integers(low, high))

    B, T, K, G, H = draw(1, 2), draw(1, 20), draw(1, 2), draw(1, 3), 4
    mask, S = CausalMask(), T
    match draw(0, 2):
        case 1:
            ids = data.draw(st.lists(st.integers(0, 3), min_size=B * T, max_size=B * T))
            mask = CausalMask(segment_ids_BT=jnp.array(ids, jnp.int32).reshape(B, T))
        case 2:
            S = T + draw(0, 9)
            mask = CausalMask(start_B=jnp.array([draw(0, S - T) for _ in range(B)], jnp.int32))
    # in a window of 1, gradients of queries are zero, which relative errors do not suit
    mask = mask._replace(window=data.draw(st.none() | st.integers(2, S + 2)))
    q, k, v = _random(0, B, T, K * G, H), _random(1, B, S, K, H), _random(2, B, S, K, H)
    _check(q, k, v, mask, Chunks(draw(1, 8), draw(1, 8), data.draw(st.booleans())))


@pytest.mark.parametrize("window", [None, 20])
def test_bfloat16_keeps_float32_logits_and_sums(window: int | None) -> None:
    q, k, v = (
        _random(seed, 1, 64, heads, 8).astype(jnp.bfloat16) for seed, heads in enumerate((2, 1, 1))
    )
    chunks = Chunks(16, 16, one_by_one=False)
    results, _ = _both(q, k, v, CausalMask(window=window), chunks)
    q, k, v = (x.astype(jnp.float32) for x in (q, k, v))
    _, expected = _both(q, k, v, CausalMask(window=window), chunks)
    for result, reference in zip(results, expected, strict=True):
        assert result.dtype == jnp.bfloat16
        error = np.abs(result.astype(jnp.float32) - reference).max()
        assert error < 2e-2 * np.abs(reference).max()


def test_logits_of_any_size() -> None:
    """The running maximum keeps exponentials finite, whichever block has the largest logit."""
    k = jnp.array([-200.0, 300.0, 0.0, 299.0, -300.0, 298.0])[None, :, None, None]
    q, v = jnp.ones((1, 6, 1, 1)), _random(0, 1, 6, 1, 1)
    for result, expected in zip(*_both(q, k, v, CausalMask(), Chunks(2, 2, True)), strict=True):
        np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("one_by_one", [True, False])
@pytest.mark.parametrize("segmented", [False, True])
def test_invisible_blocks_are_never_touched(segmented: bool, one_by_one: bool) -> None:
    """What is not a number would show in every block that is computed, masked or not."""
    q, k, v = _random(0, 1, 8, 1, 4), _random(1, 1, 8, 1, 4), _random(2, 1, 8, 1, 4)
    hidden = slice(0, 4) if segmented else slice(4, 8)
    seen = slice(4, 8) if segmented else slice(0, 4)
    k, v = (x.at[:, hidden].set(jnp.nan) for x in (k, v))
    segments = jnp.array([[0, 0, 0, 0, 1, 1, 1, 1]]) if segmented else None
    chunks = Chunks(2, 2, one_by_one)

    def run(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        return chunked_attention(q, k, v, None, segments, segments, chunks)[:, seen]

    out, q_gradient, _, _ = _outputs_and_gradients(run, q, k, v)
    assert np.isfinite(out).all()
    assert np.isfinite(q_gradient[:, seen]).all()


@pytest.mark.parametrize("one_by_one", [True, False])
def test_blocks_before_the_window_are_never_touched(one_by_one: bool) -> None:
    """As above: queries 4 to 7 see no key before 2."""
    q, k, v = _random(0, 1, 8, 1, 4), _random(1, 1, 8, 1, 4), _random(2, 1, 8, 1, 4)
    k, v = (x.at[:, :2].set(jnp.nan) for x in (k, v))

    def run(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        return chunked_attention(q, k, v, None, None, None, Chunks(2, 2, one_by_one), 3)[:, 4:]

    out, q_gradient, _, _ = _outputs_and_gradients(run, q, k, v)
    assert np.isfinite(out).all()
    assert np.isfinite(q_gradient[:, 4:]).all()


@pytest.mark.parametrize(
    ("window", "query_block", "key_block"), [(1, 4, 4), (5, 4, 4), (9, 4, 2), (16, 4, 4), (8, 8, 4)]
)
def test_products_are_those_of_blocks_in_the_window(
    monkeypatch: pytest.MonkeyPatch, window: int, query_block: int, key_block: int
) -> None:
    """Every product of two blocks calls back: 2 in the forward, 5 in the backward pass."""
    calls = []
    product = chunked._product

    def counted(subscripts: str, x: jax.Array, y: jax.Array) -> jax.Array:
        jax.debug.callback(lambda: calls.append(subscripts))
        return product(subscripts, x, y)

    monkeypatch.setattr(chunked, "_product", counted)
    T = 32
    q, k, v = _random(0, 1, T, 2, 4), _random(1, 1, T, 1, 4), _random(2, 1, T, 1, 4)
    chunks = Chunks(query_block, key_block, one_by_one=True)

    def run(*qkv: jax.Array) -> jax.Array:
        return chunked_attention(*qkv, None, None, None, chunks, window)

    jax.block_until_ready(_outputs_and_gradients(run, q, k, v))
    jax.effects_barrier()
    visible = np.asarray(CausalMask(window=window).dense(T, T))[0]
    blocks = visible.reshape(T // query_block, query_block, T // key_block, key_block)
    assert len(calls) == (2 + 5) * blocks.any((1, 3)).sum()


@pytest.mark.parametrize("one_by_one", [True, False])
def test_memory_is_linear_in_the_length(one_by_one: bool) -> None:
    """Of the forward and the backward pass, by what the compiler plans for."""
    chunks = Chunks(64, 64, one_by_one)

    def loss(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        return jnp.sum(chunked_attention(q, k, v, None, None, None, chunks) ** 2)

    def temporaries(T: int) -> int:
        q, k = (jax.ShapeDtypeStruct((1, T, N, 16), jnp.float32) for N in (4, 2))
        analysis = jax.jit(jax.grad(loss, (0, 1, 2))).lower(q, k, k).compile().memory_analysis()
        assert analysis is not None
        return int(analysis.temp_size_in_bytes)

    assert temporaries(4096) < 2.2 * temporaries(2048)
    assert temporaries(4096) < 4 * 4 * 4096**2 / 16  # a sixteenth of the logits of all pairs
