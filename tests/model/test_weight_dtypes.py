"""Parameters in bfloat16 and in int8."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from rrope_jax.model import Decoder, ModelConfig, init_cache
from rrope_jax.model.config import WEIGHT_DTYPES
from rrope_jax.model.decoder import abstract_decoder, parameter_bytes
from rrope_jax.model.int8 import quantize
from rrope_jax.model.products import project, project_together
from rrope_jax.rope import RopeSpec
from tests.closeness import assert_close
from tests.posgen.conftest import quick_compilation as quick_compilation

MODEL = ModelConfig(
    vocab_size=29,
    d_model=16,
    num_layers=3,
    num_heads=4,
    num_kv_heads=2,
    d_ff=24,
    layer_types=("sliding_attention", "full_attention"),
    sliding_window=4,
    qkv_bias=True,
    initializer_range=0.5,
)
SPEC = RopeSpec(head_dim=4)
TOKENS = jnp.asarray(np.random.default_rng(0).integers(0, 29, (2, 9)), jnp.int32)


@pytest.fixture(autouse=True, scope="module")
def _quick(quick_compilation: None) -> None:
    pass


@functools.partial(jax.jit, static_argnums=0)
def _logits(graph: Any, state: Any) -> jax.Array:
    return nnx.merge(graph, state)(TOKENS)


@functools.partial(jax.jit, static_argnums=0)
def _decode(graph: Any, state: Any, tokens_BT: jax.Array, cache: Any, layers: Any = None) -> Any:
    return nnx.merge(graph, state).decode(tokens_BT, cache, layers=layers)


def test_quantizes_by_hand() -> None:
    """The scales are 2 and 0.5; a column of zeros stays zeros; halves round to even."""
    kernel = np.array([[254.0, 1.25, 0], [3.0, -63.5, 0], [-2.9, 20.2, 0]], np.float32)
    values, scale = quantize(kernel, (0,))
    np.testing.assert_allclose(scale, [2, 0.5, 1], rtol=1e-6)
    np.testing.assert_array_equal(values, [[127, 2, 0], [2, -127, 0], [-1, 40, 0]])


@given(arrays(np.float32, (4, 3, 2), elements=st.floats(-1e6, 1e6, width=32)))
def test_the_error_is_half_a_scale(kernel: np.ndarray) -> None:
    values, scale = quantize(kernel, (0, 1))
    assert (values.dtype, scale.dtype) == (np.int8, np.float32)
    assert np.abs(values.astype(int)).max() <= 127
    # beside it the rounding of the quotient, which is at most 127, and what counts as zero
    error = np.abs(kernel - values.astype(np.float64) * scale)
    assert (error <= np.maximum((0.5 + 127 * 2**-22) * scale, 2e-36)).all()
    for mine, of_jax in zip((values, scale), quantize(jnp.asarray(kernel), (0, 1)), strict=True):
        np.testing.assert_array_equal(mine, of_jax)


@pytest.mark.parametrize(
    ("dtype", "shape", "inputs"), [("float32", (6, 4, 2), 1), ("bfloat16", (3, 2, 8), 2)]
)
def test_products_of_int8(shape: tuple[int, ...], inputs: int, dtype: str) -> None:
    """int8 is exact in both dtypes, so only the result is rounded."""
    x_key, kernel_key = jax.random.split(jax.random.key(0))
    x_BTI = jax.random.normal(x_key, (2, 3, *shape[:inputs]), dtype)
    kernel = quantize(jax.random.normal(kernel_key, shape), tuple(range(inputs)))
    weights = np.asarray(kernel.values, np.float64) * np.asarray(kernel.scale)
    expected = np.tensordot(np.asarray(x_BTI, np.float64), weights, inputs)
    share = {"float32": 2e-6, "bfloat16": 2**-8}[dtype]
    for y in (project(x_BTI, kernel), *project_together(x_BTI, [kernel] * 2)):
        assert y.dtype == dtype
        assert_close(np.asarray(y, np.float64), expected, share)


def _rounded(weight_dtype: str) -> tuple[Decoder, Decoder]:
    """A decoder in the dtype, and the float32 one that has the same weights."""
    decoder = Decoder(dataclasses.replace(MODEL, weight_dtype=weight_dtype), SPEC, rngs=nnx.Rngs(1))
    same = Decoder(MODEL, SPEC, rngs=nnx.Rngs(2))
    flat = dict(nnx.to_flat_state(nnx.state(decoder)))
    for path, leaf in nnx.to_flat_state(nnx.state(same)):
        weights = flat[path][...].astype(jnp.float32)
        scale = flat.get((*path[:-1], f"{path[-1]}_scale"))
        if scale is not None:
            inputs = (1, 2) if path[-1] == "out" else (1,)
            weights = weights * jnp.expand_dims(scale[...], inputs)
        leaf[...] = weights
    return decoder, same


@pytest.mark.parametrize(
    "weight_dtype", [pytest.param("bfloat16", marks=pytest.mark.heavy), "int8"]
)
def test_a_decoder_computes_with_the_rounded_weights(weight_dtype: str) -> None:
    """Whole rows, and a prompt and a token with a cache, with layers in a loop and one by one."""
    decoder, same = _rounded(weight_dtype)
    names = WEIGHT_DTYPES[weight_dtype]
    assert decoder.embedding[...].dtype == decoder.output[...].dtype == names.embeddings
    assert decoder.blocks.attention.out[...].dtype == names.kernels
    assert decoder.blocks.attention_norm.scale[...].dtype == jnp.float32
    assert decoder.blocks.attention.key_bias[...].dtype == jnp.float32

    expected = _logits(*nnx.split(same))
    assert_close(_logits(*nnx.split(decoder)), expected)
    prompt, cache = _decode(*nnx.split(decoder), TOKENS[:, :8], init_cache(decoder.config, 2, 12))
    assert_close(prompt, expected[:, :8])
    token, _ = _decode(*nnx.split(decoder), TOKENS[:, 8:], cache, decoder.layers_for_loop())
    assert_close(token, expected[:, 8:])


def test_bfloat16_weights_are_what_bfloat16_products_see_anyway() -> None:
    def logits(**fields: Any) -> jax.Array:
        config = dataclasses.replace(MODEL, compute_dtype="bfloat16", **fields)
        return _logits(*nnx.split(Decoder(config, SPEC, rngs=nnx.Rngs(1))))

    # biases are added in bfloat16, too; so all but the place of the rounding is the same
    np.testing.assert_array_equal(logits(weight_dtype="bfloat16"), logits())


def test_int8_is_never_float32_as_a_whole() -> None:
    """In a loop over tokens, in which a copy of all layers could be kept."""
    config = dataclasses.replace(
        MODEL, d_model=128, head_dim=32, d_ff=512, num_layers=8, weight_dtype="int8"
    )
    graph, state = nnx.split(abstract_decoder(config, RopeSpec(head_dim=32)))

    def loop(state: nnx.State, token_B: jax.Array) -> jax.Array:
        def step(_: Any, carry: Any) -> Any:
            token_B, cache = carry
            logits_BTV, cache = nnx.merge(graph, state).decode(token_B[:, None], cache)
            return jnp.argmax(logits_BTV[:, 0], axis=-1).astype(jnp.int32), cache

        carry = (token_B, init_cache(config, 1, 8))
        return jax.lax.fori_loop(0, 4, step, carry)[0]

    lowered = jax.jit(loop).lower(state, jnp.zeros((1,), jnp.int32))
    memory = lowered.compile({"xla_backend_optimization_level": 1}).memory_analysis()
    whole = parameter_bytes(dataclasses.replace(config, weight_dtype="float32"))
    assert memory.argument_size_in_bytes <= parameter_bytes(config) + 64
    assert memory.temp_size_in_bytes < whole / 2  # a layer is an eighth
    assert nnx.merge(graph, state).layers_for_loop() is None


def test_parameters_take_what_their_dtypes_say() -> None:
    config = dataclasses.replace(MODEL, weight_dtype="int8")
    decoder = Decoder(config, SPEC, rngs=nnx.Rngs(0))
    assert parameter_bytes(config) == sum(
        leaf.nbytes for leaf in jax.tree.leaves(nnx.state(decoder))
    )


def test_refused_in_training() -> None:
    with pytest.raises(ValueError, match="weight_dtype='int8' is for evaluation and generation"):
        dataclasses.replace(MODEL, weight_dtype="int8").check_trainable()
    with pytest.raises(ValueError, match="weight_dtype='int4' is unknown; choose one of float32"):
        dataclasses.replace(MODEL, weight_dtype="int4")
    assert "weight_dtype" not in MODEL.fields()
