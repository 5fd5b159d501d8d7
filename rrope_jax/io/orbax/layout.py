"""What is where in our model folders and in the workdirs of training runs.

A model folder is FOLDER/params/ (Orbax), FOLDER/model.json, FOLDER/checksums.json and
FOLDER/tokenizer/. A training run has WORKDIR/tokenizer/, and in each of its checkpoints the
parameters under `tree`, what model.json holds under `metadata`, and checksums under `checksums`.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from rrope_jax.io.description import Description
from rrope_jax.io.orbax.checkpoint import CHECKSUMS, METADATA, TREE
from rrope_jax.io.tokenizer.files import TokenizerFiles
from rrope_jax.model import ModelConfig
from rrope_jax.rope import RopeSpec

T = TypeVar("T")

PARAMS, MODEL_JSON, TOKENIZER = "params", "model.json", "tokenizer"
CHECKSUMS_JSON = "checksums.json"
CHECKPOINTS, DESCRIPTION = "checkpoints", "description"


@dataclasses.dataclass(frozen=True)
class Layout:
    """Where the parts of a model are.

    Attributes:
      arrays: Orbax folder of the parameters.
      inside: the keys under which the parameters are in it.
      description: JSON file.
      key: the key under which the description is in it; None for all of it.
      tokenizer: folder.
      checksums: JSON file; models of earlier releases have none.
    """

    arrays: Path
    inside: tuple[str, ...]
    description: Path
    key: str | None
    tokenizer: Path
    checksums: Path


def layout_of(path: Path) -> Layout | None:
    """The layout of a model folder, of a training workdir (its newest step) or of one step.

    None where the path is none of these.
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
        steps = [step for step in (path / CHECKPOINTS).iterdir() if step.name.isdigit()]
        for step in sorted(steps, key=lambda step: int(step.name), reverse=True):
            if (layout := layout_of(step)) is not None:
                return layout
    return None


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
