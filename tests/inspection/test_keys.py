"""Which keys of a file are found to determine the positions."""

from collections.abc import Mapping
from typing import Any

import pytest

from rrope_jax.inspection.keys import find_keys
from rrope_jax.inspection.positions import Positions, of_layers
from rrope_jax.rope import RopeSpec


def read(keys: Mapping[str, Any]) -> Positions:
    """A file format of its own: the base is the first of two keys; sizes have to agree."""
    if keys["size"] != keys["group"]["size"] or keys["kind"] != "rotary":
        raise ValueError("refused")
    theta = keys.get("rope_theta", keys["group"]["rope_base"])
    types = ("full_attention", "sliding_attention") if keys["use_window"] else ("full_attention",)
    return of_layers(
        RopeSpec(head_dim=keys["size"], theta=float(theta)),
        types,
        keys["window"] if keys["use_window"] else None,
        context=100,
        original_context=None,
    )


KEYS: dict[str, Any] = {
    "size": 64,
    "kind": "rotary",
    "use_window": True,
    "window": 16,
    "rope_theta": 1e4,
    "group": {"size": 64, "rope_base": 5e5},
    "positions_of_something": 3,
    "title": "a model",
    "labels": None,
}


def test_a_key_is_read_if_its_value_makes_a_difference() -> None:
    keys = find_keys(KEYS, read)
    assert keys.read["full_attention"]["rope_theta"] == ("theta",)
    assert keys.read["sliding_attention"]["window"] == ("window",)
    assert "window" not in keys.read["full_attention"]
    assert keys.read["sliding_attention"]["use_window"] == ("layers",)


def test_keys_about_positions_without_effect() -> None:
    """The base of the group counts only where there is no other; a title is not about positions."""
    not_read = find_keys(KEYS, read).not_read
    assert not_read == {"group.rope_base": 5e5, "positions_of_something": 3}


def test_an_idle_switch_makes_its_key_idle() -> None:
    keys = find_keys({**KEYS, "use_window": False}, read)
    assert keys.not_read["window"] == 16
    assert keys.read["full_attention"]["use_window"] == ("layers",)


def test_a_thing_said_twice_is_read_in_both_places() -> None:
    """No value fits alone; `size` is not about positions by name, as `rope_dim` is."""
    said = {"rope_dim": 64, "group": {"rope_dim": 64}}

    def both(keys: Mapping[str, Any]) -> Positions:
        if keys["rope_dim"] != keys["group"]["rope_dim"]:
            raise ValueError("contradiction")
        spec = RopeSpec(head_dim=keys["rope_dim"])
        return of_layers(spec, None, None, context=None, original_context=None)

    found = find_keys(said, both).read["full_attention"]
    assert found == {"rope_dim": ("head_dim",), "group.rope_dim": ("head_dim",)}


def test_a_file_that_is_refused_is_an_error() -> None:
    with pytest.raises(ValueError, match="refused"):
        find_keys({**KEYS, "kind": "learned"}, read)
