"""Checksums of arrays: the same on any mesh, another one for any change."""

import os
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from rrope_jax.io.orbax import checksums

ROOT = Path(__file__).parents[2]

DTYPES = ("float32", "bfloat16", "float16", "int32", "uint8", "int8", "bool")


def _array(dtype: str) -> np.ndarray:
    numbers = np.random.default_rng(0).integers(0, 2, (3, 5, 7)).astype(np.uint8)
    return np.asarray(jnp.asarray(numbers).astype(dtype))


@pytest.mark.parametrize("dtype", DTYPES)
def test_any_bit_shows(dtype: str) -> None:
    array = _array(dtype)
    before = checksums.of_array(array)
    assert len(before) == 16
    data = array.tobytes()
    bits = [0] if dtype == "bool" else range(8)
    for place in range(0, len(data), 13):
        for bit in bits:
            changed = bytearray(data)
            changed[place] ^= 1 << bit
            other = np.frombuffer(bytes(changed), array.dtype).reshape(array.shape)
            assert checksums.of_array(other) != before, (place, bit)


@pytest.mark.parametrize("dtype", DTYPES)
def test_order_counts(dtype: str) -> None:
    array = _array(dtype)
    before = checksums.of_array(array)
    assert checksums.of_array(array[:, ::-1].copy()) != before
    assert checksums.of_array(np.roll(array, 1)) != before
    assert checksums.of_array(array[:, :-1]) != before


def test_numbers_that_are_not_numbers() -> None:
    nans = np.array([0x7FC00000, 0x7FC00001], np.uint32).view(np.float32)
    assert checksums.of_array(nans[:1]) != checksums.of_array(nans[1:])
    assert checksums.of_array(np.float32(0.0)) != checksums.of_array(np.float32(-0.0))


def _mixed(word: int) -> int:
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        word = (word ^ (word >> shift)) * factor % 2**32
    return word ^ (word >> 16)


def test_it_is_what_its_definition_says_and_stays_so() -> None:
    """Or no checkpoint that was saved before could be read any more."""
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    words = enumerate(map(int, array.view(np.uint32).reshape(-1)))
    mixed = [_mixed(word ^ (place * 0x9E3779B1 + 0x243F6A88) % 2**32) for place, word in words]
    weighted = [(2 * place + 1) * word for place, word in enumerate(mixed)]
    defined = f"{sum(mixed) % 2**32:08x}{sum(weighted) % 2**32:08x}"
    sums = checksums.of_tree({"a": {"b": (array, array.T.copy())}})
    assert sums == {"a.b.0": "4499f519c401dcc1", "a.b.1": "6d73dbf986d7fe7b"}
    assert sums["a.b.0"] == defined
    assert checksums.of_json({"b": [1, 0.1], "a": "ü"}) == "b5d60a441fcfdab7"


def test_json_is_the_same_after_it_is_read() -> None:
    assert checksums.of_json({"a": (1, 2), 3: 1 / 3}) == checksums.of_json(
        {"3": 1 / 3, "a": [1, 2]}
    )
    assert checksums.of_json({"a": 1}) != checksums.of_json({"a": 2})


def test_it_needs_no_memory() -> None:
    """A training that fills its devices can be saved."""
    array = jnp.zeros((64, 1024), jnp.float32)
    program = checksums._program(None).lower(array).compile()
    assert program.memory_analysis().temp_size_in_bytes < array.nbytes / 10


@pytest.mark.parametrize("size", [0, 1, 10, 100, 101, 250])
def test_pieces_make_a_whole(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    array = np.random.default_rng(0).normal(size=size).astype(np.float32)
    whole = checksums.of_array(array)
    monkeypatch.setattr(checksums, "_PIECE", 50)
    assert checksums.of_array(array) == whole
    sums = checksums._program(None)(array)
    assert "".join(f"{int(each):08x}" for each in sums) == whole


def test_no_mesh_changes_it() -> None:
    code = (
        "import jax, numpy as np\n"
        "from jax.sharding import NamedSharding, Mesh, PartitionSpec as P\n"
        "from rrope_jax.io.orbax import checksums\n"
        "array = np.random.default_rng(0).normal(size=(8, 4, 6)).astype(np.float32)\n"
        "print(checksums.of_array(array))\n"
        "mesh = Mesh(np.array(jax.devices()).reshape(4, 2), ('x', 'y'))\n"
        "for spec in (P(), P('x'), P(('x', 'y')), P('y', 'x'), P(None, 'x', 'y')):\n"
        "    print(checksums.of_array(jax.device_put(array, NamedSharding(mesh, spec))))\n"
        "for dtype in ('bfloat16', 'int8', 'bool'):\n"
        "    other = np.asarray(jax.numpy.asarray(array).astype(dtype))\n"
        "    placed = jax.device_put(other, NamedSharding(mesh, P('x', 'y')))\n"
        "    assert checksums.of_array(placed) == checksums.of_array(other), dtype\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=os.environ
        | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_force_host_platform_device_count=8"},
        capture_output=True,
        text=True,
        check=True,
    )
    lines = done.stdout.split()
    assert len(lines) == 6
    assert len(set(lines)) == 1
