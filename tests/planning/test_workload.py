"""What a training asks of its devices."""

import dataclasses
from typing import Any

import jax
import pytest

from rrope_jax.model.presets import PRESETS
from rrope_jax.planning.workload import Demands, TextTraining
from rrope_jax.sharding import MeshConfig
from rrope_jax.train.config import TrainConfig
from rrope_jax.train.step import Program

TINY = PRESETS["tiny"]


def _demands(length: int = 32, **changes: Any) -> Demands:
    train = TrainConfig(steps=7, batch_size=2, length=length, loss_chunk=changes.pop("chunk", 4096))
    model = dataclasses.replace(TINY.model, **changes)
    training = TextTraining(Program(model, TINY.rope, train), MeshConfig())
    return training.demands(training.make_mesh(jax.devices("cpu")[:1]))


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"length": 256}, "xla"),
        ({"length": 1024}, "chunked"),  # from 512 x 512 pairs on
        ({"length": 1024, "attention": "xla"}, "xla"),
        ({"length": 1024, "dropout": 0.1}, "xla"),  # the only one with dropout
    ],
)
def test_attention_is_the_one_that_the_step_takes(changes: dict[str, Any], name: str) -> None:
    assert _demands(**changes).details["attention"] == name


def test_state_is_counted_in_bytes() -> None:
    demands = _demands()
    parameters = demands.details["parameters"]
    assert demands.state["parameters"] == demands.state["gradients"] == 4 * parameters
    assert demands.state["optimizer"] == 2 * 4 * parameters + 8  # and two counters
    assert (demands.calls, demands.steps, demands.tokens) == (7, 1, 64)


def test_logits_in_chunks_are_computed_twice() -> None:
    once, twice = _demands().executed_flops, _demands(chunk=16).executed_flops
    assert twice - once == 64 * 2 * TINY.model.d_model * TINY.model.vocab_size
