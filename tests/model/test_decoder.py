"""What a user of the decoder relies on: who sees whom, what positions mean, numerics, options."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from rrope_jax import rope
from rrope_jax.model import Decoder, ModelConfig
from rrope_jax.model import decoder as module
from rrope_jax.model.decoder import Block
from rrope_jax.model.presets import PRESETS
from rrope_jax.rope import RopeSpec
from tests.closeness import assert_close

TINY = ModelConfig(vocab_size=29, d_model=16, num_layers=2, num_heads=4, num_kv_heads=2, d_ff=24)
SPEC = RopeSpec(head_dim=4)
TOKENS = jnp.array([[3, 1, 4, 15, 9, 2], [6, 5, 3, 5, 8, 9]])


def _decoder(spec: RopeSpec = SPEC, config: ModelConfig = TINY, **fields: Any) -> Decoder:
    """A model with weights large enough that attention is far from uniform."""
    fields = {"initializer_range": 0.5, **fields}
    return Decoder(dataclasses.replace(config, **fields), spec, rngs=nnx.Rngs(0))


@functools.cache
def _compiled(graph: Any) -> Any:
    return jax.jit(lambda params, *args, **keywords: nnx.merge(graph, params)(*args, **keywords))


def _run(decoder: Decoder, *arguments: Any, **keywords: Any) -> jax.Array:
    graph, params = nnx.split(decoder)
    logits_BTV: jax.Array = _compiled(graph)(params, *arguments, **keywords)
    return logits_BTV


def _loss_and_gradients(decoder: Decoder, **keywords: Any) -> tuple[jax.Array, Any]:
    graph, params = nnx.split(decoder)

    def loss(params: Any) -> jax.Array:
        logits_BTV = nnx.merge(graph, params)(TOKENS, **keywords)
        return -jnp.mean(jax.nn.log_softmax(logits_BTV)[:, :-1, 7])

    value, gradients = jax.jit(jax.value_and_grad(loss))(params)
    return value, nnx.to_pure_dict(gradients)


def _influence(decoder: Decoder, segment_ids: Any = None) -> np.ndarray:
    """[T, T]: the gradient norm of a token's logits with respect to each token's embedding."""
    tokens_1T = jnp.array([[3, 1, 4, 15, 9, 2]])  # all different, so embedding rows are tokens
    segments_1T = None if segment_ids is None else jnp.array([segment_ids])
    direction_V = jax.random.normal(jax.random.key(0), (TINY.vocab_size,))

    def scores(embedding_VD: jax.Array) -> jax.Array:
        graph, params = nnx.split(decoder)
        params["embedding"] = params["embedding"].replace(embedding_VD)
        return nnx.merge(graph, params)(tokens_1T, segment_ids_BT=segments_1T)[0] @ direction_V

    jacobian_TVD = jax.jit(jax.jacrev(scores))(decoder.embedding[...])
    return np.asarray(jnp.linalg.norm(jacobian_TVD[:, tokens_1T[0]], axis=-1))


@pytest.mark.smoke
def test_a_token_depends_on_itself_and_those_before_it() -> None:
    influence_TT = _influence(_decoder())
    np.testing.assert_array_equal(influence_TT[np.triu_indices(6, 1)], 0)
    assert (influence_TT[np.tril_indices(6)] > 1e-4).all()


def test_segments_do_not_see_each_other() -> None:
    influence_TT = _influence(_decoder(), [0, 0, 0, 0, 1, 1])
    segment_T = np.array([0, 0, 0, 0, 1, 1])
    expected = (segment_T[:, None] == segment_T) & (np.tri(6) > 0)
    np.testing.assert_array_equal(influence_TT[~expected], 0)
    assert (influence_TT[expected] > 1e-4).all()


def test_packed_sequences_give_the_logits_of_each_alone() -> None:
    decoder = _decoder()
    one, other = TOKENS[:1, :4], TOKENS[1:, :3]
    packed = _run(
        decoder,
        jnp.concatenate([one, other], axis=1),
        jnp.array([[0, 1, 2, 3, 0, 1, 2]]),
        jnp.array([[1, 1, 1, 1, 2, 2, 2]]),
    )
    assert_close(packed[:, :4], _run(decoder, one))
    assert_close(packed[:, 4:], _run(decoder, other))


SPECS = {
    "none": SPEC,
    "yarn": RopeSpec(head_dim=4, theta=100.0, scaling="yarn", factor=4.0, original_context=64),
    "resonance": RopeSpec(head_dim=4, theta=100.0, resonance=True),
    "resonance_yarn": RopeSpec(
        head_dim=4, theta=100.0, scaling="yarn", factor=4.0, original_context=64, resonance=True
    ),
}


@pytest.mark.parametrize("name", SPECS)
def test_only_relative_positions_matter(name: str) -> None:
    """The same logits wherever a sequence starts; others where its tokens lie further apart."""
    decoder = _decoder(SPECS[name])
    index_T = jnp.arange(6)
    at_zero = _run(decoder, TOKENS)
    for start in (1, 1000, 1_000_003):
        assert_close(_run(decoder, TOKENS, index_T + start), at_zero)
    assert np.abs(_run(decoder, TOKENS, 2 * index_T) - at_zero).max() > 1e-2


def test_positions_per_row() -> None:
    decoder = _decoder()
    positions_BT = jnp.stack([jnp.arange(6), jnp.arange(6) * 3])
    together = _run(decoder, TOKENS, positions_BT)
    for row in range(2):
        alone = _run(decoder, TOKENS[row : row + 1], positions_BT[row])
        assert_close(together[row : row + 1], alone)


@pytest.mark.parametrize("name", SPECS)
def test_given_tables_replace_those_of_the_spec(name: str) -> None:
    spec, positions_T = SPECS[name], jnp.arange(6) + 3
    tables = rope.cos_sin(spec, positions_T)
    expected = _run(_decoder(spec), TOKENS, positions_T)
    result = _run(_decoder(), TOKENS, rotation=tables)
    assert_close(result, expected)


def test_remat_changes_no_number() -> None:
    fields, key = {"initializer_range": 0.2, "dropout": 0.2}, jax.random.key(4)
    expected = _loss_and_gradients(_decoder(**fields), dropout_key=key)
    for policy in ("full", "dots"):
        result = _loss_and_gradients(_decoder(**fields, remat=policy), dropout_key=key)
        jax.tree.map(lambda a, b: assert_close(a, b), result, expected)


def test_remat_saves_memory() -> None:
    """Temporary memory of the gradient falls with what is recomputed, in few layers too."""
    tokens_BT = jnp.zeros((4, 64), jnp.int32)
    temporary = {}
    for policy in ("none", "dots", "full"):
        decoder = _decoder(d_ff=256, remat=policy)
        graph, params = nnx.split(decoder)
        gradient = jax.jit(jax.grad(lambda params, g=graph: nnx.merge(g, params)(tokens_BT).sum()))
        temporary[policy] = gradient.lower(params).compile().memory_analysis().temp_size_in_bytes
    assert temporary["full"] < temporary["dots"] < temporary["none"]


def test_layers_looped_or_written_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """A loop keeps less for the backward pass, and computes the rest again."""
    decoder = _decoder(num_layers=3)
    written_out = _run(decoder, TOKENS), _loss_and_gradients(decoder)
    monkeypatch.setattr(module, "_UNROLLED_LAYERS", 0)
    assert "scan" in str(jax.make_jaxpr(lambda: decoder(TOKENS))())
    looped = _run(decoder, TOKENS), _loss_and_gradients(decoder)
    # XLA sums in another order: 1.3e-5 apart for logits of order 1
    jax.tree.map(lambda a, b: assert_close(a, b), looped, written_out)


def test_every_layer_counts_and_starts_differently() -> None:
    decoder = _decoder(num_layers=3)
    leaves = jax.tree.leaves(_loss_and_gradients(decoder)[1]["blocks"])
    for leaf in leaves:
        norms_L = np.linalg.norm(np.asarray(leaf).reshape(3, -1), axis=1)
        assert (norms_L > 0).all()
    query_LDNH = decoder.blocks.attention.query[...]
    assert not np.allclose(query_LDNH[0], query_LDNH[1])


def test_bfloat16_computes_in_it_and_keeps_float32_where_it_matters() -> None:
    decoder = _decoder(compute_dtype="bfloat16", initializer_range=0.2)
    hidden_BTD = jax.jit(lambda: decoder.hidden(TOKENS))()
    logits_BTV = _run(decoder, TOKENS)
    _, gradients = _loss_and_gradients(decoder)
    assert hidden_BTD.dtype == jnp.bfloat16
    assert logits_BTV.dtype == jnp.float32
    assert {leaf.dtype.name for leaf in jax.tree.leaves(nnx.state(decoder))} == {"float32"}
    assert {leaf.dtype.name for leaf in jax.tree.leaves(gradients)} == {"float32"}
    # logits of a bfloat16 product kept in float32 are not all bfloat16 numbers
    assert (logits_BTV != logits_BTV.astype(jnp.bfloat16)).mean() > 0.5
    in_float32 = _run(_decoder(initializer_range=0.2), TOKENS)
    error = np.abs(logits_BTV - in_float32).max()
    assert 0 < error < 0.03 * np.abs(in_float32).max()


def test_dropout_needs_a_key_and_follows_it() -> None:
    decoder = _decoder(dropout=0.2)
    without = _run(decoder, TOKENS)
    np.testing.assert_array_equal(without, _run(_decoder(), TOKENS))
    one = _run(decoder, TOKENS, dropout_key=jax.random.key(0))
    np.testing.assert_array_equal(one, _run(decoder, TOKENS, dropout_key=jax.random.key(0)))
    assert not np.allclose(one, without)
    assert not np.allclose(one, _run(decoder, TOKENS, dropout_key=jax.random.key(1)))
    unused = _run(_decoder(), TOKENS, dropout_key=jax.random.key(0))
    assert_close(unused, without)


def test_dropout_is_where_t5_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Embedding, then per layer: weights, attention output, hidden layer, output; final norm."""
    shapes: list[tuple[int, ...]] = []
    keys: list[tuple[int, ...]] = []

    def record(x: jax.Array, rate: float, key: Any) -> jax.Array:
        assert rate == 0.1
        shapes.append(x.shape)
        jax.debug.callback(lambda data: keys.append(tuple(data.tolist())), jax.random.key_data(key))
        return x

    monkeypatch.setattr("rrope_jax.model.decoder.drop", record)
    monkeypatch.setattr("rrope_jax.model.layers.drop", record)
    decoder = _decoder(dropout=0.1)
    jax.jit(lambda: decoder(TOKENS, dropout_key=jax.random.key(0)))()
    jax.effects_barrier()
    stream, weights, hidden = (2, 6, 16), (2, 2, 2, 6, 6), (2, 6, 24)
    assert shapes == [stream, weights, stream, hidden, stream, stream]  # a layer is traced once
    assert len(keys) == len(set(keys)) == 2 + 2 * 4


@pytest.mark.parametrize("layers", [1, 2, 5])
def test_no_dropout_key_is_used_twice(monkeypatch: pytest.MonkeyPatch, layers: int) -> None:
    """Keys of the layers, and those of the dropout outside of them."""
    keys: list[tuple[int, ...]] = []

    def note(key: jax.Array) -> None:
        jax.debug.callback(lambda data: keys.append(tuple(data.tolist())), jax.random.key_data(key))

    def record(x: jax.Array, rate: float, key: Any) -> jax.Array:
        if x.ndim == 3 and x.shape[-1] == 16:
            note(key)
        return x

    call = Block.__call__

    def block(self: Block, x: Any, rotation: Any, mask: Any, key: Any, cache: Any = None) -> Any:
        note(key)
        return call(self, x, rotation, mask, key, cache)

    monkeypatch.setattr("rrope_jax.model.decoder.drop", record)
    monkeypatch.setattr(Block, "__call__", block)
    decoder = _decoder(dropout=0.1, num_layers=layers)
    jax.jit(lambda: decoder(TOKENS, dropout_key=jax.random.key(0)))()
    jax.effects_barrier()
    assert len(set(keys)) == len(keys) == 2 + 3 * layers


# --- options that make T5's layers ---------------------------------------------------------------


def test_attention_scale() -> None:
    """Doubling the scale is doubling the queries."""
    scaled, doubled = _decoder(attention_scale=1.0), _decoder(attention_scale=0.5)
    doubled.blocks.attention.query[...] = 2 * doubled.blocks.attention.query[...]
    assert_close(_run(scaled, TOKENS), _run(doubled, TOKENS))
    default = _decoder(attention_scale=4**-0.5)
    np.testing.assert_array_equal(_run(default, TOKENS), _run(_decoder(), TOKENS))


def test_logit_scale() -> None:
    result = _run(_decoder(logit_scale=0.25), TOKENS)
    assert_close(result, _run(_decoder(), TOKENS) / 4)


def test_tied_embeddings_are_the_output() -> None:
    tied, untied = _decoder(tie_embeddings=True), _decoder()
    assert tied.output is None
    untied.output[...] = tied.embedding[...].T
    assert_close(_run(tied, TOKENS), _run(untied, TOKENS))
    # both uses train it
    _, gradients = _loss_and_gradients(tied)
    _, apart = _loss_and_gradients(untied)
    assert_close(gradients["embedding"], apart["embedding"] + apart["output"].T)


def test_rms_norm_eps() -> None:
    """With an eps far above the mean square, the final norm hardly scales up the hidden state."""
    decoder = _decoder(rms_norm_eps=1e8, num_layers=1)
    embedded_BTD = decoder.embedding[...][TOKENS]
    hidden_BTD = jax.jit(lambda: decoder.hidden(TOKENS))()
    np.testing.assert_allclose(hidden_BTD, embedded_BTD / 1e4, rtol=1e-3, atol=1e-7)


def _feed_forward(function: Callable[[Any], Any], decoder: Decoder, x: Any, gated: bool) -> Any:
    weights = {
        name: np.asarray(kernel, np.float64)[0]
        for name, kernel in nnx.to_pure_dict(nnx.state(decoder.blocks.feed_forward)).items()
    }
    assert weights.keys() == ({"up", "down", "gate"} if gated else {"up", "down"})
    up = x @ weights["up"]
    return (function(x @ weights["gate"]) * up if gated else function(up)) @ weights["down"]


@pytest.mark.parametrize(
    ("activation", "gated", "function"),
    [
        ("swiglu", True, lambda x: x / (1 + np.exp(-x))),
        ("relu", False, lambda x: np.maximum(x, 0)),
    ],
)
def test_activations(activation: str, gated: bool, function: Callable[[Any], Any]) -> None:
    decoder = _decoder(activation=activation, num_layers=1)
    x_BTD = np.random.default_rng(0).standard_normal((2, 3, 16))
    graph, stacked = nnx.split(decoder.blocks)
    block = nnx.merge(graph, jax.tree.map(lambda leaf: leaf[0], stacked))
    result = block.feed_forward(jnp.asarray(x_BTD, jnp.float32))
    expected = _feed_forward(function, decoder, x_BTD, gated)
    assert_close(result, expected)


def test_initial_scales() -> None:
    """T5's by fan-in, queries also by the head size; else one standard deviation for all."""
    config = dataclasses.replace(PRESETS["posgen_paper"].model, vocab_size=2000)
    expected = {
        "embedding": 1.0,
        "query": (512 * 64) ** -0.5,
        "key": 512**-0.5,
        "value": 512**-0.5,
        "out": 512**-0.5,
        "up": 512**-0.5,
        "down": 2048**-0.5,
    }
    for fields, output in (({}, 512**-0.5), ({"initialization": "normal"}, 0.02)):
        untied = dataclasses.replace(config, tie_embeddings=False, **fields)
        decoder = Decoder(untied, RopeSpec(head_dim=64), rngs=nnx.Rngs(0))
        layer = nnx.to_pure_dict(nnx.state(decoder.blocks))
        kernels = {
            "embedding": decoder.embedding[...],
            "output": decoder.output[...],
            **layer["attention"],
            **layer["feed_forward"],
        }
        stds = {name: float(jnp.std(kernel)) for name, kernel in kernels.items()}
        wanted = {name: 0.02 if fields else std for name, std in expected.items()}
        assert stds == pytest.approx({**wanted, "output": output}, rel=0.02)
        np.testing.assert_array_equal(layer["attention_norm"]["scale"], 1)


def test_number_of_parameters() -> None:
    leaves = jax.tree.leaves(nnx.state(_decoder(), nnx.Param))
    attention = 16 * 4 * 4 + 2 * 16 * 2 * 4 + 4 * 4 * 16
    by_hand = 29 * 16 + 2 * (attention + 3 * 16 * 24 + 2 * 16) + 16 + 16 * 29
    assert sum(math.prod(leaf.shape) for leaf in leaves) == by_hand
    assert len(jax.tree.leaves(nnx.state(_decoder()))) == len(leaves)  # RoPE is no state


# --- around the model ----------------------------------------------------------------------------


def test_one_device_is_a_mesh_of_one() -> None:
    decoder = _decoder()
    expected = _run(decoder, TOKENS)
    mesh = jax.make_mesh((1, 1), ("data", "model"), (jax.sharding.AxisType.Auto,) * 2)
    with jax.set_mesh(mesh):
        np.testing.assert_array_equal(_run(decoder, TOKENS), expected)


def test_refuses_another_head_size() -> None:
    with pytest.raises(ValueError, match=r"rope\.head_dim=8 differs from the model's head_dim=4"):
        _decoder(RopeSpec(head_dim=8))


def test_an_attention_asked_for_by_name_is_not_replaced_by_another() -> None:
    decoder = _decoder(attention="cudnn", compute_dtype="bfloat16")
    if jax.default_backend() != "gpu":
        with pytest.raises(ValueError, match="attention='cudnn' cannot be used here"):
            jax.eval_shape(lambda: decoder(TOKENS))
