"""Reads the positions of a GGUF file whose architecture `Decoder` does not have."""

from typing import Any

from rrope_jax.inspection.positions import Positions, of_layers
from rrope_jax.io.families.family import ONE_LIST, Gguf
from rrope_jax.io.gguf.container import Contents
from rrope_jax.io.gguf.embedding import ORIGINAL_CONTEXT, rope_of
from rrope_jax.io.gguf.read import keys_of_architecture
from rrope_jax.rope.fields import is_int


def by_names(contents: Contents) -> Positions:
    """Reads the keys about positions by their names, which all architectures share.

    Raises:
      ValueError: a key is missing or has a value that no embedding can have.
    """
    architecture = contents.metadata.get("general.architecture")
    if not isinstance(architecture, str):
        raise ValueError(f"general.architecture={architecture!r} must be a string")
    keys = keys_of_architecture(contents.metadata, f"{architecture}.")
    for key in ("context_length", "rope.dimension_count", ORIGINAL_CONTEXT):
        if key in keys and not (is_int(keys[key]) and keys[key] > 0):
            raise ValueError(f"{architecture}.{key}={keys[key]!r} must be an integer above 0")
    notes = []
    if keys.get("attention.sliding_window"):
        notes.append(
            f"attention.sliding_window={keys['attention.sliding_window']}: which layers have this "
            "window is not known"
        )
    gguf = Gguf(architecture, frequency_factors=ONE_LIST)
    return of_layers(
        rope_of(contents, gguf, keys, _head_dim(keys, architecture)),
        None,
        None,
        context=keys.get("context_length"),
        original_context=keys.get(ORIGINAL_CONTEXT),
        notes=tuple(notes),
    )


def _head_dim(keys: dict[str, Any], architecture: str) -> int:
    length: Any = keys.get("attention.key_length")
    if is_int(length):
        return int(length)
    size: Any = keys.get("embedding_length")
    heads: Any = keys.get("attention.head_count")
    if not (is_int(size) and is_int(heads) and heads > 0):
        raise ValueError(
            f"it has no {architecture}.attention.key_length, and no embedding_length and "
            "attention.head_count to make it of"
        )
    return int(size // heads)
