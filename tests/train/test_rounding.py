"""Stochastic rounding by hand, and training with less precise state."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rrope_jax.model.presets import PRESETS
from rrope_jax.train.config import TrainConfig
from rrope_jax.train.optimizer import make_optimizer
from rrope_jax.train.optimizers import OPTIMIZERS
from rrope_jax.train.rounding import round_stochastically, stored_in_bfloat16
from rrope_jax.train.step import Batch, Program

TINY = PRESETS["tiny"]
HALF = {"param_dtype": "bfloat16", "moment_dtype": "bfloat16"}
STATES: list[dict[str, Any]] = [
    {"moment_dtype": "bfloat16"},
    {"param_dtype": "bfloat16", "accumulation": 2},
    {"optimizer": "adafactor"},
    {"optimizer": "adafactor", "b1": 0.0, **HALF},
]
rounded = jax.jit(round_stochastically)


# Between 1 and 1 + 2^-7, the next bfloat16, lies x = 1 + share * 2^-7.
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 0.9])
def test_the_mean_of_many_is_the_number(share: float, sign: int) -> None:
    x = np.full(100_000, sign * (1 + share * 2.0**-7), np.float32)
    y = np.asarray(rounded(jax.random.key(0), x), np.float32)
    assert set(np.abs(y).tolist()) <= {1.0, 1.0 + 2.0**-7}
    # five standard deviations of the share of 100,000 draws; exact where nothing is drawn
    bound = 5 * (share * (1 - share) / x.size) ** 0.5
    assert abs(np.mean(np.abs(y) > 1) - share) <= bound


@given(st.floats(width=32, allow_subnormal=False))
def test_one_of_the_two_nearest(x: float) -> None:
    x_1 = np.full(8, x, np.float32)
    y = np.asarray(rounded(jax.random.key(3), x_1), np.float32)
    if not np.isfinite(x):
        np.testing.assert_array_equal(y, x_1)
        return
    bits = x_1.view(np.uint32) & 0xFFFF0000
    toward_zero = bits.view(np.float32)
    away = (bits + 0x10000).view(np.float32)
    exact = toward_zero == x_1
    assert np.all((y == toward_zero) | (~exact & (y == away)))


def test_nan_of_any_bits_stays() -> None:
    bits = np.array([0x7FFFFFFF, 0x7F800001, 0xFFFFFFFF], np.uint32)
    assert np.isnan(np.asarray(rounded(jax.random.key(0), bits.view(np.float32)), np.float32)).all()


def test_small_steps_arrive() -> None:
    """1,000 steps of a thousandth of the distance of two bfloat16; the nearest would stay at 1."""

    def step(x: jax.Array, key: jax.Array) -> tuple[jax.Array, None]:
        return round_stochastically(key, x.astype(jnp.float32) + 2.0**-7 / 1000), None

    keys = jax.random.split(jax.random.key(0), 1000)
    x, _ = jax.lax.scan(step, jnp.ones(2000, jnp.bfloat16), keys)
    assert float(jnp.mean(x.astype(jnp.float32))) == pytest.approx(1 + 2.0**-7, abs=2.0**-7 / 8)


def test_stored_moments_are_those_of_the_optimizer_in_the_mean() -> None:
    """A second moment that decays by a thousandth of itself a step, too little for a bfloat16."""
    adam = optax.scale_by_adam(b1=0.9, b2=0.999)
    stored = stored_in_bfloat16(adam)
    params = {"w": jnp.zeros(4000)}
    exact, state = adam.init(params), stored.init(params)
    assert {x.dtype for x in jax.tree.leaves(state)} == {jnp.int32.dtype, jnp.bfloat16.dtype}
    update = jax.jit(stored.update)
    for step in range(40):
        gradient = {"w": jnp.full(4000, 0.3 if step < 20 else 0.0)}
        _, exact = adam.update(gradient, exact)
        _, state = update(gradient, state, rounding_key=jax.random.key(step))
    means = jax.tree.map(lambda x: float(jnp.mean(x.astype(jnp.float32))), (state, exact))
    assert means[0].mu == pytest.approx(means[1].mu, rel=2e-3)
    assert means[0].nu == pytest.approx(means[1].nu, rel=2e-3)


def test_factored_moments_have_the_size_of_rows_and_columns() -> None:
    config = TrainConfig(steps=2, batch_size=1, length=8, optimizer="adafactor", b1=0.0)
    state = make_optimizer(config).init({"kernel": jnp.zeros((3, 256, 512))})
    assert sum(x.size for x in jax.tree.leaves(state)) < 3 * (256 + 512) + 8


def _batches(count: int) -> list[Batch]:
    """Rows that count up by 1, 2 or 3, modulo 50."""
    random = np.random.default_rng(0)
    batches = []
    for _ in range(count):
        start, stride = random.integers(0, 50, (8, 1)), random.integers(1, 4, (8, 1))
        tokens = ((start + np.arange(17) * stride) % 50).astype(np.int32)
        batches.append(
            {
                "tokens": tokens[:, :-1],
                "targets": tokens[:, 1:],
                "segment_ids": np.ones((8, 16), np.int32),
                "positions": np.tile(np.arange(16, dtype=np.int32), (8, 1)),
                "weights": np.ones((8, 16), np.float32),
            }
        )
    return batches


def _program(**fields: Any) -> Program:
    config = {"steps": 40, "batch_size": 8, "length": 16, "learning_rate": 5e-3} | fields
    return Program(TINY.model, TINY.rope, TrainConfig(**config))


def _trained(program: Program) -> tuple[Any, float]:
    """The state after 40 steps, and the mean loss of the last 10."""
    step = jax.jit(program.step, donate_argnums=0)
    state, losses = program.init(jax.random.key(0)), []
    for batch in _batches(40):
        state, measures = step(state, batch, jax.random.key(1))
        losses.append(float(measures.loss))
    return state, float(np.mean(losses[-10:]))


@pytest.fixture(scope="module")
def plain_loss() -> float:
    return _trained(_program())[1]


@pytest.mark.long
@pytest.mark.parametrize("fields", STATES)
def test_trains_to_about_the_same_loss(fields: dict[str, Any], plain_loss: float) -> None:
    state, loss = _trained(_program(**fields))
    if "optimizer" in fields:  # another path to the same end
        assert loss < 3.0  # from ln 64 = 4.16
    else:
        assert loss == pytest.approx(plain_loss, abs=0.02)
    matrices = {x.dtype.name for x in jax.tree.leaves(state.params["blocks"]["feed_forward"])}
    assert matrices == {fields.get("param_dtype", "float32")}
    assert state.params["final_norm"]["scale"].dtype == jnp.float32


def test_the_dtypes_of_a_state_and_its_size() -> None:
    state = jax.eval_shape(_program(**HALF).init, jax.random.key(0))
    count = sum(x.size for x in jax.tree.leaves(state.params))
    size = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves((state.params, state.opt_state)))
    # 2 bytes each for a parameter and its moments, and the scales of 5 norms of 32 in float32
    assert size == 6 * count + 5 * 32 * 2 + 2 * 4  # and two counters


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"optimizer": "adam"}, f"optimizer='adam' is unknown; choose .* {', '.join(OPTIMIZERS)}"),
        (
            {"param_dtype": "float16"},
            "param_dtype='float16' is unknown; choose one of float32, bfloat",
        ),
        ({"moment_dtype": "int8"}, "moment_dtype='int8' is unknown; choose one of float32, bfloat"),
    ],
)
def test_refused(fields: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _program(**fields)
