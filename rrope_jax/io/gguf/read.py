"""Reads GGUF files as llama.cpp does."""

import functools
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rrope_jax.io.description import FOLDED_TEMPERATURE, Description
from rrope_jax.io.families.family import Family, Gguf
from rrope_jax.io.families.table import FAMILIES, named
from rrope_jax.io.gguf import container as gguf_file
from rrope_jax.io.gguf import tokenizer as gguf_tokenizer
from rrope_jax.io.gguf import vocabulary as gguf_vocabulary
from rrope_jax.io.gguf.embedding import ORIGINAL_CONTEXT, rope_of
from rrope_jax.io.gguf.keys import NUMBER, check_keys, model_of, required
from rrope_jax.io.gguf.vocabulary import Vocabulary
from rrope_jax.io.source import Source
from rrope_jax.io.stored import Layout, check_tensors
from rrope_jax.io.tokenizer import end_of_text
from rrope_jax.io.weights import EMBEDDING, Array, Part, Weight

_log = logging.getLogger(__name__)

FOLDED = f"rrope.{FOLDED_TEMPERATURE}"
# Special tokens: GGUF's names and the corresponding keys of config.json.
TOKEN_IDS = {"bos": "bos_token_id", "padding": "pad_token_id"}


def is_gguf(path: Path) -> bool:
    """Whether a path is a file that starts with GGUF's magic bytes."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(len(gguf_file.MAGIC)) == gguf_file.MAGIC


class GgufSource(Source):
    """The model in a GGUF file."""

    def __init__(self, path: Path) -> None:
        """Opens a file and reads its header; see `container.read_header`.

        Raises:
          ValueError: the file is damaged, or a part of the model is missing.
        """
        self.path: Path = path
        self._contents = gguf_file.read_header(path)

    def _describe(self) -> Description:
        return _describe(self.path, self._contents)

    def _check(self) -> None:
        for name, tensor in self._contents.tensors.items():
            gguf_file.check_kind(name, tensor)
        check_tensors(
            {name: tensor.shape for name, tensor in self._contents.tensors.items()},
            self.description.model,
            self._gguf.all_names,
            where=str(self.path),
            ignored=set(self._gguf.frequency_factors),
        )

    @functools.cached_property
    def _gguf(self) -> Gguf:
        gguf = named(self.description.family).gguf
        assert gguf is not None  # else the file would not be described
        return gguf

    @functools.cached_property
    def _layout(self) -> Layout:
        return Layout(self.description.model, self._gguf.all_names)

    def matrix(self, weight: Weight, layer: int, part: Part | None = None) -> Array:
        """Returns one weight or a part of it; see `Source.matrix`."""
        place = self._layout.place(weight, layer)
        tensor = self._contents.tensors[place.name]
        matrix = gguf_file.read_tensor(place.name, tensor, place.cut(part))
        model = self.description.model
        if weight.rotated and self._gguf.adjacent_pairs:
            return to_half_split(matrix, model.head_size, self.description.rope.rotary_dim)
        if weight.is_norm and self._gguf.norm_offset:
            return matrix - np.float32(1)
        return matrix


def to_half_split(matrix: Array, head_size: int, rotary_dim: int) -> Array:
    """Reorders rows from llama.cpp's rotary pairs (2i, 2i + 1) to ours, (i, i + rotary_dim / 2).

    Args:
      matrix: whole heads, one below the other; a matrix or a vector.
      head_size: rows of a head.
      rotary_dim: the first rows of each head, which are rotated.
    """
    return _reorder(matrix, head_size, rotary_dim, (-1, 2))


def to_adjacent(matrix: Array, head_size: int, rotary_dim: int) -> Array:
    """The inverse of `to_half_split`."""
    return _reorder(matrix, head_size, rotary_dim, (2, -1))


def _reorder(matrix: Array, head_size: int, rotary_dim: int, split: tuple[int, int]) -> Array:
    by_head = matrix.reshape(-1, head_size, *matrix.shape[1:])
    rotated, rest = np.split(by_head, [rotary_dim], axis=1)
    pairs = rotated.reshape(len(rotated), *split, *matrix.shape[1:]).swapaxes(1, 2)
    return np.concatenate([pairs.reshape(rotated.shape), rest], axis=1).reshape(matrix.shape)


def _family(metadata: Mapping[str, Any]) -> tuple[Family, Gguf]:
    architecture = metadata.get("general.architecture")
    known = {
        family.gguf.architecture: (family, family.gguf)
        for family in reversed(FAMILIES.values())  # the first of several that share one
        if family.gguf is not None
    }
    if not isinstance(architecture, str) or architecture not in known:
        raise ValueError(
            f"general.architecture={architecture!r} is not implemented; choose a model of "
            f"{', '.join(reversed(known))}"
        )
    return known[architecture]


def _describe(path: Path, contents: gguf_file.Contents) -> Description:
    try:
        description, notes = description_of(contents)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    for note in notes:
        _log.warning("%s: %s", path, note)
    return description


def description_of(contents: gguf_file.Contents) -> tuple[Description, Sequence[str]]:
    """The description of a file, and what to warn of.

    Raises:
      ValueError: its architecture or a key is not implemented, or a part of the model is missing.
    """
    metadata = contents.metadata
    family, gguf = _family(metadata)
    prefix = f"{gguf.architecture}."
    keys = keys_of_architecture(metadata, prefix)
    check_keys(gguf, keys)
    temperature = metadata.get(FOLDED)
    if temperature is not None and not NUMBER[1](temperature):
        raise ValueError(f"{FOLDED}={str(temperature)[:80]} must be {NUMBER[0]}")
    embedding = contents.tensors.get(EMBEDDING.gguf)
    if embedding is None:
        raise ValueError(f"it has no weight {EMBEDDING.gguf!r}; it is not a whole model")
    model = model_of(gguf, keys, contents.tensors.keys(), embedding.shape[0])
    vocabulary = gguf_vocabulary.read(metadata)
    extras = _token_ids(metadata, vocabulary, model.vocab_size)
    windowed = "sliding_attention" in model.layer_types
    spec = rope_of(contents, gguf, keys, model.head_size, windowed=windowed)
    original = keys.get(ORIGINAL_CONTEXT)
    description = Description(
        model=model,
        rope=spec,
        context=required(gguf, keys, "context_length"),
        original_context=None if original == spec.original_context else original,
        tokenizer=None if vocabulary is None else gguf_tokenizer.files_of(vocabulary),
        extras=extras if temperature is None else extras | {FOLDED_TEMPERATURE: temperature},
        family=family.name,
    )
    return description, () if vocabulary is None else vocabulary.notes


def keys_of_architecture(metadata: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """The keys of a file that start with a prefix, without it."""
    return {
        key.removeprefix(prefix): _shortest(_one_for_all_layers(value))
        for key, value in metadata.items()
        if key.startswith(prefix)
    }


def _one_for_all_layers(value: Any) -> Any:
    """Reduces a list of equal values, one per layer, to that value; returns others unchanged."""
    if isinstance(value, list) and value and all(each == value[0] for each in value):
        return value[0]
    return value


def _token_ids(
    metadata: Mapping[str, Any], vocabulary: Vocabulary | None, vocab_size: int
) -> dict[str, Any]:
    """The config.json entries for special tokens, without ids outside the model's vocabulary."""
    if vocabulary is None:
        ids = gguf_vocabulary.ids_alone(metadata)
        ends = list(dict.fromkeys(ids[name] for name in gguf_vocabulary.ENDS if name in ids))
    else:
        ids, ends = dict(vocabulary.ids), list(vocabulary.ends)
    keys: dict[str, Any] = {
        theirs: ids[name]
        for name, theirs in TOKEN_IDS.items()
        if name in ids and 0 <= ids[name] < vocab_size
    }
    ends = [index for index in ends if 0 <= index < vocab_size]
    if ends:
        keys[end_of_text.KEY] = ends if len(ends) > 1 else ends[0]
    return keys


def _shortest(value: Any) -> Any:
    """Rounds a float to the shortest decimal of its float32: 1e-05, not 9.99999974e-06."""
    return float(str(np.float32(value))) if isinstance(value, float) else value
