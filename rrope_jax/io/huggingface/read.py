"""Reads Hugging Face folders (config.json and safetensors)."""

import functools
import math
import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
from safetensors import SafetensorError, safe_open

from rrope_jax import rope
from rrope_jax.io import json_text
from rrope_jax.io.description import FOLDED_TEMPERATURE, Description
from rrope_jax.io.families.family import Family
from rrope_jax.io.families.table import FAMILIES, REFUSED, named
from rrope_jax.io.huggingface.config import check_keys, model_of
from rrope_jax.io.source import Source
from rrope_jax.io.stored import Layout, check_tensors
from rrope_jax.io.tokenizer import end_of_text
from rrope_jax.io.tokenizer.files import TokenizerFiles
from rrope_jax.io.weights import EMBEDDING, OUTPUT, Array, Part, Weight

CONFIG = "config.json"
WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = f"{WEIGHTS_FILE}.index.json"
TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
_EXTRAS = (*TOKEN_IDS, FOLDED_TEMPERATURE)
_DTYPES = ("F64", "F32", "F16", "BF16")
_PART_NAME = re.compile(r".*-(?P<number>\d+)-of-(?P<count>\d+)\.safetensors", re.DOTALL)
# Number of rows of two tied matrices to compare at a time.
_COMPARED_ROWS = 4096
# Frequency tables in old checkpoints, which are ignored since the config determines them.
_BUFFER = "rotary_emb.inv_freq"


def is_huggingface(path: Path) -> bool:
    """Whether a path is a folder with a config.json and either safetensors or a `model_type`.

    config.json alone is not enough, since training workdirs have one too.
    """
    config = path / CONFIG
    if not config.is_file():
        return False
    if any(path.glob("*.safetensors*")):
        return True
    try:
        return "model_type" in json_text.parse(config.read_bytes())
    except (OSError, ValueError, TypeError):
        return False


class HuggingFaceSource(Source):
    """The model in a Hugging Face folder."""

    def __init__(self, folder: Path) -> None:
        """Opens a folder without reading anything."""
        self.path: Path = folder

    def _describe(self) -> Description:
        return _describe(self.path)

    @functools.cached_property
    def _names(self) -> Mapping[str, str]:
        """The name of each weight by its path."""
        return named(self.description.family).huggingface_names

    @functools.cached_property
    def _layout(self) -> Layout:
        return Layout(self.description.model, self._names)

    @functools.cached_property
    def _tensors(self) -> dict[str, "_Tensor"]:
        """The tensors of all weight files by name."""
        tensors: dict[str, _Tensor] = {}
        for file in _weight_files(self.path):
            for name, tensor in _tensors_of(file).items():
                if name in tensors:
                    raise ValueError(f"{self.path} has {name!r} in two files; remove one of them")
                tensors[name] = tensor
        return tensors

    def _check(self) -> None:
        tensors = self._tensors
        for name, tensor in tensors.items():
            if tensor.dtype not in _DTYPES:
                raise ValueError(
                    f"{tensor.file}: {name!r} is of type {tensor.dtype}; only "
                    f"{', '.join(_DTYPES)} can be read"
                )
        ignored = {name for name in tensors if name.endswith(_BUFFER)}
        ignored |= self._tied_copies()
        shapes = {name: tensor.shape for name, tensor in tensors.items()}
        check_tensors(
            shapes, self.description.model, self._names, where=str(self.path), ignored=ignored
        )

    def _tied_copies(self) -> set[str]:
        """The name of the output matrix, if it is stored although it is tied to the embedding.

        Raises:
          ValueError: the stored output matrix differs from the embedding.
        """
        embedding, output = self._names[EMBEDDING.path], self._names[OUTPUT.path]
        if not (
            self.description.model.tie_embeddings and {embedding, output} <= set(self._tensors)
        ):
            return set()
        shape = self._tensors[embedding].shape
        parts = (
            range(n, min(n + _COMPARED_ROWS, shape[0])) for n in range(0, shape[0], _COMPARED_ROWS)
        )
        if shape != self._tensors[output].shape or not all(
            np.array_equal(self._read(embedding, (rows,)), self._read(output, (rows,)))
            for rows in parts
        ):
            raise ValueError(
                f"{self.path}: tie_word_embeddings is true, but {output} is not {embedding}; set "
                f"it to false in {CONFIG}, or remove {output}"
            )
        return {output}

    def matrix(self, weight: Weight, layer: int, part: Part | None = None) -> Array:
        """Returns one weight or a part of it; see `Source.matrix`."""
        place = self._layout.place(weight, layer)
        return self._read(place.name, place.cut(part))

    def _read(self, name: str, part: Part | None) -> Array:
        with safe_open(self._tensors[name].file, framework="numpy") as file:
            if part is None:
                whole: Array = file.get_tensor(name)
                return whole
            cut: Array = file.get_slice(name)[tuple(slice(r.start, r.stop) for r in part)]
        return cut


def family_of(config: Mapping[str, Any]) -> Family:
    """The family that a config.json names.

    Raises:
      ValueError: it names none, or one that is not implemented.
    """
    kind = config.get("model_type")
    if not isinstance(kind, str) or kind not in FAMILIES:
        why = (REFUSED.get(kind) if isinstance(kind, str) else None) or "is not implemented"
        raise ValueError(f"model_type={kind!r} {why}; choose a model of {', '.join(FAMILIES)}")
    return FAMILIES[kind]


def _describe(folder: Path) -> Description:
    stored = _read_json(folder / CONFIG)
    try:
        family = family_of(stored)
        config = dict(family.defaults) | stored
        check_keys(family, config)
        model = model_of(family, config)
        temperature = config.get(FOLDED_TEMPERATURE, 1.0)
        if not isinstance(temperature, int | float) or not 0 < temperature < math.inf:
            raise ValueError(f"{FOLDED_TEMPERATURE}={temperature!r} must be a number above 0")
        spec, original = rope.from_hf(config), rope.original_context(config)
        description = Description(
            model=model,
            rope=spec,
            context=config["max_position_embeddings"],
            original_context=None if original == spec.original_context else original,
            tokenizer=TokenizerFiles.of_folder(folder),
            extras={key: config[key] for key in _EXTRAS if config.get(key) is not None},
            family=family.name,
        )
        end_of_text.end_ids(description)  # raises if the end tokens are not valid ids
        return description
    except ValueError as error:
        raise ValueError(f"{folder / CONFIG}: {error}") from error


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json_text.parse_object(path.read_bytes(), path)
    except OSError as error:
        raise ValueError(f"{path} cannot be read as JSON: {error}") from None


def _weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a folder, taken from its index if it has one."""
    if (folder / WEIGHTS_FILE).is_file():
        return [folder / WEIGHTS_FILE]
    if not (folder / INDEX_FILE).is_file():
        safetensors = sorted(folder.glob("*.safetensors"))
        if len(safetensors) == 1:
            part = _PART_NAME.fullmatch(safetensors[0].name)
            if part is None or int(part["count"]) == 1:
                return safetensors
            raise ValueError(
                f"{safetensors[0]} is part {int(part['number'])} of {int(part['count'])} of a "
                f"model; copy the others and {INDEX_FILE} beside it"
            )
        raise ValueError(_no_weights(folder, safetensors))
    weight_map = _read_json(folder / INDEX_FILE).get("weight_map")
    if not isinstance(weight_map, Mapping) or not weight_map:
        raise ValueError(f"{folder / INDEX_FILE} has no weight_map; copy or download it again")
    for name in weight_map.values():
        if not isinstance(name, str) or PurePosixPath(name).name != name or "\\" in name:
            raise ValueError(
                f"{folder / INDEX_FILE} names the file {name!r}, which is not in the folder "
                "itself; an index may only name files beside it"
            )
    files = []
    for name in sorted(set(weight_map.values())):
        if not (folder / name).is_file():
            raise ValueError(f"{folder} lacks {name!r}, which its index names; copy it there")
        files.append(folder / name)
    return files


def _no_weights(folder: Path, safetensors: list[Path]) -> str:
    if safetensors:
        names = ", ".join(file.name for file in safetensors[:3])
        return (
            f"{folder} has several weight files ({names}) and no {INDEX_FILE} to tell their order"
        )
    pickled = sorted([*folder.glob("*.bin"), *folder.glob("*.pth"), *folder.glob("*.pt")])
    if pickled:
        return (
            f"{folder} has its weights as a Python pickle ({pickled[0].name}), which can run any "
            "code when it is read and is therefore refused; save them as safetensors where you "
            "trust them (save_pretrained of transformers does)"
        )
    return f"{folder} has a {CONFIG} but no weights; {WEIGHTS_FILE} is missing"


class _Tensor(NamedTuple):
    """The location and type of a tensor.

    Attributes:
      file: the safetensors file that contains it.
      shape: its shape.
      dtype: the safetensors name of its dtype.
    """

    file: Path
    shape: tuple[int, ...]
    dtype: str


def _tensors_of(file: Path) -> dict[str, _Tensor]:
    try:
        with safe_open(file, framework="numpy") as opened:
            slices = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118
            return {
                name: _Tensor(file, tuple(each.get_shape()), each.get_dtype())
                for name, each in slices.items()
            }
    except SafetensorError as error:
        raise ValueError(
            f"{file} is truncated or damaged ({' '.join(str(error).split())}); copy or download it "
            "again"
        ) from None
