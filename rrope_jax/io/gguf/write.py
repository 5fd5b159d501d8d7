"""Writes GGUF files that stock llama.cpp loads."""

import dataclasses
import logging
import math
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from rrope_jax.io.description import FOLDED_TEMPERATURE, Description
from rrope_jax.io.dtypes import DTYPES, Dtype, cast
from rrope_jax.io.families.family import Family, Gguf
from rrope_jax.io.families.table import first_without, named
from rrope_jax.io.gguf import tokenizer as gguf_tokenizer
from rrope_jax.io.gguf import vocabulary as gguf_vocabulary
from rrope_jax.io.gguf.keys import keys_of, obstacle
from rrope_jax.io.gguf.read import (
    FOLDED,
    FREQUENCY_FACTORS,
    ORIGINAL_CONTEXT,
    RESONANCE,
    TOKEN_IDS,
    to_adjacent,
)
from rrope_jax.io.portable import NO_TEMPERATURES, Temperatures, factor_lists
from rrope_jax.io.source import Source
from rrope_jax.io.stored import Layout, Tensor
from rrope_jax.io.tokenizer.end_of_text import end_ids
from rrope_jax.io.weights import Array
from rrope_jax.model import ModelConfig
from rrope_jax.rope import RopeSpec, frequencies
from rrope_jax.rope.factor_lists import NEVER_TURNS
from rrope_jax.rope.fields import is_int
from rrope_jax.rope.scalings import stretched_theta

_log = logging.getLogger(__name__)

_NAME = "rrope"


def _plain(spec: RopeSpec) -> dict[str, Any]:
    return {"rope.freq_base": float(spec.theta)}


def _linear(spec: RopeSpec) -> dict[str, Any]:
    return _plain(spec) | {"rope.scaling.type": "linear", "rope.scaling.factor": spec.extension}


def _ntk(spec: RopeSpec) -> dict[str, Any]:
    return {"rope.freq_base": stretched_theta(spec, spec.extension)}


def _yarn(spec: RopeSpec) -> dict[str, Any]:
    return _plain(spec) | {
        "rope.scaling.type": "yarn",
        "rope.scaling.factor": spec.extension,
        ORIGINAL_CONTEXT: spec.original_context,
    }


# Scalings that llama.cpp computes itself, if all fields but `_BASIC_FIELDS` have their defaults.
_NATIVE: dict[str, Callable[[RopeSpec], dict[str, Any]]] = {
    "none": _plain,
    "linear": _linear,
    "ntk": _ntk,
    "yarn": _yarn,
}
_BASIC_FIELDS = ("head_dim", "theta", "scaling", "factor", "original_context")


def express(description: Description, portable: bool) -> tuple[Description, Temperatures]:
    """Expresses a model as one of a family, its embedding in a form that llama.cpp supports.

    Plain RoPE, `linear`, `ntk` and `yarn` stay unchanged. Everything else, or any embedding if
    `portable`, becomes a list of factors.

    Returns:
      The description with that family and embedding, and the temperatures to fold into the weights.

    Raises:
      ValueError: llama.cpp has no such model; or the frequencies depend on the sequence length.
    """
    native = not portable and _is_native(description.rope)
    model = description.model

    def why_not(family: Family) -> str | None:
        if family.gguf is not None and not native and not family.gguf.frequency_factors:
            return (
                f"llama.cpp's architecture {family.gguf.architecture!r} reads no list of "
                f"frequencies, and it has no name for this embedding; only "
                f"{', '.join(repr(name) for name in _NATIVE)} can be written, or a Hugging Face "
                "folder"
            )
        return obstacle(family, model, _tensor_names(family, model))

    family = first_without(why_not, description.family)
    description = dataclasses.replace(description, family=family.name)
    return (description, NO_TEMPERATURES) if native else factor_lists(description)


def _tensor_names(family: Family, model: ModelConfig) -> Collection[str]:
    names = {} if family.gguf is None else family.gguf.all_names
    return Layout(model, names).tensors.keys() if names else ()


def _is_native(spec: RopeSpec) -> bool:
    basic = {name: getattr(spec, name) for name in _BASIC_FIELDS}
    return spec.scaling in _NATIVE and spec == RopeSpec(**basic)


def write(source: Source, path: Path, dtype: Dtype) -> None:
    """Writes a model, one weight at a time.

    Args:
      source: the model, with an embedding from `express`.
      path: the new file.
      dtype: dtype of the matrices; llama.cpp requires norms and frequency factors in float32.

    Raises:
      ValueError: a weight overflows in the dtype, or GGUF cannot express the tokenizer.
    """
    from gguf import GGMLQuantizationType, GGUFWriter

    description = source.description
    spec, gguf = description.rope, _gguf_of(description)
    writer = GGUFWriter(path, gguf.architecture)
    try:
        _add(writer, _metadata(description, dtype))
        layout = Layout(description.model, gguf.all_names)
        types = {
            tensor.name: dtype if len(tensor.shape) > 1 else DTYPES["float32"] for tensor in layout
        }
        factors = None if _is_native(spec) else _factors(spec)
        if factors is not None:
            writer.add_tensor_info(FREQUENCY_FACTORS, factors.shape, factors.dtype, factors.nbytes)
        for tensor in layout:
            kind = types[tensor.name]
            size = math.prod(tensor.shape) * kind.numpy.itemsize
            writer.add_tensor_info(
                tensor.name, tensor.shape, kind.numpy, size, GGMLQuantizationType(kind.gguf)
            )
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        if factors is not None:
            writer.write_tensor_data(factors)
        for tensor in layout:
            stored = _stored(source, tensor, gguf)
            writer.write_tensor_data(cast(stored, types[tensor.name], tensor.name))
    finally:
        writer.close()


def _gguf_of(description: Description) -> Gguf:
    gguf = named(description.family).gguf
    assert gguf is not None  # chosen by `express`
    return gguf


def _stored(source: Source, tensor: Tensor, gguf: Gguf) -> Array:
    """A tensor as llama.cpp stores it."""
    matrix = source.tensor(tensor)
    description = source.description
    if gguf.adjacent_pairs and all(weight.rotated for weight in tensor.weights):
        matrix = to_adjacent(matrix, description.model.head_size, description.rope.rotary_dim)
    return matrix


def _factors(spec: RopeSpec) -> np.ndarray:
    """The divisors, float32[head_dim / 2], that llama.cpp applies to plain RoPE's frequencies."""
    plain = frequencies(RopeSpec(head_dim=spec.head_dim, theta=spec.theta)).inv_freq
    scaled = frequencies(spec).inv_freq
    factors = np.full(plain.shape, NEVER_TURNS)
    factors[: scaled.size] = np.minimum(plain[: scaled.size] / scaled, NEVER_TURNS)
    return factors.astype(np.float32)


def _metadata(description: Description, dtype: Dtype) -> dict[str, Any]:
    model, spec, gguf = description.model, description.rope, _gguf_of(description)
    keys = {
        **keys_of(gguf, model),
        "context_length": description.context,
        "rope.dimension_count": model.head_size,
        **(_NATIVE[spec.scaling](spec) if _is_native(spec) else _plain(spec)),
    }
    if description.original_context is not None:
        keys.setdefault(ORIGINAL_CONTEXT, description.original_context)
    metadata = {
        "general.type": "model",
        "general.name": _NAME,
        "general.file_type": dtype.gguf_file_type,
        **{f"{gguf.architecture}.{key}": value for key, value in keys.items()},
        **gguf_tokenizer.metadata_of(description.tokenizer, model.vocab_size),
    }
    if spec.resonance:
        metadata[RESONANCE] = True
    if FOLDED_TEMPERATURE in description.extras:
        metadata[FOLDED] = float(description.extras[FOLDED_TEMPERATURE])
    for name, key in TOKEN_IDS.items():
        value = description.extras.get(key)
        # Some configs use -1 for a missing token.
        if value is not None and is_int(value) and 0 <= value < model.vocab_size:
            metadata.setdefault(f"{gguf_vocabulary.PREFIX}{name}_token_id", value)
    metadata |= _ends(description, metadata)
    return metadata


def _ends(description: Description, metadata: Mapping[str, Any]) -> dict[str, Any]:
    """The keys for tokens that end a text; logs a warning if there are more tokens than keys."""
    keys = [f"{gguf_vocabulary.PREFIX}{name}_token_id" for name in gguf_vocabulary.ENDS[:3]]
    end_keys: dict[str, Any] = {key: metadata[key] for key in keys if key in metadata}
    size = description.model.vocab_size
    end_tokens = [index for index in end_ids(description, end_keys.get(keys[0])) if index < size]
    if keys[0] not in end_keys and end_tokens:
        end_keys[keys[0]] = end_tokens[0]
    vocabulary = gguf_vocabulary.read({**metadata, **end_keys})
    read_back = end_keys.values() if vocabulary is None else vocabulary.ends
    missing = [index for index in end_tokens if index not in read_back]
    free = [key for key in keys if key not in end_keys]
    if lost := missing[len(free) :]:
        _log.warning(
            "texts end at the tokens %s; GGUF has keys for three of them, and llama.cpp will not "
            "stop at %s",
            end_tokens,
            lost,
        )
    return end_keys | dict(zip(free, missing, strict=False))


def _add(writer: Any, metadata: Mapping[str, Any]) -> None:
    add = {
        bool: writer.add_bool,
        int: writer.add_uint32,
        float: writer.add_float32,
        str: writer.add_string,
        list: writer.add_array,
    }
    for key, value in metadata.items():
        add[type(value)](key, value)
