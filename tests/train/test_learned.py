"""Training with learned frequencies: the first step, the optimizer, and the held-out loss."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rrope_jax.model import ModelConfig
from rrope_jax.rope import RopeSpec
from rrope_jax.rope.learned import learned_spec
from rrope_jax.train.config import TrainConfig
from rrope_jax.train.optimizer import make_optimizer
from rrope_jax.train.step import Program, State
from tests.posgen.conftest import quick_compilation as quick_compilation

pytestmark = pytest.mark.usefixtures("quick_compilation")

MODEL = ModelConfig(
    vocab_size=11,
    d_model=16,
    num_layers=3,
    num_heads=2,
    d_ff=16,
    layer_types=("sliding_attention", "nope", "full_attention"),
    sliding_window=5,
)
ROPE = RopeSpec(
    head_dim=8,
    scaling="yarn",
    factor=2.0,
    original_context=12,
    resonance=True,
    sliding_attention={"head_dim": 8, "theta": 100.0},  # type: ignore[arg-type]
)
TRAIN = TrainConfig(
    steps=4,
    batch_size=2,
    length=12,
    learning_rate=1e-2,
    schedule="constant",
    warmup_fraction=0.0,
    frequency_rate=3.0,
)
LEARNING = Program(MODEL, ROPE, TRAIN)
KEY = jax.random.key(3)


def _batch() -> dict[str, jax.Array]:
    tokens_BT = np.random.default_rng(0).integers(0, 11, (2, 13))
    ones_BT = jnp.ones((2, 12), jnp.int32)
    return {
        "tokens": jnp.asarray(tokens_BT[:, :-1]),
        "targets": jnp.asarray(tokens_BT[:, 1:]),
        "segment_ids": ones_BT,
        "positions": jnp.cumsum(ones_BT, axis=1) - 1,
        "weights": ones_BT.astype(jnp.float32),
    }


@pytest.fixture(scope="module")
def initial(quick_compilation: None) -> State:
    return LEARNING.state_from_params(_params())


def _params() -> Any:
    """Parameters as a new model has, without compiling what draws them."""
    random = np.random.default_rng(1)
    shapes = jax.eval_shape(LEARNING.init, KEY).params

    def draw(path: Any, leaf: jax.ShapeDtypeStruct) -> jax.Array:
        if path[-1].key == "scale":
            return jnp.ones(leaf.shape)
        return jnp.asarray(0.3 * random.normal(size=leaf.shape), jnp.float32)

    return jax.tree.map_with_path(draw, shapes)


@pytest.fixture(scope="module")
def moved(initial: State) -> tuple[State, Any]:
    """The state after a step, and its numbers."""
    after, measures = jax.jit(LEARNING.step)(initial, _batch(), KEY)
    return after, measures


def test_step_0_is_that_of_the_spec_without_its_rule(
    initial: State, moved: tuple[State, Any]
) -> None:
    plain = Program(
        MODEL, dataclasses.replace(ROPE, resonance=False), dataclasses.replace(TRAIN, steps=4)
    )
    total, targets = jax.jit(plain.heldout)(initial.params, _batch())
    # the same numbers in programs that XLA fuses differently
    assert moved[1].loss == pytest.approx(float(total / targets), rel=1e-6)


def test_layers_that_rotate_learn_their_own(moved: tuple[State, Any]) -> None:
    log_ratios = moved[0].log_ratios
    assert log_ratios is not None
    assert log_ratios.keys() == {"sliding_attention", "full_attention"}
    for ratio_F in log_ratios.values():
        # the first step of Adam is the rate, but for gradients near its eps
        assert abs(ratio_F).max() == pytest.approx(0.03, rel=1e-3)
        assert (abs(ratio_F) < 0.031).all()
    assert (log_ratios["sliding_attention"] != log_ratios["full_attention"]).any()


def test_heldout_loss_is_that_of_the_exact_spec(moved: tuple[State, Any]) -> None:
    state, batch = moved[0], _batch()
    assert state.log_ratios is not None
    spec = learned_spec(ROPE, state.log_ratios, 24)
    assert spec.resonance is True
    assert spec.of("sliding_attention").resonance is False
    found, _ = jax.jit(LEARNING.heldout)(state.params, batch, LEARNING.tables(spec, 12))
    exact = Program(MODEL, spec, dataclasses.replace(TRAIN, frequency_rate=None))
    expected, _ = jax.jit(exact.heldout)(state.params, batch)
    assert found == pytest.approx(float(expected), rel=1e-6)


def test_rate_decay_and_clip_of_frequencies_are_their_own() -> None:
    """AdamW's first step is the learning rate; clipping does not change it, but its moments."""
    params = {"embedding": jnp.ones((3, 2)), "log_ratios": {"full_attention": jnp.ones(4)}}
    gradients = {
        "embedding": jnp.full((3, 2), 1e3),
        "log_ratios": {"full_attention": jnp.full(4, 1e-3)},
    }
    config = dataclasses.replace(TRAIN, gradient_clip=1.0, weight_decay=0.1, eps=1e-3)
    optimizer = make_optimizer(config)
    updates, _ = optimizer.update(gradients, optimizer.init(params), params)
    clipped = 6**-0.5
    decoder = -1e-2 * (clipped / (clipped + 1e-3) + 0.1)
    np.testing.assert_allclose(updates["embedding"], decoder, rtol=1e-5)
    # a gradient of the size of eps, not clipped by the norm of the embedding's
    np.testing.assert_allclose(updates["log_ratios"]["full_attention"], -3e-2 / 2, rtol=1e-5)


@pytest.mark.parametrize(
    ("model", "rope", "train", "message"),
    [
        ({}, {}, {"frequency_rate": -1.0}, "frequency_rate=-1.0 must be a finite number >= 0"),
        (
            {"layer_types": ("nope",), "sliding_window": None},
            {},
            {},
            "frequency_rate=3.0 has no effect: no layer of the model rotates",
        ),
        (
            {},
            {"scaling": "dynamic_ntk", "resonance": False},
            {},
            "'dynamic_ntk' has other frequencies at every length",
        ),
    ],
)
def test_refusals(
    model: dict[str, Any], rope: dict[str, Any], train: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        Program(
            dataclasses.replace(MODEL, **model),
            dataclasses.replace(ROPE, **rope),
            dataclasses.replace(TRAIN, **train),
        )
