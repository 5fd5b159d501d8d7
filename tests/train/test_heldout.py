"""The held-out loss counts every target of the chosen rows once."""

import itertools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rrope_jax.model.presets import PRESETS
from rrope_jax.sharding import MeshConfig, make_mesh
from rrope_jax.train.config import TrainConfig
from rrope_jax.train.heldout import Heldout, HeldoutConfig
from rrope_jax.train.loop import EvaluationStopped
from rrope_jax.train.sharded import make_placement
from rrope_jax.train.step import Program

TINY = PRESETS["tiny"]
PROGRAM = Program(TINY.model, TINY.rope, TrainConfig(steps=1, batch_size=1, length=8))
PLACEMENT = make_placement(PROGRAM, make_mesh(MeshConfig()))
DOCUMENTS = [np.arange(n) for n in (21, 4, 9)]  # 20, 3 and 8 pairs: rows of 8, 8, 4, 3 and 8


class _Counting:
    """A model whose loss on every target is the token before it."""

    model, train, segmented = PROGRAM.model, PROGRAM.train, PROGRAM.segmented
    far_layers = PROGRAM.far_layers

    def heldout(self, params: Any, batch: Any) -> tuple[jax.Array, jax.Array]:
        return jnp.sum(batch["tokens"] * batch["weights"]), jnp.sum(batch["weights"])


def _heldout(config: HeldoutConfig, documents: Sequence[np.ndarray] = DOCUMENTS) -> Heldout:
    return Heldout(_Counting(), PLACEMENT, config, documents)  # type: ignore[arg-type]


def _mean(config: HeldoutConfig) -> float:
    return _heldout(config)({})["eval_loss"]


@pytest.mark.parametrize("batch_size", [1, 2, 5, 7])
def test_all_rows_count_once(batch_size: int) -> None:
    expected = (sum(range(20)) + sum(range(3)) + sum(range(8))) / 31
    assert _mean(HeldoutConfig(batch_size=batch_size)) == pytest.approx(expected)


def test_few_rows_are_spread_over_the_text() -> None:
    # the first and the third of five rows
    assert _mean(HeldoutConfig(max_rows=2)) == pytest.approx((28 + 16 + 17 + 18 + 19) / 12)


def test_it_is_the_loss_of_the_model() -> None:
    params = jax.jit(PROGRAM.init)(jax.random.key(0)).params
    found = Heldout(PROGRAM, PLACEMENT, HeldoutConfig(batch_size=2), DOCUMENTS)(params)
    assert found["eval_loss"] == pytest.approx(np.log(TINY.model.vocab_size), rel=0.02)


@pytest.mark.parametrize("at", [1, 2, 5])
def test_it_stops_where_it_is_told(at: int) -> None:
    asked = itertools.count(1)
    with pytest.raises(EvaluationStopped):
        _heldout(HeldoutConfig())({}, lambda: next(asked) == at)
    assert next(asked) == at + 1


def test_asked_before_each_of_five_batches() -> None:
    asked = itertools.count(1)
    assert _heldout(HeldoutConfig())({}, lambda: next(asked) == 6) == _heldout(HeldoutConfig())({})


def test_fingerprint_is_of_the_rows() -> None:
    fingerprint = _heldout(HeldoutConfig()).fingerprint
    assert _heldout(HeldoutConfig(batch_size=4)).fingerprint == fingerprint
    assert _heldout(HeldoutConfig(max_rows=2)).fingerprint != fingerprint
    assert _heldout(HeldoutConfig(length=4)).fingerprint != fingerprint
    other = [*DOCUMENTS[:2], DOCUMENTS[2] + 1]
    assert _heldout(HeldoutConfig(), other).fingerprint != fingerprint
    assert _heldout(HeldoutConfig(), DOCUMENTS[::-1]).fingerprint != fingerprint


def test_bad_field_is_refused() -> None:
    with pytest.raises(ValueError, match="batch_size=0 must be at least 1"):
        HeldoutConfig(batch_size=0)
