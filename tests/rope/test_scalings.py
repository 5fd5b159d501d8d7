"""A scaling is one function and one row of a table."""

from typing import Any

import numpy as np
import pytest

from rrope_jax import rope
from rrope_jax.reporting.methods import method_label
from rrope_jax.rope import SCALINGS, RopeSpec
from rrope_jax.rope.methods import method_of, parse_method
from rrope_jax.rope.scalings import SCALING_FIELDS, Scaling, unread_fields


def test_fields_that_a_scaling_does_not_read() -> None:
    assert unread_fields("none") == SCALING_FIELDS
    assert unread_fields("longrope").isdisjoint(SCALINGS["longrope"].reads)
    assert unread_fields("no scaling") == frozenset()


def _halves(spec: Any, seq_len: int | None) -> np.ndarray:
    return np.full(spec.rotary_dim // 2, 0.5 / spec.factor)


@pytest.mark.parametrize("resonance", [False, True])
def test_a_new_row_works_everywhere(resonance: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    factor = frozenset({"factor"})
    monkeypatch.setitem(SCALINGS, "halves", Scaling(_halves, reads=factor, requires=factor))
    spec = RopeSpec(head_dim=8, scaling="halves", factor=2.0, resonance=resonance)
    name = "resonance_halves" if resonance else "halves"
    assert spec.fields()["factor"] == 2.0
    assert spec == RopeSpec(**spec.fields())
    assert method_of(spec) == name
    assert parse_method(name) == ("halves", resonance)
    assert method_label(name).endswith("halves")
    inv_freq = rope.frequencies(spec).inv_freq
    np.testing.assert_allclose(inv_freq, 2 * np.pi / 25 if resonance else 0.25, rtol=1e-15)
    back = rope.frequencies(rope.from_hf(rope.to_hf(spec))).inv_freq
    np.testing.assert_allclose(back, inv_freq, rtol=1e-14)
    with pytest.raises(ValueError, match="factor is not set, but scaling='halves' needs it"):
        RopeSpec(head_dim=8, scaling="halves")
