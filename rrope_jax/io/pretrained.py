"""Loads models from checkpoints of any format, which is detected from the content."""

import dataclasses
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
from flax import nnx

from rrope_jax.io.adapters.adapter import AdaptedSource
from rrope_jax.io.adapters.peft_read import CONFIG as PEFT_CONFIG
from rrope_jax.io.adapters.peft_read import is_peft, read_peft
from rrope_jax.io.adapters.trained import is_trained_adapter, read_trained
from rrope_jax.io.description import Description as Description
from rrope_jax.io.gguf.read import GgufSource, is_gguf
from rrope_jax.io.huggingface.read import HuggingFaceSource, is_huggingface
from rrope_jax.io.local_copies import checkpoint_here
from rrope_jax.io.orbax.read import OrbaxSource, is_orbax
from rrope_jax.io.paths import check_known
from rrope_jax.io.source import Source
from rrope_jax.io.target import left_behind
from rrope_jax.io.weights import parameter_shapes
from rrope_jax.model import Decoder
from rrope_jax.model.config import WEIGHT_DTYPES
from rrope_jax.model.decoder import abstract_decoder
from rrope_jax.rope import RopeSpec


class _Format(NamedTuple):
    recognises: Callable[[Path], bool]
    open: Callable[[Path], Source]


def _open_trained_adapter(path: Path) -> Source:
    """The base of a run with LoRA, with the adapter merged."""
    adapter, description = read_trained(path)
    assert adapter.base is not None
    try:
        base = open_source(adapter.base.path)
    except ValueError as error:
        raise ValueError(
            f"{path} is an adapter, and its base cannot be read: {error}; name where it is now as "
            "--checkpoint=BASE --adapter=FOLDER"
        ) from error
    return AdaptedSource(base, adapter, description)


def open_adapted(
    base: str | os.PathLike[str] | Source, adapter: str | os.PathLike[str]
) -> AdaptedSource:
    """Opens a base with an adapter that is merged into its weights.

    Args:
      base: a path as for `open_source`, or an opened source.
      adapter: a PEFT folder, or a training workdir, or checkpoint in it, of a run with LoRA.

    Raises:
      ValueError: one of them does not exist, is damaged or is something else; or the adapter is
        not of the base.
    """
    opened = base if isinstance(base, Source) else open_source(base)
    check_known(adapter)
    folder = Path(os.path.abspath(checkpoint_here(adapter)))
    if is_peft(folder):
        return AdaptedSource(opened, *read_peft(folder, opened.description))
    if is_trained_adapter(folder):
        return AdaptedSource(opened, *read_trained(folder))
    raise ValueError(
        f"{adapter} is no adapter: neither a PEFT folder with {PEFT_CONFIG}, nor the workdir of a "
        "run of rrope train with config.lora"
    )


FORMATS: dict[str, _Format] = {
    "gguf": _Format(is_gguf, GgufSource),
    "lora": _Format(is_trained_adapter, _open_trained_adapter),
    "orbax": _Format(is_orbax, OrbaxSource),
    "hf": _Format(is_huggingface, HuggingFaceSource),
}
# Fields of ModelConfig that any weights can have: how to compute, and which layers see what.
OVERRIDABLE = (
    *("compute_dtype", "remat", "attention", "dropout", "layer_types", "sliding_window"),
    "weight_dtype",
)


def format_of(path: str | os.PathLike[str]) -> str:
    """Detects the format of a checkpoint, a key of `FORMATS`, from its content.

    Raises:
      ValueError: the path does not exist or is not a checkpoint.
    """
    check_known(path)
    checkpoint = Path(os.path.abspath(checkpoint_here(path)))
    for name, row in FORMATS.items():
        if row.recognises(checkpoint):
            return name
    if (left := left_behind(checkpoint)) is not None:
        raise ValueError(
            f"{path} does not exist: it was being replaced when a process was killed; move {left} "
            "there, or convert again"
        )
    if not checkpoint.exists():
        raise ValueError(f"{path} does not exist; give a checkpoint")
    if is_peft(checkpoint):
        raise ValueError(
            f"{path} is an adapter without its base; name both, as --checkpoint=BASE "
            f"--adapter={path}"
        )
    if ggufs := sorted(checkpoint.glob("*.gguf")):
        raise ValueError(
            f"{path} is a folder with GGUF files; name one of them, such as {ggufs[0].name}"
        )
    raise ValueError(
        f"{path} is no checkpoint: neither a GGUF file, nor a Hugging Face folder with config.json "
        "and safetensors, nor a model folder or training workdir of rrope (pickled weights, such "
        "as .bin and .pth, are never read)"
    )


def open_source(path: str | os.PathLike[str]) -> Source:
    """Opens a checkpoint without reading its weights.

    Args:
      path: a GGUF file, a Hugging Face folder, one of our model folders, a training workdir (its
        newest checkpoint is used) or a single checkpoint in it.

    Raises:
      ValueError: the path does not exist or is not a checkpoint.
    """
    here = checkpoint_here(path)
    return FORMATS[format_of(here)].open(Path(os.path.abspath(here)))


def describe(path: str | os.PathLike[str]) -> Description:
    """Returns the description of a checkpoint's model without reading its weights.

    Raises:
      ValueError: see `open_source`; or `Decoder` does not support the model.
    """
    return open_source(path).description


def load_params(
    source: Source,
    shardings: Mapping[str, Any] | None = None,
    *,
    weight_dtype: str = "float32",
) -> dict[str, Any]:
    """Loads the parameters of a checkpoint.

    Parameters are loaded one at a time, largest first, to keep the host's peak memory low, and
    rounded on the way. Each process reads only what its devices need.

    Args:
      source: the checkpoint.
      shardings: a sharding for each parameter, in the structure of the result; None puts everything
        on the default device.
      weight_dtype: as in ModelConfig, which gives the dtypes and structure of the result.

    Returns:
      Arrays in the structure of `nnx.to_pure_dict(nnx.state(decoder))`.

    Raises:
      ValueError: a weight is missing, unknown, damaged or of the wrong shape.
    """
    source.check()
    shapes = parameter_shapes(source.description.model)
    flat_shardings = {} if shardings is None else nnx.traversals.flatten_mapping(shardings)
    dtypes = WEIGHT_DTYPES[weight_dtype]
    params = {}
    for weight in sorted(shapes, key=lambda weight: -math.prod(shapes[weight])):
        path = tuple(weight.path.split("."))
        sharding = flat_shardings.get(path)
        if weight.is_kernel and dtypes.kernels == "int8":
            scale_path = (*path[:-1], f"{path[-1]}_scale")
            kernel = source.int8_kernel(weight, sharding, flat_shardings.get(scale_path))
            params[path], params[scale_path] = jax.block_until_ready(kernel)
            continue
        dtype = "float32"
        if weight.is_kernel:
            dtype = dtypes.kernels
        elif weight.is_embedding:
            dtype = dtypes.embeddings
        # Wait: an unfinished copy would keep its source buffer alive.
        params[path] = jax.block_until_ready(source.parameter(weight, sharding, dtype))
    nested: dict[str, Any] = nnx.traversals.unflatten_mapping(params)
    return nested


def load(
    checkpoint: str | os.PathLike[str] | Source,
    *,
    rope: RopeSpec | None = None,
    model: Mapping[str, Any] = MappingProxyType({}),
    shardings: Any = None,
) -> tuple[Decoder, Description]:
    """Builds the decoder of a checkpoint, with float32 parameters unless `model` says otherwise.

    Args:
      checkpoint: a path as for `open_source`, or an opened source.
      rope: a rotary embedding to use instead of the checkpoint's.
      model: overrides for fields of ModelConfig that are in `OVERRIDABLE`.
      shardings: as for `load_params`, or a pytree like `nnx.state(decoder)`.

    Returns:
      The decoder, and its description with the overrides applied.

    Raises:
      ValueError: see `describe` and `load_params`; or a field cannot be overridden.
    """
    if unknown := sorted(model.keys() - set(OVERRIDABLE)):
        raise ValueError(
            f"{unknown[0]}={model[unknown[0]]!r} cannot be changed on the way in; only "
            f"{', '.join(OVERRIDABLE)} can"
        )
    source = checkpoint if isinstance(checkpoint, Source) else open_source(checkpoint)
    source.check()
    description = dataclasses.replace(
        source.description,
        model=source.description.model.changed(model),
        rope=source.description.rope if rope is None else rope,
    )
    graph, state = nnx.split(abstract_decoder(description.model, description.rope))
    if isinstance(shardings, nnx.State):
        shardings = nnx.to_pure_dict(shardings)
    params = load_params(source, shardings, weight_dtype=description.model.weight_dtype)
    nnx.replace_by_pure_dict(state, params)
    return nnx.merge(graph, state), description
