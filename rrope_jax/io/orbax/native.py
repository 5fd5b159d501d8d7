"""Our own model folder: parameters by Orbax, the rest as JSON, the tokenizer's files.

FOLDER/params/ (Orbax), FOLDER/model.json, FOLDER/checksums.json and FOLDER/tokenizer/. The workdir
of a training run can be read the same way: its checkpoints hold the parameters under `tree`, what
model.json holds under `metadata` and checksums under `checksums`, and WORKDIR/tokenizer/ has the
files.
"""

import dataclasses
import functools
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
import orbax.checkpoint as ocp

from rrope_jax.io import json_text
from rrope_jax.io.description import Description
from rrope_jax.io.orbax import checksums
from rrope_jax.io.orbax.checkpoint import CHECKSUMS, METADATA, TREE
from rrope_jax.io.paths import check_orbax
from rrope_jax.io.tokenizer.files import TokenizerFiles
from rrope_jax.io.weights import Array, Source, Weight, host_parameter, parameter_shapes
from rrope_jax.model import ModelConfig
from rrope_jax.rope import RopeSpec

T = TypeVar("T")

PARAMS, MODEL_JSON, TOKENIZER = "params", "model.json", "tokenizer"
CHECKSUMS_JSON = "checksums.json"
CHECKPOINTS, DESCRIPTION = "checkpoints", "description"


def description_to_json(description: Description) -> dict[str, Any]:
    """All of a description but the tokenizer, as JSON-able values."""
    rope = description.rope.fields()
    original = description.original_context
    return {
        "model": dataclasses.asdict(description.model),
        "rope": {name: value for name, value in rope.items() if value is not None},
        "context": description.context,
        **({} if original is None else {"original_context": original}),
        "extras": dict(description.extras),
    }


def description_from_json(
    value: Mapping[str, Any], tokenizer: TokenizerFiles | None = None
) -> Description:
    """The inverse of `description_to_json`.

    Raises:
      ValueError: a key is missing or unknown, or a value out of range.
    """
    if not isinstance(value, Mapping):
        raise ValueError(f"it has {value!r:.80} where the description of a model belongs")
    extras = value.get("extras", {})
    if not isinstance(extras, Mapping):
        raise ValueError(f"extras={extras!r:.80} must be a group of keys")
    fields: dict[str, Any] = {
        "model": _build(ModelConfig, value, "model"),
        "rope": _build(RopeSpec, value, "rope"),
        "context": value.get("context"),
        "original_context": value.get("original_context"),
        "extras": extras,
    }
    if unknown := sorted(value.keys() - fields.keys()):
        raise ValueError(f"unknown key {unknown[0]!r}; the keys are {', '.join(fields)}")
    return Description(**fields, tokenizer=tokenizer)


def _build(cls: type[T], value: Mapping[str, Any], key: str) -> T:
    group = value.get(key)
    if not isinstance(group, Mapping):
        raise ValueError(f"{key}={group!r} must be a group of fields of {cls.__name__}")
    try:
        return cls(**group)
    except (TypeError, ValueError) as error:  # TypeError: a field is unknown or missing
        raise ValueError(f"{key}: {error}") from error


@dataclasses.dataclass(frozen=True)
class _Place:
    """Where the parts of a checkpoint are.

    Attributes:
      arrays: Orbax folder of the parameters.
      inside: the key under which the parameters are in it.
      description: JSON file.
      key: the key under which the description is in it.
      tokenizer: folder.
      checksums: JSON file, which those of earlier releases do without.
    """

    arrays: Path
    inside: tuple[str, ...]
    description: Path
    key: str | None
    tokenizer: Path
    checksums: Path


def is_native(path: Path) -> bool:
    """Whether a path is a folder of ours, a training workdir, or one checkpoint of it."""
    return _place(path) is not None


def _place(path: Path) -> _Place | None:
    if (path / MODEL_JSON).is_file():
        return _Place(
            path / PARAMS,
            (),
            path / MODEL_JSON,
            None,
            path / TOKENIZER,
            path / CHECKSUMS_JSON,
        )
    if (path / TREE).is_dir() and (path / METADATA).is_dir():
        return _Place(
            path / TREE,
            ("params",),
            path / METADATA / METADATA,
            DESCRIPTION,
            path.parent.parent / TOKENIZER,
            path / CHECKSUMS / METADATA,
        )
    if (path / CHECKPOINTS).is_dir():
        steps = [step for step in (path / CHECKPOINTS).iterdir() if step.name.isdigit()]
        for step in sorted(steps, key=lambda step: int(step.name), reverse=True):
            if (place := _place(step)) is not None:
                return place
    return None


class NativeSource:
    """The model in one of our folders; see `weights.Source`."""

    def __init__(self, path: Path) -> None:
        """Opens a folder of ours, a training workdir (at its newest step) or one step.

        Raises:
          ValueError: the path is none of these, or Orbax cannot read there.
        """
        check_orbax(path, writing=False)
        place = _place(path)
        if place is None:
            raise ValueError(f"{path} is no model folder and no training workdir")
        self.path = path
        self._place = place

    @functools.cached_property
    def description(self) -> Description:
        """The model, from its JSON and the tokenizer's files."""
        file = self._place.description
        try:
            value = json_text.parse(file.read_bytes())
            described = value if self._place.key is None else value[self._place.key]
            found = description_from_json(
                described, TokenizerFiles.of_folder(self._place.tokenizer)
            )
            _ = self._sums  # compares
        except (KeyError, TypeError):  # TypeError: it is no group
            raise ValueError(
                f"{file} describes no model: the run is not one of rrope train"
            ) from None
        except (ValueError, OSError) as error:
            raise ValueError(f"{file} cannot be read: {error}") from error
        return found

    @functools.cached_property
    def _sums(self) -> Mapping[str, str] | None:
        """Checksums of the arrays, where there are any; the description is compared with its own.

        Raises:
          ValueError: it is not what was saved.
        """
        file = self._place.checksums
        if not file.exists():
            return None
        value = json_text.parse(self._place.description.read_bytes())
        try:
            return checksums.check_metadata(json_text.parse(file.read_bytes()), value)
        except ValueError as error:
            own = self._place.key is None
            hint = f", or remove {file} if you have changed it yourself" if own else ""
            raise ValueError(f"{error}; give another checkpoint{hint}") from error

    @functools.cached_property
    def _stored(self) -> dict[str, Any]:
        """The shape of each stored parameter by its path."""
        try:
            tree = ocp.PyTreeCheckpointHandler().metadata(self._place.arrays).tree
            for key in self._place.inside:
                tree = tree[key]
        except Exception as error:  # Orbax and its drivers raise many kinds
            raise ValueError(
                f"{self._place.arrays} is damaged or no checkpoint of a model "
                f"({' '.join(str(error).split())[:200]})"
            ) from error
        flat, _ = jax.tree_util.tree_flatten_with_path(
            tree, is_leaf=lambda leaf: hasattr(leaf, "shape")
        )
        return {
            ".".join(str(entry.key) for entry in path): tuple(leaf.shape) for path, leaf in flat
        }

    def check(self) -> None:
        """See `weights.Source`."""
        wanted = {w.path: shape for w, shape in parameter_shapes(self.description.model).items()}
        for name in sorted(wanted.keys() | self._stored.keys()):
            if wanted.get(name) != self._stored.get(name):
                raise ValueError(
                    f"{self._place.arrays}: parameter {name!r} has shape {self._stored.get(name)}, "
                    f"but the model's config makes it {wanted.get(name)}"
                )

    def matrix(self, weight: Weight, layer: int) -> Array:
        """One weight; see `weights.Source`. Reads all layers, of which the last are kept."""
        kernel: Array = self._kernel(weight)
        return weight.to_matrix(kernel[layer] if weight.stacked else kernel)

    @functools.lru_cache(maxsize=1)  # noqa: B019  one source lives as long as one conversion
    def _kernel(self, weight: Weight) -> Array:
        kernel: Array = self._restore(weight, ocp.RestoreArgs(restore_type=np.ndarray))
        return kernel

    def parameter(
        self, weight: Weight, shape: tuple[int, ...], sharding: jax.sharding.Sharding | None
    ) -> jax.Array:
        """One parameter; see `weights.Source`. Devices read their own parts of it."""
        placed = sharding or jax.sharding.SingleDeviceSharding(jax.devices()[0])
        arguments = ocp.ArrayRestoreArgs(
            sharding=placed, global_shape=shape, dtype=np.dtype(np.float32)
        )
        restored: jax.Array = self._restore(weight, arguments)
        return restored

    def _restore(self, weight: Weight, arguments: ocp.RestoreArgs) -> Any:
        keys = (*self._place.inside, *weight.path.split("."))
        try:
            found = ocp.PyTreeCheckpointer().restore(
                self._place.arrays,
                args=ocp.args.PyTreeRestore(
                    item=_nest(keys, jax.ShapeDtypeStruct(self._stored[weight.path], np.float32)),
                    restore_args=_nest(keys, arguments),
                    partial_restore=True,
                ),
            )
        except Exception as error:  # Orbax and its drivers raise many kinds
            raise ValueError(
                f"{self._place.arrays} is damaged: {weight.path} cannot be read "
                f"({' '.join(str(error).split())[:200]})"
            ) from error
        for key in keys:
            found = found[key]
        if self._sums is not None:
            try:
                checksums.check_array(self._sums, ".".join(keys), found)
            except ValueError as error:
                raise ValueError(
                    f"{self._place.arrays} is {error}; give another checkpoint, such as another "
                    "step of the run"
                ) from error
        return found


def write(source: Source, folder: Path) -> None:
    """Writes a model folder.

    Args:
      source: the model.
      folder: exists and is empty.

    Raises:
      ValueError: Orbax cannot save in a folder of such a name.
      OSError: it cannot be written.
    """
    check_orbax(folder, writing=True)
    description = source.description
    shapes = parameter_shapes(description.model)
    tree: dict[str, Any] = {}
    for weight, shape in sorted(shapes.items(), key=lambda item: -math.prod(item[1])):
        *groups, last = weight.path.split(".")
        holder = tree
        for key in groups:
            holder = holder.setdefault(key, {})
        holder[last] = host_parameter(source, weight, shape)
    # By default Orbax copies all arrays, and keeps all of what it has compressed until the end.
    handler = ocp.PyTreeCheckpointHandler(
        use_compression=False,
        type_handler_registry=ocp.type_handlers.create_type_handler_registry(
            (np.ndarray, ocp.type_handlers.NumpyHandler(deepcopy_host_arrays=False)),
            (jax.Array, ocp.type_handlers.ArrayHandler()),  # Orbax warns where it is left out
        ),
    )
    try:
        with ocp.Checkpointer(handler) as checkpointer:
            checkpointer.save(folder / PARAMS, args=ocp.args.PyTreeSave(tree))
    except Exception as error:  # Orbax and its drivers raise many kinds
        raise OSError(" ".join(str(error).split())[:300]) from error
    described = description_to_json(description)
    sums = {
        checksums.ARRAYS: checksums.of_tree(tree),
        checksums.METADATA: checksums.of_json(described),
    }
    for name, value in ((MODEL_JSON, described), (CHECKSUMS_JSON, sums)):
        (folder / name).write_text(json.dumps(value, indent=2) + "\n")
    if description.tokenizer is not None:
        description.tokenizer.write(folder / TOKENIZER)


def _nest(keys: tuple[str, ...], leaf: Any) -> Any:
    for key in reversed(keys):
        leaf = {key: leaf}
    return leaf
