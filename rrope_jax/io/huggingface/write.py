"""Writes Hugging Face folders that stock transformers, vLLM and others load."""

import dataclasses
import json
import logging
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rrope_jax import rope
from rrope_jax.io.description import Description
from rrope_jax.io.dtypes import Dtype, cast
from rrope_jax.io.families.family import Family
from rrope_jax.io.families.table import first_without, named
from rrope_jax.io.huggingface.config import keys_of, obstacle
from rrope_jax.io.huggingface.read import CONFIG, INDEX_FILE, TOKEN_IDS, WEIGHTS_FILE
from rrope_jax.io.portable import (
    NO_TEMPERATURES,
    ROTATED,
    Temperatures,
    factor_lists,
    rope_of_rotated,
)
from rrope_jax.io.source import Source
from rrope_jax.io.stored import Layout, Tensor
from rrope_jax.io.tokenizer.end_of_text import GENERATION, KEY, end_ids
from rrope_jax.io.tokenizer.files import SCORES

_log = logging.getLogger(__name__)

DEFAULT_SHARD_BYTES = 5 * 10**9


def express(description: Description, portable: bool) -> tuple[Description, Temperatures]:
    """Expresses a model as one of a family, its embedding in a form that transformers supports.

    Embeddings that transformers has a `rope_type` for stay unchanged, with the temperature in
    config.json. Everything else, or any embedding if `portable`, becomes lists of factors. Its
    temperature goes into the weights, since runtimes other than transformers ignore the temperature
    of such lists.

    Returns:
      The description with that family and embedding, and the temperatures to fold into the weights.

    Raises:
      ValueError: the model or its embedding cannot be expressed.
    """
    model, spec = description.model, rope_of_rotated(description)

    def why_not(family: Family) -> str | None:
        return obstacle(family, model) or rope.why_not_in_hf(spec, model_type=family.name)

    family = first_without(why_not, description.family)
    description = dataclasses.replace(description, family=family.name, rope=spec)
    names = ROTATED if portable else _without_a_name(description)
    return factor_lists(description, names) if names else (description, NO_TEMPERATURES)


def _without_a_name(description: Description) -> list[str]:
    """The layer types whose embedding transformers has only lists of factors for."""
    spec, parameters = description.rope, _rope_keys(description)["rope_parameters"]
    types = {name: parameters.get(name, parameters)["rope_type"] for name in ROTATED}
    return [
        name
        for name in ROTATED
        if types[name] == "longrope" and spec.of(name).scaling != "longrope"
    ]


def write(source: Source, folder: Path, dtype: Dtype, *, shard_bytes: int) -> None:
    """Writes a model into a new folder, one weight at a time.

    Args:
      source: the model, with an embedding from `express`.
      folder: an existing empty folder.
      dtype: dtype of all weights.
      shard_bytes: maximum size of a weight file, unless a single weight is larger.

    Raises:
      ValueError: a weight overflows in the dtype.
    """
    description = source.description
    config = config_of(description, dtype)
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n")
    if description.tokenizer is not None:
        description.tokenizer.write(folder)
        if SCORES in description.tokenizer.files:
            _log.warning(
                "several tokens have equal scores, which no tokenizer.json can say: programs other "
                "than rrope join characters in another order in some texts"
            )
    if not (folder / GENERATION).exists() and (generation := _generation(description)):
        (folder / GENERATION).write_text(json.dumps(generation, indent=2) + "\n")
    names = named(description.family).huggingface_names
    shards = list(_shards(Layout(description.model, names), dtype, shard_bytes))
    if len(shards) == 1:
        _write_safetensors(source, folder / WEIGHTS_FILE, shards[0], dtype)
        return
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        name = f"model-{number:05}-of-{len(shards):05}.safetensors"
        _write_safetensors(source, folder / name, shard, dtype)
        weight_map |= {tensor.name: name for tensor in shard}
    total = sum(_bytes(tensor, dtype) for shard in shards for tensor in shard)
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / INDEX_FILE).write_text(json.dumps(index, indent=2) + "\n")


def _shards(layout: Layout, dtype: Dtype, shard_bytes: int) -> Iterator[Sequence[Tensor]]:
    shard: list[Tensor] = []
    size = 0
    for tensor in layout:
        if shard and size + _bytes(tensor, dtype) > shard_bytes:
            yield shard
            shard, size = [], 0
        shard.append(tensor)
        size += _bytes(tensor, dtype)
    yield shard


def _write_safetensors(source: Source, path: Path, shard: Sequence[Tensor], dtype: Dtype) -> None:
    """Writes tensors one at a time; the library's own writer needs all of them in memory."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}  # required by transformers
    offset = 0
    for tensor in shard:
        end = offset + _bytes(tensor, dtype)
        header[tensor.name] = {
            "dtype": dtype.safetensors,
            "shape": list(tensor.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)
    with path.open("wb") as file:
        file.write(len(encoded).to_bytes(8, "little") + encoded)
        for tensor in shard:
            cast(source.tensor(tensor), dtype, tensor.name).tofile(file)


def _bytes(tensor: Tensor, dtype: Dtype) -> int:
    return math.prod(tensor.shape) * dtype.numpy.itemsize


def _rope_keys(description: Description) -> dict[str, Any]:
    # Dynamic NTK starts to stretch at this length, so it must not be the extended one.
    dynamic = description.rope.scaling == "dynamic_ntk"
    keys = rope.to_hf(
        description.rope,
        model_type=named(description.family).name,
        max_position_embeddings=None if dynamic else description.context,
    )
    parameters = keys["rope_parameters"]
    rope_type = parameters.get("full_attention", parameters)["rope_type"]
    key, original = "original_max_position_embeddings", description.original_context
    # informational: these types do not use it; Ministral 3 has it among the parameters
    if rope_type in ("default", "linear") and original not in (None, parameters.get(key)):
        keys[key] = original
    return keys


def config_of(description: Description, dtype: Dtype) -> dict[str, Any]:
    """The config.json of a description that `express` returned."""
    family = named(description.family)
    return {
        "architectures": [family.architecture],
        "model_type": family.name,
        **keys_of(family, description.model),
        "attention_dropout": 0.0,
        "use_cache": True,
        "dtype": dtype.numpy.name,  # transformers 5
        "torch_dtype": dtype.numpy.name,  # transformers 4
        **dict.fromkeys(TOKEN_IDS),  # null: transformers defaults to 1 and 2
        **description.extras,
        **_rope_keys(description),
    }


def _generation(description: Description) -> dict[str, Any]:
    """The generation_config.json for a model with several end tokens; empty for others."""
    ends = list(end_ids(description))
    if len(ends) < 2:
        return {}
    others = {key: description.extras[key] for key in TOKEN_IDS if key in description.extras}
    return others | {KEY: ends}
