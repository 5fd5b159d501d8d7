"""Sizes of a mesh, the rules, and what they refuse."""

import jax
import pytest
from jax.sharding import PartitionSpec

from rrope_jax.sharding import AXES, RULES, MeshConfig, make_mesh, spec


def _mesh(names: tuple[str, ...] = AXES) -> jax.sharding.AbstractMesh:
    return jax.sharding.AbstractMesh((2,) * len(names), names)


@pytest.mark.parametrize(
    ("config", "devices", "expected"),
    [
        (MeshConfig(), 1, (1, 1, 1, 1)),
        (MeshConfig(), 8, (1, 8, 1, 1)),
        (MeshConfig(data=2, seq=2), 8, (2, 2, 2, 1)),
        (MeshConfig(data=-1, fsdp=4, tensor=2), 64, (8, 4, 1, 2)),
        (MeshConfig(fsdp=1, seq=4, tensor=2), 8, (1, 1, 4, 2)),
    ],
)
def test_one_size_is_inferred(config: MeshConfig, devices: int, expected: tuple[int, ...]) -> None:
    assert config.sizes(devices) == expected


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"data": 0}, "data=0 must be at least 1, or -1 for what is left"),
        ({"seq": -2}, "seq=-2 must be at least 1"),
        ({"data": -1}, "data and fsdp are -1; only one axis"),
        ({"num_slices": 0}, "num_slices=0 must be at least 1"),
    ],
)
def test_bad_sizes_are_refused(fields: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MeshConfig(**fields)


@pytest.mark.parametrize("config", [MeshConfig(seq=3), MeshConfig(fsdp=2), MeshConfig(data=16)])
def test_sizes_that_are_not_the_devices_are_refused(config: MeshConfig) -> None:
    with pytest.raises(ValueError, match="does not make a mesh of 8 devices"):
        config.sizes(8)


def test_slices_lie_along_data_or_fsdp() -> None:
    with pytest.raises(ValueError, match="num_slices=3 divides neither data=2 nor fsdp=4"):
        make_mesh(MeshConfig(data=2, fsdp=4, num_slices=3), [None] * 8)  # type: ignore[list-item]


def test_rules_put_parameters_over_fsdp_and_seq() -> None:
    found = spec(("d_model", "heads", None), _mesh())
    assert found == PartitionSpec(("fsdp", "seq"), "tensor", None)


def test_an_axis_that_the_mesh_lacks_does_not_count() -> None:
    assert spec(("batch", "length"), _mesh(("data",))) == PartitionSpec("data", None)


def test_no_axis_of_a_mesh_is_used_twice() -> None:
    with pytest.raises(ValueError, match="no axis of a mesh can be used twice"):
        spec(("heads", "vocab_size"), _mesh())


def test_rules_cannot_be_changed() -> None:
    with pytest.raises(TypeError):
        RULES["batch"] = ("tensor",)  # type: ignore[index]
