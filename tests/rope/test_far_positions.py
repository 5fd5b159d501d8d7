"""Positions of far pairs: values worked by hand, fields, names, and what has no form for them."""

import dataclasses
from typing import Any

import numpy as np
import pytest

from rrope_jax import rope
from rrope_jax.rope import RopeSpec
from rrope_jax.rope.far_positions import FAR_POSITIONS, far_positions_of, far_positions_within
from rrope_jax.rope.methods import method_of, parse_method, plain_variant

SELF_EXTEND = RopeSpec(head_dim=8, far_positions="self_extend", far_window=4, far_group=3)
JET_LONG = RopeSpec(head_dim=8, far_positions="jet_long", far_window=4, far_context=8)


def test_self_extend_of_twelve_tokens_by_hand() -> None:
    """W = 4, G = 3: the shift is 4 - 4 // 3 = 3."""
    far = far_positions_of(SELF_EXTEND)
    assert far == (4, 3, 3)
    keys, queries = far.of_keys(np.arange(12)), far.of_queries(np.arange(12))
    np.testing.assert_array_equal(keys, [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3])
    np.testing.assert_array_equal(queries, [3, 3, 3, 4, 4, 4, 5, 5, 5, 6, 6, 6])
    # what the last query sees: eight far keys at 6 - [0, 0, 0, 1, 1, 1, 2, 2], then 3, 2, 1, 0
    np.testing.assert_array_equal(queries[11] - keys[:8], [6, 6, 6, 5, 5, 5, 4, 4])


@pytest.mark.parametrize(("window", "group"), [(4, 2), (6, 3), (8, 8), (5, 1)])
def test_self_extend_has_no_gap_and_reaches_what_the_paper_says(window: int, group: int) -> None:
    """At W tokens the distance goes on at W, and (L - W) G + W tokens stay below distance L."""
    spec = dataclasses.replace(SELF_EXTEND, far_window=window, far_group=group)
    far, context = far_positions_of(spec), 12
    length = (context - window) * group + window
    distances = far.of_queries(np.arange(length))[:, None] - far.of_keys(np.arange(length))
    apart = np.arange(length)[:, None] - np.arange(length)
    assert np.abs(distances[apart == window] - window).max() <= 1
    assert distances[apart >= window].max() == context - 1


def test_jet_long_squeezes_any_length_into_its_context() -> None:
    for length, group in ((8, 1), (9, 2), (16, 2), (17, 3), (80, 10)):
        far = far_positions_of(JET_LONG, length)
        assert far == (4, group, 0)
        assert max(far.of_queries(np.arange(length))) <= 7
    assert far_positions_of(JET_LONG) == (4, 1, 0)


@pytest.mark.parametrize(
    ("spec", "seq_len", "window", "changes"),
    [
        (SELF_EXTEND, None, None, True),
        (SELF_EXTEND, 5, None, True),
        (SELF_EXTEND, 4, None, False),  # the largest distance is 3
        (SELF_EXTEND, 50, 5, True),
        (SELF_EXTEND, 50, 4, False),
        (dataclasses.replace(SELF_EXTEND, far_group=1), 50, None, False),
        (JET_LONG, 8, None, False),
        (JET_LONG, 9, None, True),
        (RopeSpec(head_dim=8), 50, None, False),
    ],
)
def test_layers_without_far_pairs_do_without(
    spec: RopeSpec, seq_len: int | None, window: int | None, changes: bool
) -> None:
    assert (far_positions_within(spec, seq_len, window) is not None) is changes


@pytest.mark.parametrize("rule", [False, True])
@pytest.mark.parametrize("scaling", ["none", "linear"])
@pytest.mark.parametrize("name", [name for name in FAR_POSITIONS if name != "none"])
def test_names_read_back(name: str, scaling: str, rule: bool) -> None:
    fields = {"far_window": 4, "far_group": 3, "far_context": 8, "factor": 2.0, "head_dim": 8}
    spec = rope.spec_for_method(fields, scaling, resonance=rule, far_positions=name)
    method = method_of(spec)
    assert method == ("resonance_" if rule else "") + name + (
        "_linear" if scaling != "none" else ""
    )
    assert parse_method(method) == (scaling, rule)
    assert plain_variant(method) == method_of(dataclasses.replace(spec, resonance=False))


def test_fields_at_their_defaults_are_not_written() -> None:
    assert not [name for name in RopeSpec(head_dim=8).fields() if name.startswith("far_")]
    assert SELF_EXTEND.fields()["far_group"] == 3
    assert "far_context" not in SELF_EXTEND.fields()
    for spec in (SELF_EXTEND, JET_LONG):
        assert RopeSpec(**spec.fields()) == spec
        assert spec != RopeSpec(head_dim=8)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"far_positions": "grouped"},
            "far_positions='grouped' is unknown; choose one of none, se",
        ),
        ({"far_positions": "self_extend", "far_window": 4}, "far_group is not set, but far_pos"),
        ({"far_window": 4}, "far_window=4 has no effect with far_positions='none'"),
        ({"far_positions": "self_extend", "far_window": 0, "far_group": 2}, "far_window=0 must be"),
        ({"far_positions": "self_extend", "far_window": 4, "far_group": 0}, "far_group=0 must be"),
        (
            {"far_positions": "jet_long", "far_window": 9, "far_context": 8},
            r"at most far_context \(",
        ),
    ],
)
def test_wrong_fields_are_named(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RopeSpec(head_dim=8, **fields)


def test_config_json_has_no_form_for_them() -> None:
    with pytest.raises(ValueError, match="far_positions='self_extend': no other runtime reads"):
        rope.to_hf(SELF_EXTEND)
