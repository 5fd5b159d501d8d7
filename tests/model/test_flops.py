"""The FLOP counts against the products that tracing a real step finds."""

import dataclasses
import importlib.util
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.extend.core import jaxprs_in_params

from rrope_jax.io.adapters.config import LoraConfig
from rrope_jax.model import Decoder, ModelConfig
from rrope_jax.model.attention.choice import IMPLEMENTATIONS
from rrope_jax.model.attention.mask import CausalMask
from rrope_jax.model.config import REMAT_POLICIES
from rrope_jax.model.flops import (
    ATTENTION_COSTS,
    RECOMPUTED,
    AttentionCost,
    causal_flops,
    computed_pairs,
    executed_flops,
    forward_flops,
    model_flops,
)
from rrope_jax.model.platform import operations
from rrope_jax.model.presets import PRESETS
from rrope_jax.planning.topology import Topology
from rrope_jax.planning.workload import TextTraining
from rrope_jax.rope import RopeSpec
from rrope_jax.sharding import MeshConfig
from rrope_jax.train.config import TrainConfig
from rrope_jax.train.sharded import BATCH_DTYPES
from rrope_jax.train.step import Program

MODEL = ModelConfig(
    vocab_size=40,
    d_model=24,
    num_layers=6,  # so many are looped over, and so remat policies count
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    d_ff=56,
    attention="xla",
)
LAYERED = dataclasses.replace(
    MODEL,
    layer_types=("sliding_attention", "sliding_attention", "full_attention"),
    sliding_window=2,
)
ROWS, LENGTH = 2, 16
NO_LORA = LoraConfig()


def _products(jaxpr: Any, times: int = 1) -> int:
    """FLOPs of all matrix products in a traced program, loops multiplied."""
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            left = equation.invars[0].aval.shape
            inner = math.prod(left[axis] for axis in contracted)
            total += times * 2 * inner * math.prod(equation.outvars[0].aval.shape)
        turns = equation.params["length"] if equation.primitive.name == "scan" else 1
        for inner_jaxpr in jaxprs_in_params(equation.params):
            total += _products(inner_jaxpr, times * turns)
    return total


def _step(
    model: ModelConfig, rows: int, length: int, loss_chunk: int, lora: LoraConfig = NO_LORA
) -> tuple[Any, ...]:
    """The step and the shapes of its arguments."""
    train = TrainConfig(steps=1, batch_size=rows, length=length, loss_chunk=loss_chunk)
    program = Program(model, RopeSpec(head_dim=model.head_size), train, lora=lora)
    state = jax.eval_shape(program.init, jax.random.key(0))
    batch = {
        name: jax.ShapeDtypeStruct((rows, length), dtype) for name, dtype in BATCH_DTYPES.items()
    }
    return program.step, state, batch, jax.random.key(0)


def _traced(model: ModelConfig, loss_chunk: int, lora: LoraConfig = NO_LORA) -> int:
    step, *arguments = _step(model, ROWS, LENGTH, loss_chunk, lora)
    return _products(jax.make_jaxpr(step)(*arguments).jaxpr)


@pytest.mark.slow
@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("remat", REMAT_POLICIES)
@pytest.mark.parametrize("model", [MODEL, LAYERED])
def test_executed_flops_are_those_of_the_traced_step(
    model: ModelConfig, remat: str, chunked: bool
) -> None:
    model = dataclasses.replace(model, remat=remat)
    counted = executed_flops(model, ROWS, LENGTH, attention="xla", chunked_logits=chunked)
    assert counted == _traced(model, loss_chunk=8 if chunked else 64)


def test_frozen_matrices_have_no_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only factors do: here of one matrix of all, with 3 columns."""
    # a CPU's product has a gradient of its own making, of which XLA drops what is not needed
    monkeypatch.setattr(operations, "backend_platform", lambda: "gpu")
    lora = LoraConfig(rank=3, targets=("up_proj",))
    adapters = MODEL.num_layers * 3 * (MODEL.d_model + MODEL.d_ff)
    counted = executed_flops(
        MODEL, ROWS, LENGTH, attention="xla", chunked_logits=False, adapters=adapters
    )
    assert counted == _traced(MODEL, 64, lora)


@pytest.mark.slow
def test_llama2_agrees_with_two_and_four_layers_written_out() -> None:
    """XLA's own count, which takes in norms, softmax and optimizer: at most 3 % apart."""
    llama2 = dataclasses.replace(
        PRESETS["llama2_7b"].model, compute_dtype="bfloat16", attention="xla"
    )

    def counted(layers: int) -> float:
        model = dataclasses.replace(llama2, num_layers=layers)  # so few are not looped over
        step, *arguments = _step(model, 1, 2048, loss_chunk=4096)
        flops: float = jax.jit(step).lower(*arguments).cost_analysis()["flops"]
        return flops

    two, four = counted(2), counted(4)
    extrapolated = two + (llama2.num_layers - 2) / 2 * (four - two)
    own = executed_flops(llama2, 1, 2048, attention="xla", chunked_logits=False)
    assert own == pytest.approx(extrapolated, rel=0.03)


@pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="needs libtpu, which compiles for TPUs"
)
@pytest.mark.slow
def test_llama2_agrees_with_layers_compiled_for_a_slice() -> None:
    """The same for four chips of a TPU, over which the step is split."""
    llama2 = dataclasses.replace(
        PRESETS["llama2_7b"].model, compute_dtype="bfloat16", attention="xla"
    )
    topology = Topology("v5p:2x2x1", "v5p", (2, 2, 1))
    topology.prepare()

    def counted(layers: int) -> float:
        model = dataclasses.replace(llama2, num_layers=layers)
        train = TrainConfig(steps=1, batch_size=4, length=1024, loss_chunk=4096)
        training = TextTraining(Program(model, RopeSpec(head_dim=128), train), MeshConfig())
        lowered = training.lower(training.make_mesh(topology.devices()))
        of_chip: float = lowered.compile().cost_analysis()["flops"]
        return 4 * of_chip

    jax.config.update("jax_optimization_level", "O0")
    try:
        two, four = counted(2), counted(4)
    finally:
        jax.config.update("jax_optimization_level", "UNKNOWN")
    extrapolated = two + (llama2.num_layers - 2) / 2 * (four - two)
    own = executed_flops(llama2, 4, 1024, attention="xla", chunked_logits=False)
    assert own == pytest.approx(extrapolated, rel=0.03)


def test_model_flops_by_hand() -> None:
    """One layer, one token: 2 x 3 x the weights, and one pair of tokens twice."""
    model = ModelConfig(vocab_size=10, d_model=4, num_layers=1, num_heads=2, d_ff=6)
    weights = 4 * 4 * 4 + 3 * 4 * 6 + 4 * 10  # q, k, v, out; gate, up, down; output
    pair = 2 * 2 * 4  # q.k and weight.v over two heads of 2
    assert model_flops(model, rows=1, length=1) == 3 * (2 * weights + pair)
    # four tokens see 1 + 2 + 3 + 4 of each other
    assert model_flops(model, rows=1, length=4) == 3 * (4 * 2 * weights + 10 * pair)


@pytest.mark.parametrize("activation", ["swiglu", "relu"])
def test_forward_flops_are_those_of_the_traced_forward_pass(activation: str) -> None:
    model = dataclasses.replace(MODEL, activation=activation)
    decoder = nnx.eval_shape(lambda: Decoder(model, RopeSpec(head_dim=8), rngs=nnx.Rngs(0)))
    graph, params = nnx.split(decoder)
    tokens = jax.ShapeDtypeStruct((1, LENGTH), jnp.int32)
    traced = jax.make_jaxpr(lambda params, x: nnx.merge(graph, params)(x))(params, tokens)
    pairs = model.num_layers * LENGTH**2
    counted = forward_flops(model, tokens=LENGTH, pairs=pairs, predictions=LENGTH)
    assert counted == _products(traced.jaxpr)


@pytest.mark.parametrize("model", [MODEL, LAYERED])
def test_a_row_in_two_parts_costs_as_much_as_in_one(model: ModelConfig) -> None:
    parts = [causal_flops(model, *ends, logits=True) for ends in ((0, 5), (5, 16))]
    assert sum(parts) == causal_flops(model, 0, 16, logits=True)
    assert 3 * sum(parts) == model_flops(model, rows=1, length=16)


def test_layers_with_a_window_multiply_fewer_pairs() -> None:
    """Four of six layers, each with one pair for the first token and two for each other one."""
    saved = causal_flops(MODEL, 0, 16, logits=True) - causal_flops(LAYERED, 0, 16, logits=True)
    assert saved == 4 * (16 * 17 // 2 - (1 + 15 * 2)) * 2 * (2 * 4 * 8)


def test_pairs_of_blocks() -> None:
    in_blocks = AttentionCost(backward=5, block=512)
    assert computed_pairs(1024, AttentionCost(backward=4, block=None), None) == 1024**2
    assert computed_pairs(1024, in_blocks, None) == 3 * 512**2  # two on the diagonal, one below
    assert computed_pairs(100, in_blocks, None) == 100**2


@pytest.mark.parametrize("window", [1, 2, 128, 129, 512, 513, 514, 1000, 1500, 4000])
@pytest.mark.parametrize("name", ATTENTION_COSTS)
def test_pairs_of_blocks_in_a_window(name: str, window: int) -> None:
    """The blocks of the mask that have a visible pair."""
    cost, T = ATTENTION_COSTS[name], 2048
    side = cost.block_of(window) or T
    visible = np.asarray(CausalMask(window=window).dense(T, T))[0]
    blocks = visible.reshape(T // side, side, T // side, side).any((1, 3))
    assert computed_pairs(T, cost, window) == blocks.sum() * side**2


def test_executed_flops_of_layers_with_a_window() -> None:
    """Of two full layers of 1024 tokens and four that see 512, in blocks of 256."""
    long = {"rows": 1, "length": 1024, "attention": "chunked", "chunked_logits": False}
    layered = dataclasses.replace(LAYERED, sliding_window=512)
    saved = executed_flops(MODEL, **long) - executed_flops(layered, **long)
    pairs = 1024**2 - (1 + 2 + 3 + 3) * 256**2
    assert saved == 4 * (2 + 5) * pairs * 2 * 4 * 8


def test_executed_flops_of_layer_types_with_other_implementations() -> None:
    """Layers with a window in blocks, those without over all pairs, each as it would be alone."""
    step = {"rows": 1, "length": 1024, "chunked_logits": False}
    layered = dataclasses.replace(LAYERED, sliding_window=512, remat="dots")
    full = layered.layer_types_of_all.count("full_attention")
    chunked, xla, both = (
        executed_flops(layered, attention=attention, **step)
        for attention in (
            "chunked",
            "xla",
            {"sliding_attention": "chunked", "full_attention": "xla"},
        )
    )
    # in full layers, blocks of 1024 save nothing, but the backward pass has one product more
    assert chunked - both == full * 1024**2 * 2 * 4 * 8
    assert both < xla


def test_tables_name_what_models_have() -> None:
    assert set(ATTENTION_COSTS) == set(IMPLEMENTATIONS)
    assert set(RECOMPUTED) == set(REMAT_POLICIES)
