"""Names of topologies: what is read, and what is refused in one line."""

import importlib.util

import pytest

from rrope_jax.planning import topology
from rrope_jax.planning.chips import CHIPS, Torus
from rrope_jax.planning.topology import parse


@pytest.fixture(autouse=True)
def _installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if everything that compiles were installed."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())


def test_sizes() -> None:
    assert parse("v5p:4x4x4").size == 64
    assert parse("v5p:4x4x4", num_slices=2).size == 128
    assert parse("tpu7x:2x2x1").size == 8  # two devices on each chip
    assert parse("h100:1x8x8").size == 64
    assert parse("cpu:8").size == 8


@pytest.mark.parametrize(
    ("name", "slices", "reason"),
    [
        ("v9:4x4", 1, "'v9:4x4' is no topology; .* v5p"),
        ("v5p", 1, "CHIP:SIZES"),
        ("v5p:4xx4", 1, "CHIP:SIZES"),
        ("v5p:4x4", 1, r"sizes of v5p are 3 \(chips x chips x chips\)"),
        ("v5e:0x4", 1, "at least 1"),
        ("h100:8", 1, r"islands x hosts x GPUs"),
        ("h100:1x8x8", 2, "only TPUs come in slices"),
    ],
)
def test_refusals(name: str, slices: int, reason: str) -> None:
    with pytest.raises(ValueError, match=reason) as caught:
        parse(name, slices)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("name", "what"), [("v5p:2x2x1", "libtpu"), ("h100:1x1x1", "jax-cuda12")])
def test_what_is_not_installed_is_named(
    name: str, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=what):
        parse(name)


@pytest.mark.parametrize(
    ("chip", "shape", "rings"),
    [
        ("v5p", (4, 4, 8), (True, True, True)),
        ("v5p", (2, 4, 4), (False, False, False)),  # less than a cube of 4 x 4 x 4
        ("v5e", (8, 16), (False, True)),
        ("v6e", (16, 16), (True, True)),
    ],
)
def test_rings(chip: str, shape: tuple[int, ...], rings: tuple[bool, ...]) -> None:
    network = CHIPS[chip].network
    assert isinstance(network, Torus)
    assert network.wraps(shape) == rings


def test_every_chip_has_its_sources_and_a_target_where_xla_asks_for_one() -> None:
    for name, chip in CHIPS.items():
        assert chip.sources, name
        assert (chip.gpu is None) == (chip.platform != "gpu"), name
        if chip.gpu is not None:
            assert chip.memory < chip.gpu.memory
            assert f"core_count: {chip.gpu.cores}\n" in topology.target_config(chip)
