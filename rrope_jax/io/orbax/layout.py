"""The layout of our model folders and of the workdirs of training runs.

A model folder has FOLDER/params/ (Orbax), FOLDER/model.json, FOLDER/checksums.json and
FOLDER/tokenizer/. A training run has WORKDIR/tokenizer/, and in each checkpoint the parameters
under `tree`, the content of model.json under `metadata`, and checksums under `checksums`.
"""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any, TypeVar

from rrope_jax.io.description import Description
from rrope_jax.io.orbax.checkpoint import CHECKSUMS, METADATA, TREE, steps_in
from rrope_jax.io.stores import AnyPath
from rrope_jax.io.tokenizer.files import TokenizerFiles
from rrope_jax.model import ModelConfig
from rrope_jax.rope import RopeSpec

T = TypeVar("T")

PARAMS, MODEL_JSON, TOKENIZER = "params", "model.json", "tokenizer"
CHECKSUMS_JSON = "checksums.json"
CHECKPOINTS, DESCRIPTION = "checkpoints", "description"
ADAPTER = "adapter"  # the key, beside the description, of runs whose parameters are an adapter's


@dataclasses.dataclass(frozen=True)
class Layout:
    """The locations of the parts of a model.

    Attributes:
      arrays: the Orbax folder with the parameters.
      inside: keys that lead to the parameters in that folder's tree.
      description: the JSON file with the description.
      key: the key of the description in that file; None if it is the whole file.
      tokenizer: the folder with the tokenizer's files.
      checksums: the JSON file with checksums, which models of earlier releases lack.
    """

    arrays: AnyPath
    inside: tuple[str, ...]
    description: AnyPath
    key: str | None
    tokenizer: AnyPath
    checksums: AnyPath


def layout_of(path: AnyPath) -> Layout | None:
    """Returns the layout of a model folder, a training workdir (its newest step) or one step.

    Returns None for any other path.
    """
    if (path / MODEL_JSON).is_file():
        return Layout(
            path / PARAMS,
            (),
            path / MODEL_JSON,
            None,
            path / TOKENIZER,
            path / CHECKSUMS_JSON,
        )
    if (path / TREE).is_dir() and (path / METADATA).is_dir():
        return Layout(
            path / TREE,
            ("params",),
            path / METADATA / METADATA,
            DESCRIPTION,
            path.parent.parent / TOKENIZER,
            path / CHECKSUMS / METADATA,
        )
    if (path / CHECKPOINTS).is_dir():
        for step in steps_in(path / CHECKPOINTS):
            if (layout := layout_of(path / CHECKPOINTS / str(step))) is not None:
                return layout
    return None


def description_to_json(description: Description) -> dict[str, Any]:
    """Converts a description, without its tokenizer, to what JSON reads back equal."""
    rope = description.rope.fields()
    optional = {"original_context": description.original_context, "family": description.family}
    fields = {
        "model": description.model.fields(),
        "rope": {name: value for name, value in rope.items() if value is not None},
        "context": description.context,
        **{key: value for key, value in optional.items() if value is not None},
        "extras": dict(description.extras),
    }
    as_read: dict[str, Any] = json.loads(json.dumps(fields))  # lists, not tuples
    return as_read


def description_from_json(
    value: Mapping[str, Any], tokenizer: TokenizerFiles | None = None
) -> Description:
    """The inverse of `description_to_json`.

    Raises:
      ValueError: a key is missing or unknown, or a value is out of range.
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
        "family": value.get("family"),
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
