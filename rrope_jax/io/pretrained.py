"""Models from checkpoints of any format, told apart by their content."""

import dataclasses
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
from flax import nnx

from rrope_jax.io.description import Description as Description
from rrope_jax.io.gguf.read import GgufSource, is_gguf
from rrope_jax.io.huggingface.read import HuggingFaceSource, is_huggingface
from rrope_jax.io.orbax.native import NativeSource, is_native
from rrope_jax.io.paths import check_local
from rrope_jax.io.target import left_behind
from rrope_jax.io.weights import Source, parameter_shapes
from rrope_jax.model import Decoder
from rrope_jax.model.decoder import abstract_decoder
from rrope_jax.rope import RopeSpec


class _Format(NamedTuple):
    recognises: Callable[[Path], bool]
    open: Callable[[Path], Source]


FORMATS: dict[str, _Format] = {
    "gguf": _Format(is_gguf, GgufSource),
    "orbax": _Format(is_native, NativeSource),
    "hf": _Format(is_huggingface, HuggingFaceSource),
}
# Fields of ModelConfig that do not change what the weights mean.
OVERRIDABLE = ("compute_dtype", "remat", "attention", "dropout")


def format_of(path: str | os.PathLike[str]) -> str:
    """The format of a checkpoint, a key of `FORMATS`, by what is in it.

    Raises:
      ValueError: there is nothing there, or nothing known.
    """
    check_local(path)
    found = Path(os.path.abspath(path))
    for name, row in FORMATS.items():
        if row.recognises(found):
            return name
    if (left := left_behind(found)) is not None:
        raise ValueError(
            f"{path} does not exist: it was being replaced when a process was killed; move {left} "
            "there, or convert again"
        )
    if not found.exists():
        raise ValueError(f"{path} does not exist; give a checkpoint")
    if ggufs := sorted(found.glob("*.gguf")):
        raise ValueError(
            f"{path} is a folder with GGUF files; name one of them, such as {ggufs[0].name}"
        )
    raise ValueError(
        f"{path} is no checkpoint: neither a GGUF file, nor a Hugging Face folder with config.json "
        "and safetensors, nor a model folder or training workdir of rrope (pickled weights, such "
        "as .bin and .pth, are never read)"
    )


def open_source(path: str | os.PathLike[str]) -> Source:
    """Opens a checkpoint; its weights are not read yet.

    Args:
      path: a GGUF file, a Hugging Face folder, a model folder of ours, a training workdir (whose
        newest checkpoint counts) or one checkpoint of it.

    Raises:
      ValueError: there is nothing there, or nothing known.
    """
    return FORMATS[format_of(path)].open(Path(os.path.abspath(path)))


def describe(path: str | os.PathLike[str]) -> Description:
    """What a checkpoint says of its model; no weights are read.

    Raises:
      ValueError: as `open_source`, or the model is not one that `Decoder` can be.
    """
    return open_source(path).description


def load(
    path: str | os.PathLike[str],
    *,
    rope: RopeSpec | None = None,
    model: Mapping[str, Any] = MappingProxyType({}),
    shardings: Any = None,
) -> tuple[Decoder, Description]:
    """Builds the decoder of a checkpoint, with float32 parameters.

    Parameters are filled one by one, the largest first, so that the host holds little beside them.

    Args:
      path: as for `open_source`.
      rope: replaces the checkpoint's rotary embedding.
      model: overrides fields of its ModelConfig, of those in `OVERRIDABLE`.
      shardings: a pytree like `nnx.state(decoder)` with a sharding for each parameter; each device
        then gets its own part only. None puts everything on the default device.

    Returns:
      The decoder, and its description with the overrides applied.

    Raises:
      ValueError: as `describe`; or weights are missing, unknown or misshaped; or an override is
        not allowed.
    """
    if unknown := sorted(model.keys() - set(OVERRIDABLE)):
        raise ValueError(
            f"{unknown[0]}={model[unknown[0]]!r} cannot be changed on the way in; only "
            f"{', '.join(OVERRIDABLE)} can"
        )
    source = open_source(path)
    source.check()
    description = dataclasses.replace(
        source.description,
        model=dataclasses.replace(source.description.model, **model),
        rope=source.description.rope if rope is None else rope,
    )
    graph, state = nnx.split(abstract_decoder(description.model, description.rope))
    places = jax.tree.unflatten(
        jax.tree.structure(state),
        [None] * len(jax.tree.leaves(state)) if shardings is None else jax.tree.leaves(shardings),
    )
    placed = {".".join(map(str, path)): leaf for path, leaf in nnx.to_flat_state(places)}
    shapes = parameter_shapes(description.model)
    filled = {}
    for weight, shape in sorted(shapes.items(), key=lambda item: -math.prod(item[1])):
        sharding = placed[weight.path].get_raw_value()
        # waits, since this one may still be copied from the memory that it was read into
        filled[weight.path] = jax.block_until_ready(source.parameter(weight, shape, sharding))
    leaves = {path: filled[".".join(map(str, path))] for path, _ in nnx.to_flat_state(state)}
    nnx.replace_by_pure_dict(state, nnx.traversals.unflatten_mapping(leaves))
    return nnx.merge(graph, state), description
