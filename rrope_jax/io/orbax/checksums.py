"""Checksums of a checkpoint's content, compared when it is read.

Array checksums cover elements, not files: they are the same on any mesh, each device sums its own
shards, and nothing has to be read twice.
"""

import functools
import hashlib
import json
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

ARRAYS, METADATA = "arrays", "metadata"

_PIECE = 1 << 20  # elements


def of_array(array: Any) -> str:
    """Returns the checksum of an array's elements and their order as 16 hexadecimal digits.

    For an array that is sharded over several processes, all of them must call this.
    """
    if (host := _on_host(array)) is not None:
        sums = _of_pieces(host)
    else:
        sums = jax.device_get(_program(_everywhere(array))(array))
    return "".join(f"{int(each) % 2**32:08x}" for each in sums)


def of_tree(tree: Any) -> dict[str, str]:
    """Returns the checksum of each array by its path, such as `params.embed.table`."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="."): of_array(leaf)
        for path, leaf in jax.tree.leaves_with_path(tree)
    }


def of_json(value: Any) -> str:
    """Returns the checksum of a JSON-serializable value; a round trip through JSON keeps it."""
    read = json.loads(json.dumps(value))
    return hashlib.blake2b(json.dumps(read, sort_keys=True).encode(), digest_size=8).hexdigest()


def check_arrays(sums: Mapping[str, Any], tree: Any) -> None:
    """Compares all arrays of a tree with their checksums.

    Args:
      sums: the `ARRAYS` entry of a checkpoint's checksums.
      tree: the arrays.

    Raises:
      ValueError: an array differs from what was saved; the message names it.
    """
    _check(sums, of_tree(tree))


def check_array(sums: Mapping[str, Any], name: str, array: Any) -> None:
    """Compares one array with its checksum; see `check_arrays`."""
    _check({name: sums.get(name)}, {name: of_array(array)})


def check_metadata(sums: Any, value: Any) -> Mapping[str, str]:
    """Compares metadata with its checksum.

    Args:
      sums: all checksums of a checkpoint.
      value: the metadata.

    Returns:
      The checksums of the arrays.

    Raises:
      ValueError: the metadata differ from what was saved, or the checksums are malformed.
    """
    arrays = sums.get(ARRAYS) if isinstance(sums, dict) else None
    if not isinstance(arrays, dict) or sums.get(METADATA) != of_json(value):
        raise ValueError("damaged: it is not what was saved")
    return arrays


def _check(saved: Mapping[str, Any], read: Mapping[str, str]) -> None:
    for name in sorted(saved.keys() | read.keys()):
        if saved.get(name) != read.get(name):
            raise ValueError(f"damaged: {name} is not what was saved")


def _everywhere(array: jax.Array) -> jax.sharding.Sharding | None:
    """The sharding of an array's sums: replicated over its mesh; None if it has no mesh."""
    if not isinstance(array.sharding, jax.sharding.NamedSharding):
        return None
    return jax.sharding.NamedSharding(array.sharding.mesh, jax.sharding.PartitionSpec())


@functools.cache
def _program(everywhere: jax.sharding.Sharding | None) -> Any:
    """Returns a jitted function for the sums of a whole array; it compiles once for each shape."""
    return jax.jit(
        lambda array: _sums(_words(array), _places(array.shape)), out_shardings=everywhere
    )


def _on_host(array: Any) -> NDArray[Any] | None:
    """Returns an array as a numpy array if it is in this host's memory, otherwise None."""
    if isinstance(array, jax.Array):
        devices = array.devices()
        if len(devices) > 1 or any(device.platform != "cpu" for device in devices):
            return None
    return np.asarray(array)


def _of_pieces(array: NDArray[Any]) -> tuple[int, int]:
    """Computes the sums of an array in host memory; compiles once for all shapes."""
    flat = np.ascontiguousarray(array).reshape(-1)
    flat = flat.view(f"u{min(flat.itemsize, 4)}")
    first = second = 0
    for start in range(0, flat.size, _PIECE):
        piece = flat[start : start + _PIECE]
        size = piece.size
        if size < _PIECE:
            piece = np.pad(piece, (0, _PIECE - size))
        one, other = _sums_of_piece(piece, np.uint32(start % 2**32), np.uint32(size))
        first, second = first + int(one), second + int(other)
    return first, second


@jax.jit
def _sums_of_piece(
    piece: jax.Array, start: jax.Array, size: jax.Array
) -> tuple[jax.Array, jax.Array]:
    places = _places(piece.shape)
    return _sums(_words(piece), start + places, places < size)


def _sums(
    words: jax.Array, places: jax.Array, counts: jax.Array | bool = True
) -> tuple[jax.Array, jax.Array]:
    """Computes two sums, modulo 2^32, of words that are mixed with their positions.

    Sums can be accumulated in any order. The mixing is a permutation (the finalizer of
    MurmurHash3), so a change to a single word always changes the sums.

    Args:
      words: uint32, of any shape.
      places: uint32, the position of each word in the whole array.
      counts: bool, which words to include.
    """
    mixed = _mix(words ^ (places * np.uint32(0x9E3779B1) + np.uint32(0x243F6A88)))
    mixed = jnp.where(counts, mixed, np.uint32(0))
    weighted = mixed * (places * np.uint32(2) + np.uint32(1))

    def add(one: tuple[jax.Array, ...], other: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        return one[0] + other[0], one[1] + other[1]

    # One reduction for both: with two, XLA would materialize the input that they share.
    zeros = (np.uint32(0), np.uint32(0))
    first, second = jax.lax.reduce((mixed, weighted), zeros, add, tuple(range(words.ndim)))
    return first, second


def _places(shape: tuple[int, ...]) -> jax.Array:
    """The row-major index of each element of an array of this shape, modulo 2^32."""
    places = jnp.zeros(shape, jnp.uint32)
    for axis, size in enumerate(shape):
        places = places * np.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, shape, axis)
    return places


def _words(array: jax.Array) -> jax.Array:
    """The bits of each element as uint32."""
    if array.dtype == jnp.bool_:
        return array.astype(jnp.uint32)
    unsigned = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}[array.dtype.itemsize]
    return jax.lax.bitcast_convert_type(array, unsigned).astype(jnp.uint32)


def _mix(word: jax.Array) -> jax.Array:
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        word = (word ^ (word >> np.uint32(shift))) * np.uint32(factor)
    return word ^ (word >> np.uint32(16))
