"""Writes Hugging Face folders that stock transformers, vLLM and others load as LLaMA models."""

import json
import logging
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rrope_jax import rope
from rrope_jax.io.description import Description
from rrope_jax.io.dtypes import Dtype, cast
from rrope_jax.io.huggingface.read import CONFIG, INDEX_FILE, MODEL_KEYS, TOKEN_IDS, WEIGHTS_FILE
from rrope_jax.io.portable import factor_lists
from rrope_jax.io.source import Source
from rrope_jax.io.tokenizer.end_of_text import GENERATION, KEY, end_ids
from rrope_jax.io.tokenizer.files import SCORES
from rrope_jax.io.weights import Weight, matrix_shapes
from rrope_jax.model import ModelConfig

_log = logging.getLogger(__name__)

DEFAULT_SHARD_BYTES = 5 * 10**9


def check_exportable(model: ModelConfig) -> None:
    """Raises ValueError unless a model has the LLaMA architecture."""
    fixed = {
        "activation": (model.activation, "swiglu"),
        "attention_scale": (model.scale, model.head_size**-0.5),
        "logit_scale": (model.logit_scale, 1.0),
    }
    for name, (value, exportable) in fixed.items():
        if value != exportable:
            raise ValueError(
                f"{name}={value!r} is not what LLaMA models of other runtimes do; only "
                f"{exportable!r} can be exported"
            )


def express(description: Description, portable: bool) -> tuple[Description, float]:
    """Expresses a model's rotary embedding in a form that transformers supports.

    Embeddings that transformers has a `rope_type` for stay unchanged, with the temperature in
    config.json. Everything else, or any embedding if `portable`, becomes lists of factors. Its
    temperature goes into the weights, since runtimes other than transformers ignore the temperature
    of such lists.

    Returns:
      The description with that embedding, and the temperature to fold into the weights.

    Raises:
      ValueError: the embedding cannot be expressed.
    """
    if not portable:
        keys = _rope_keys(description)
        lists = keys["rope_parameters"]["rope_type"] == "longrope"
        if not lists or description.rope.scaling == "longrope":
            return description, 1.0
    return factor_lists(description)


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
    config = _config(description, dtype)
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
    shards = list(_shards(matrix_shapes(description.model), dtype, shard_bytes))
    if len(shards) == 1:
        _write_safetensors(source, folder / WEIGHTS_FILE, shards[0], dtype)
        return
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        name = f"model-{number:05}-of-{len(shards):05}.safetensors"
        _write_safetensors(source, folder / name, shard, dtype)
        weight_map |= {_name(*key): name for key, _ in shard}
    total = sum(_bytes(shape, dtype) for shard in shards for _, shape in shard)
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / INDEX_FILE).write_text(json.dumps(index, indent=2) + "\n")


_Entry = tuple[tuple[Weight, int], tuple[int, ...]]


def _shards(
    shapes: dict[tuple[Weight, int], tuple[int, ...]], dtype: Dtype, shard_bytes: int
) -> Iterator[Sequence[_Entry]]:
    shard: list[_Entry] = []
    size = 0
    for key, shape in shapes.items():
        if shard and size + _bytes(shape, dtype) > shard_bytes:
            yield shard
            shard, size = [], 0
        shard.append((key, shape))
        size += _bytes(shape, dtype)
    yield shard


def _write_safetensors(source: Source, path: Path, shard: Sequence[_Entry], dtype: Dtype) -> None:
    """Writes tensors one at a time; the library's own writer needs all of them in memory."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}  # required by transformers
    offset = 0
    for key, shape in shard:
        end = offset + _bytes(shape, dtype)
        header[_name(*key)] = {
            "dtype": dtype.safetensors,
            "shape": list(shape),
            "data_offsets": [offset, end],
        }
        offset = end
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)
    with path.open("wb") as file:
        file.write(len(encoded).to_bytes(8, "little") + encoded)
        for key, _ in shard:
            cast(source.matrix(*key), dtype, _name(*key)).tofile(file)


def _name(weight: Weight, layer: int) -> str:
    return weight.huggingface.format(layer=layer)


def _bytes(shape: tuple[int, ...], dtype: Dtype) -> int:
    return math.prod(shape) * dtype.numpy.itemsize


def _rope_keys(description: Description) -> dict[str, Any]:
    # Dynamic NTK starts to stretch at this length, so it must not be the extended one.
    dynamic = description.rope.scaling == "dynamic_ntk"
    keys = rope.to_hf(
        description.rope, max_position_embeddings=None if dynamic else description.context
    )
    if description.original_context is not None and keys["rope_parameters"]["rope_type"] in (
        "default",
        "linear",
    ):  # informational: these types do not use it
        keys["original_max_position_embeddings"] = description.original_context
    return keys


def _config(description: Description, dtype: Dtype) -> dict[str, Any]:
    model = description.model
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        **{theirs: getattr(model, ours) for ours, theirs in MODEL_KEYS.items()},
        "hidden_act": "silu",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "mlp_bias": False,
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
