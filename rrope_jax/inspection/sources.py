"""Inspects a checkpoint of any format, or the config.json of one."""

import dataclasses
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rrope_jax.inspection import config_json, gguf_keys
from rrope_jax.inspection.case import Case
from rrope_jax.inspection.keys import Keys, find_keys, quietly
from rrope_jax.inspection.positions import Positions, of_layers
from rrope_jax.inspection.runtimes import verdicts
from rrope_jax.io import json_text
from rrope_jax.io.description import FOLDED_TEMPERATURE, Description
from rrope_jax.io.dtypes import DTYPES
from rrope_jax.io.gguf.container import Contents, read_header
from rrope_jax.io.gguf.read import description_of
from rrope_jax.io.huggingface.read import CONFIG, is_huggingface
from rrope_jax.io.huggingface.write import config_of, express
from rrope_jax.io.stores import is_store

Verdicts = Mapping[str, Mapping[str, tuple[str, tuple[str, ...]]]]
"""For each layer type and runtime, what differs there, or that nothing does, and the sources."""


@dataclasses.dataclass(frozen=True)
class Inspection:
    """What was found.

    Attributes:
      path: the checkpoint.
      format: `config.json`, or a key of `pretrained.FORMATS`.
      model_type: its `model_type` or GGUF architecture; None if it names none.
      positions: what its keys mean.
      keys: which keys say so.
      runtimes: what runtimes make of them; empty if none can read the checkpoint.
      notes: what else there is to know, in sentences.
    """

    path: str
    format: str
    model_type: str | None
    positions: Positions
    keys: Keys
    runtimes: Verdicts
    notes: tuple[str, ...]


def inspect(path: str | os.PathLike[str]) -> Inspection:
    """Inspects a checkpoint without reading its weights.

    Args:
      path: what `pretrained.open_source` takes, or a config.json, or a folder with nothing else; of
        this machine or of a store.

    Raises:
      ValueError: the path is none of these, is damaged, or has no rotary embedding that a RopeSpec
        can describe.
    """
    here = path
    if is_store(path):
        from rrope_jax.io.local_copies import config_here  # late, as below

        here = config_here(path)
    file = Path(os.path.abspath(here))
    if file.is_file() and file.suffix == ".json":
        return _of_config(str(path), file)
    if is_huggingface(file):
        return _of_config(str(path), file / CONFIG)
    # Late: a config.json must not wait for Orbax.
    from rrope_jax.io import pretrained
    from rrope_jax.io.orbax.layout import layout_of

    if (file / CONFIG).is_file() and layout_of(file) is None:
        return _of_config(str(path), file / CONFIG)
    kind = pretrained.format_of(file)
    return _of_gguf(str(path), file) if kind == "gguf" else _of_orbax(str(path), file)


def positions_of(description: Description) -> Positions:
    """The positions of a model that `Decoder` has."""
    return of_layers(
        description.rope,
        description.model.layer_types_of_all,
        description.model.sliding_window,
        context=description.context,
        original_context=description.original_context,
    )


def _of_config(path: str, file: Path) -> Inspection:
    try:
        config = json_text.parse_object(file.read_bytes(), file)
    except OSError as error:
        raise ValueError(f"{file} cannot be read: {error.strerror or error}") from None
    group, keys = config_json.text_keys(config)
    try:
        with quietly():
            read, notes = config_json.reader_of(keys)
            positions = read(keys)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error
    notes += positions.notes
    if group:
        notes.append(f"the keys are those of {group}, the language model of a larger one")
    if (temperature := keys.get(FOLDED_TEMPERATURE)) is not None:
        notes.append(_folded(temperature))
    return Inspection(
        path=path,
        format="config.json",
        model_type=keys.get("model_type"),
        positions=positions,
        keys=find_keys(keys, read),
        runtimes=_verdicts(False, keys.get("model_type"), keys, positions),
        notes=tuple(notes),
    )


def _of_gguf(path: str, file: Path) -> Inspection:
    contents = read_header(file)
    # Without the vocabulary, whose length would make reading slow.
    metadata = {k: v for k, v in contents.metadata.items() if not k.startswith("tokenizer.")}

    def read_with(
        reader: Callable[[Contents], Positions],
    ) -> Callable[[Mapping[str, Any]], Positions]:
        return lambda keys: reader(dataclasses.replace(contents, metadata=dict(keys)))

    notes: list[str] = []
    is_by_name = False
    read = read_with(lambda each: positions_of(description_of(each)[0]))
    try:
        positions = read(metadata)
    except ValueError as error:
        notes += [f"rrope does not run this model: {error}", "its keys are read by their names"]
        read, is_by_name = read_with(gguf_keys.by_names), True
        try:
            positions = read(metadata)
        except ValueError as second:
            raise ValueError(f"{file}: {second}") from second
    notes += [_folded(v) for k, v in metadata.items() if k.endswith(FOLDED_TEMPERATURE)]
    architecture = metadata.get("general.architecture")
    return Inspection(
        path=path,
        format="gguf",
        model_type=architecture,
        positions=positions,
        keys=find_keys(metadata, read),
        runtimes=_verdicts(True, architecture, metadata, positions, is_by_name=is_by_name),
        notes=(*notes, *positions.notes),
    )


def _of_orbax(path: str, file: Path) -> Inspection:
    from rrope_jax.io.orbax.layout import description_from_json, description_to_json
    from rrope_jax.io.orbax.read import OrbaxSource

    description = OrbaxSource(file).description
    notes, runtimes = _as_exported(description)
    if (temperature := description.extras.get(FOLDED_TEMPERATURE)) is not None:
        notes.append(_folded(temperature))
    return Inspection(
        path=path,
        format="orbax",
        model_type=description.family,
        positions=positions_of(description),
        keys=find_keys(
            description_to_json(description),
            lambda keys: positions_of(description_from_json(keys)),
        ),
        runtimes=runtimes,
        notes=tuple(notes),
    )


def _as_exported(description: Description) -> tuple[list[str], Verdicts]:
    """What runtimes make of a model of ours once it is exported, which they cannot read itself."""
    try:
        written, _ = express(description, portable=False)
        keys = config_of(written, DTYPES["float32"])
        read, _ = config_json.reader_of(keys)
        positions = read(keys)
    except ValueError as error:
        return [f"no other runtime: {error}"], {}
    note = "what is said of runtimes is about the Hugging Face folder that rrope convert writes"
    return [note], _verdicts(False, keys["model_type"], keys, positions)


def _folded(temperature: Any) -> str:
    return (
        f"an attention factor of {temperature:.6g} is in the query and key weights, and is not "
        "among the numbers here"
    )


def _verdicts(
    is_gguf: bool,
    model_type: str | None,
    keys: Mapping[str, Any],
    positions: Positions,
    *,
    is_by_name: bool = False,
) -> Verdicts:
    return {
        name: verdicts(Case(is_gguf, model_type, keys, name, positions, is_by_name))
        for name in positions.by_type
    }
