"""Writes GGUF files of the `llama` architecture that stock llama.cpp loads."""

import logging
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from rrope_jax.io.description import FOLDED_TEMPERATURE, Description
from rrope_jax.io.dtypes import DTYPES, Dtype, cast
from rrope_jax.io.gguf import tokenizer as gguf_tokenizer
from rrope_jax.io.gguf import vocabulary as gguf_vocabulary
from rrope_jax.io.gguf.read import (
    ARCHITECTURE,
    FOLDED,
    FREQUENCY_FACTORS,
    ORIGINAL_CONTEXT,
    RESONANCE,
    TOKEN_IDS,
    to_interleaved,
)
from rrope_jax.io.portable import factor_lists
from rrope_jax.io.source import Source
from rrope_jax.io.tokenizer.end_of_text import end_ids
from rrope_jax.io.weights import matrix_shapes
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


def express(description: Description, portable: bool) -> tuple[Description, float]:
    """Expresses a model's rotary embedding in a form that llama.cpp supports.

    Plain RoPE, `linear`, `ntk` and `yarn` stay unchanged. Everything else, or any embedding if
    `portable`, becomes a list of factors.

    Returns:
      The description with that embedding, and the temperature to fold into the weights.

    Raises:
      ValueError: the frequencies depend on the sequence length.
    """
    if not portable and _is_native(description.rope):
        return description, 1.0
    return factor_lists(description)


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
    spec, model = description.rope, description.model
    writer = GGUFWriter(path, ARCHITECTURE)
    try:
        _add(writer, _metadata(description, dtype))
        shapes = matrix_shapes(description.model)
        types = {
            (weight, layer): dtype if len(shape) > 1 else DTYPES["float32"]
            for (weight, layer), shape in shapes.items()
        }
        factors = None if _is_native(spec) else _factors(spec)
        if factors is not None:
            writer.add_tensor_info(FREQUENCY_FACTORS, factors.shape, factors.dtype, factors.nbytes)
        for (weight, layer), shape in shapes.items():
            kind = types[weight, layer]
            size = math.prod(shape) * kind.numpy.itemsize
            writer.add_tensor_info(
                weight.gguf.format(layer=layer),
                shape,
                kind.numpy,
                size,
                GGMLQuantizationType(kind.gguf),
            )
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        if factors is not None:
            writer.write_tensor_data(factors)
        for weight, layer in shapes:
            matrix = source.matrix(weight, layer)
            if weight.heads is not None:
                heads = getattr(model, weight.heads)
                matrix = to_interleaved(matrix, heads, spec.rotary_dim)
            name = weight.gguf.format(layer=layer)
            writer.write_tensor_data(cast(matrix, types[weight, layer], name))
    finally:
        writer.close()


def _factors(spec: RopeSpec) -> np.ndarray:
    """The divisors, float32[head_dim / 2], that llama.cpp applies to plain RoPE's frequencies."""
    plain = frequencies(RopeSpec(head_dim=spec.head_dim, theta=spec.theta)).inv_freq
    scaled = frequencies(spec).inv_freq
    factors = np.full(plain.shape, NEVER_TURNS)
    factors[: scaled.size] = np.minimum(plain[: scaled.size] / scaled, NEVER_TURNS)
    return factors.astype(np.float32)


def _metadata(description: Description, dtype: Dtype) -> dict[str, Any]:
    model, spec = description.model, description.rope
    keys = {
        "block_count": model.num_layers,
        "context_length": description.context,
        "embedding_length": model.d_model,
        "feed_forward_length": model.d_ff,
        "attention.head_count": model.num_heads,
        "attention.head_count_kv": model.kv_heads,
        "attention.key_length": model.head_size,
        "attention.value_length": model.head_size,
        "attention.layer_norm_rms_epsilon": model.rms_norm_eps,
        "vocab_size": model.vocab_size,
        "rope.dimension_count": model.head_size,
        **(_NATIVE[spec.scaling](spec) if _is_native(spec) else _plain(spec)),
    }
    if description.original_context is not None:
        keys.setdefault(ORIGINAL_CONTEXT, description.original_context)
    metadata = {
        "general.type": "model",
        "general.name": _NAME,
        "general.file_type": dtype.gguf_file_type,
        **{f"{ARCHITECTURE}.{key}": value for key, value in keys.items()},
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
