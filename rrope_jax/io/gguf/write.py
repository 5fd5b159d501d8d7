"""Writes GGUF files that stock llama.cpp loads."""

import dataclasses
import logging
import math
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from rrope_jax.io.description import FOLDED_TEMPERATURE, Description
from rrope_jax.io.dtypes import DTYPES, Dtype, cast
from rrope_jax.io.families.family import Family, Gguf
from rrope_jax.io.families.table import first_without, named
from rrope_jax.io.gguf import embedding as gguf_embedding
from rrope_jax.io.gguf import tokenizer as gguf_tokenizer
from rrope_jax.io.gguf import vocabulary as gguf_vocabulary
from rrope_jax.io.gguf.keys import keys_of, obstacle
from rrope_jax.io.gguf.read import (
    FOLDED,
    TOKEN_IDS,
    to_adjacent,
)
from rrope_jax.io.portable import NO_TEMPERATURES, Temperatures, factor_lists
from rrope_jax.io.source import Source
from rrope_jax.io.stored import Layout, Tensor
from rrope_jax.io.tokenizer.end_of_text import end_ids
from rrope_jax.io.weights import Array
from rrope_jax.model import ModelConfig
from rrope_jax.rope.fields import is_int
from rrope_jax.rope.resonance import rule_of_list

_log = logging.getLogger(__name__)

_NAME = "rrope"


def express(description: Description, portable: bool) -> tuple[Description, Temperatures]:
    """Expresses a model as one of a family, its embedding in a form that llama.cpp supports.

    Plain RoPE, `linear`, `ntk` and `yarn` stay unchanged, and so do Phi-3's lists. Everything else,
    or any embedding if `portable`, becomes a list of factors, where the architecture reads one.

    Returns:
      The description with that family and embedding, and the temperatures to fold into the weights.

    Raises:
      ValueError: llama.cpp has no such model; or the frequencies depend on the sequence length.
    """
    model, spec = description.model, description.rope

    def native(gguf: Gguf) -> bool:
        # without lists, there is no other form
        return gguf_embedding.is_native(gguf, spec) and not (portable and gguf.frequency_factors)

    def why_not(family: Family) -> str | None:
        reason = obstacle(family, model, _tensor_names(family, model))
        gguf = family.gguf
        if reason is not None or gguf is None:
            return reason
        return gguf_embedding.obstacle(gguf, model, spec, native=native(gguf))

    family = first_without(why_not, description.family)
    description = dataclasses.replace(description, family=family.name)
    if native(_gguf_of(description)):
        return description, NO_TEMPERATURES
    return factor_lists(description)


def _tensor_names(family: Family, model: ModelConfig) -> Collection[str]:
    names = {} if family.gguf is None else family.gguf.all_names
    return Layout(model, names).tensors.keys() if names else ()


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
    gguf = _gguf_of(description)
    writer = GGUFWriter(path, gguf.architecture)
    try:
        _add(writer, _metadata(description, dtype))
        layout = Layout(description.model, gguf.all_names)
        types = {
            tensor.name: dtype if len(tensor.shape) > 1 else DTYPES["float32"] for tensor in layout
        }
        lists = gguf_embedding.factors_of(gguf, description.rope)
        for name, factors in lists.items():
            writer.add_tensor_info(name, factors.shape, factors.dtype, factors.nbytes)
        for tensor in layout:
            kind = types[tensor.name]
            size = math.prod(tensor.shape) * kind.numpy.itemsize
            writer.add_tensor_info(
                tensor.name, tensor.shape, kind.numpy, size, GGMLQuantizationType(kind.gguf)
            )
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for factors in lists.values():
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
    if gguf.norm_offset and all(weight.is_norm for weight in tensor.weights):
        matrix = matrix + np.float32(1)
    return matrix


def _metadata(description: Description, dtype: Dtype) -> dict[str, Any]:
    model, spec, gguf = description.model, description.rope, _gguf_of(description)
    keys = {
        **keys_of(gguf, model),
        "context_length": description.context,
        **gguf_embedding.keys_of(gguf, model, spec),
    }
    if description.original_context is not None:
        keys.setdefault(gguf_embedding.ORIGINAL_CONTEXT, description.original_context)
    metadata = {
        "general.type": "model",
        "general.name": _NAME,
        "general.file_type": dtype.gguf_file_type,
        **{f"{gguf.architecture}.{key}": value for key, value in keys.items()},
        **gguf_tokenizer.metadata_of(description.tokenizer, model.vocab_size),
    }
    metadata |= {f"{gguf_embedding.OURS}{key}": each for key, each in rule_of_list(spec).items()}
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
