"""Llama 3's scaling behind the list of factors that llama.cpp stores."""

import numpy as np
import pytest

from rrope_jax import rope
from rrope_jax.rope import RopeSpec


def _stored(spec: RopeSpec) -> list[float]:
    plain = rope.frequencies(RopeSpec(head_dim=spec.head_dim, theta=spec.theta)).inv_freq
    return (plain / rope.frequencies(spec).inv_freq).astype(np.float32).astype(float).tolist()


@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("factor", [8.0, 32.0])
@pytest.mark.parametrize("context", [2048, 8192, 131072])
def test_the_ramp_tells_the_context(head_dim: int, factor: float, context: int) -> None:
    spec = RopeSpec(
        head_dim=head_dim,
        theta=5e5,
        scaling="llama3",
        factor=factor,
        original_context=context,
    )
    assert rope.llama3_context(_stored(spec), theta=5e5) == context


@pytest.mark.parametrize(
    "factors",
    [
        [1.0] * 32,
        [8.0] * 32,
        [1.0] * 16 + [8.0] * 16,  # no feature on a ramp
        [0.5] * 16 + [8.0] * 16,
        [1e30] * 32,
        np.linspace(1, 8, 32).tolist(),
        [8.0] * 11 + [3.0] + [1.0] * 20,
    ],
)
def test_other_lists_tell_nothing(factors: list[float]) -> None:
    assert rope.llama3_context(factors, theta=1e4) is None


@pytest.mark.parametrize("scaling", ["yarn", "ntk", "linear"])
def test_other_scalings_are_not_taken_for_it(scaling: str) -> None:
    fields = {"original_context": 2048} if scaling == "yarn" else {}
    spec = RopeSpec(head_dim=64, scaling=scaling, factor=4.0, **fields)
    assert rope.llama3_context(_stored(spec), theta=1e4) is None
