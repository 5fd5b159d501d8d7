"""The learning rate by hand, and AdamW's decay on matrices only."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rrope_jax.rope.positions import PositionSampling
from rrope_jax.train.config import TrainConfig
from rrope_jax.train.optimizer import learning_rate, make_optimizer


def _config(**fields: object) -> TrainConfig:
    return TrainConfig(**({"steps": 10, "batch_size": 4, "length": 8} | fields))


def _rates(config: TrainConfig) -> list[float]:
    return [float(learning_rate(config, jnp.int32(step))) for step in range(config.steps)]


# Peak 1, ten steps, warm-up over the first two. The fall has 9 parts: to step 10, which is not run.
@pytest.mark.parametrize(
    ("schedule", "final", "expected"),
    [
        ("constant", 0.0, [0.5] + [1.0] * 9),
        ("linear", 0.0, [0.5] + [1 - i / 9 for i in range(9)]),
        ("linear", 0.1, [0.5] + [1 - 0.9 * i / 9 for i in range(9)]),
        ("cosine", 0.0, [0.5] + [(1 + np.cos(np.pi * i / 9)) / 2 for i in range(9)]),
    ],
)
def test_rates(schedule: str, final: float, expected: list[float]) -> None:
    config = _config(
        learning_rate=1.0, schedule=schedule, warmup_fraction=0.2, final_fraction=final
    )
    np.testing.assert_allclose(_rates(config), expected, atol=1e-6)


@pytest.mark.parametrize(
    ("fraction", "steps", "expected"),
    [(0.0, 10, 0), (0.05, 50, 3), (0.05, 100, 5), (0.07, 100, 7), (1.0, 10, 10)],
)
def test_warmup_is_whole_steps(fraction: float, steps: int, expected: int) -> None:
    assert _config(warmup_fraction=fraction, steps=steps).warmup_steps == expected


def test_without_warmup_the_first_step_has_the_peak() -> None:
    assert _rates(_config(learning_rate=0.3, warmup_fraction=0.0))[0] == pytest.approx(0.3)


def test_decay_is_on_matrices_only() -> None:
    """With gradients of 0, decay is all that happens."""
    params = {
        "embedding": jnp.ones((5, 4)),
        "final_norm": {"scale": jnp.ones(4)},
        "blocks": {
            "attention": {
                "query": jnp.ones((2, 4, 2, 2)),
                "query_bias": jnp.ones((2, 2, 2)),  # 2 layers of 2 heads
                "query_norm": {"scale": jnp.ones((2, 2, 2))},
            },
            "attention_norm": {"scale": jnp.ones((2, 4))},
            "feed_forward": {"up": jnp.ones((2, 4, 6))},
        },
    }
    config = _config(learning_rate=0.1, weight_decay=0.5, schedule="constant", warmup_fraction=0.0)
    optimizer = make_optimizer(config)
    updates, _ = optimizer.update(
        jax.tree.map(jnp.zeros_like, params), optimizer.init(params), params
    )
    changed = jax.tree.map(lambda update: float(update.min()), updates)
    assert changed == {
        "embedding": pytest.approx(-0.05),
        "final_norm": {"scale": 0.0},
        "blocks": {
            "attention": {
                "query": pytest.approx(-0.05),
                "query_bias": 0.0,
                "query_norm": {"scale": 0.0},
            },
            "attention_norm": {"scale": 0.0},
            "feed_forward": {"up": pytest.approx(-0.05)},
        },
    }


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"steps": 0}, "steps=0 must be at least 1"),
        ({"accumulation": 3}, "accumulation=3 must divide batch_size=4"),
        ({"schedule": "step"}, "schedule='step' is unknown; choose one of constant"),
        ({"learning_rate": float("nan")}, "learning_rate=nan must be a finite number"),
        ({"warmup_fraction": 1.5}, r"warmup_fraction=1.5 must be in \[0, 1\]"),
        ({"b2": 1.0}, r"b2=1.0 must be in \[0, 1\)"),
        ({"eps": 0.0}, "eps=0.0 must be greater than 0"),
        ({"gradient_clip": 0.0}, "gradient_clip=0.0 must be > 0, or None"),
        ({"seed": -1}, "seed=-1 must be from 0"),
    ],
)
def test_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _config(**fields)


def test_reach_is_the_longest_position() -> None:
    assert _config().reach == 8
    pose = PositionSampling(sampler="pose", target_length=64)
    assert _config(positions=pose).reach == 64
