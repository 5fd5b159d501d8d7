"""Reads adapters in PEFT's format: adapter_config.json and adapter_model.safetensors."""

import dataclasses
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from rrope_jax.io import json_text
from rrope_jax.io.adapters.adapter import Adapter, Factors, folded
from rrope_jax.io.description import FOLDED_TEMPERATURE, Description
from rrope_jax.io.families.table import named
from rrope_jax.io.orbax.layout import description_from_json
from rrope_jax.io.portable import ROTATED, Temperatures
from rrope_jax.io.stored import Layout, Tensor
from rrope_jax.io.weights import Array, Weight

CONFIG, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"
POSITIONS = "positions.json"
"""Our own file beside them: the embedding that the adapter was trained with."""

PREFIX = "base_model.model."
A, B, WHOLE = ".lora_A.weight", ".lora_B.weight", ".weight"
"""How the names of tensors end: those of factors, and those of weights trained in full."""

# Keys that are read, or that say how an adapter was trained, started or found: they change nothing.
_READ = ("peft_type", "r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern")
_HARMLESS = (
    *("task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision"),
    *("inference_mode", "target_modules", "exclude_modules", "modules_to_save", "lora_dropout"),
    *("layers_to_transform", "layers_pattern", "megatron_core", "qalora_group_size"),
    *("eva_config", "lora_ga_config", "runtime_config", "ensure_weight_tying"),
)
# Other keys have to be off. These are off in more ways than by being empty.
_OFF: Mapping[str, tuple[Any, ...]] = {
    "bias": ("none",),
    "init_lora_weights": (True, False, "gaussian", "orthogonal", "eva"),  # others change the base
}


def is_peft(path: Path) -> bool:
    """Whether a path is a PEFT folder."""
    return (path / CONFIG).is_file()


def read_peft(folder: Path, base: Description) -> tuple[Adapter, Description]:
    """Reads an adapter, and describes the model that it makes of a base.

    A folder that `rrope convert` wrote says which rotary embedding belongs to it. A base that has
    a temperature folded into its weights, as exports may, has that embedding already.

    Raises:
      ValueError: the folder is damaged, has what is not implemented, or is not of this base.
    """
    config = _read_json(folder / CONFIG)
    _check_config(config, folder)
    tensors = _tensors(folder / WEIGHTS_FILE)
    layout = Layout(base.model, named(base.family).huggingface_names)
    factors: dict[tuple[Weight, int], Factors] = {}
    replaced: dict[tuple[Weight, int], Array] = {}
    for name in sorted(tensors):
        ending = A if name.endswith(A) else B if name.endswith(B) else WHOLE
        module = name.removeprefix(PREFIX).removesuffix(ending)
        tensor = layout.tensors.get(f"{module}{WHOLE}")
        if tensor is None or not name.startswith(PREFIX):
            raise ValueError(
                f"{folder / WEIGHTS_FILE} has {name!r}, which is no weight of the base, or a part "
                "of an adapter that is not implemented; merge it with PEFT (merge_and_unload)"
            )
        if ending == WHOLE:
            for weight, rows in _rows(layout, tensor):
                replaced[weight, tensor.layer] = tensors[name][rows]
            continue
        nothing = np.zeros(0, np.float32)
        a_RI, b_OR = (tensors.get(f"{PREFIX}{module}{end}", nothing) for end in (A, B))
        if a_RI.ndim != 2 or b_OR.shape != (tensor.shape[0], len(a_RI)):
            raise ValueError(
                f"{folder / WEIGHTS_FILE}: lora_A and lora_B of {module} do not make an update of "
                f"shape {list(tensor.shape)}; the adapter is damaged, or not of this base"
            )
        scaling = _scaling(config, module, len(a_RI), folder)
        for weight, rows in _rows(layout, tensor):
            factors[weight, tensor.layer] = Factors(a_RI, b_OR[rows], scaling)
    adapter = Adapter(folder, factors, replaced, bool(config.get("use_rslora")))
    adapter.check(base)
    if not (folder / POSITIONS).is_file() or base.extras.get(FOLDED_TEMPERATURE) is not None:
        return adapter, base
    trained, temperatures = _positions(folder / POSITIONS)
    plan = {name: getattr(trained.model, name) for name in ("layer_types", "sliding_window")}
    merged = dataclasses.replace(
        base,
        model=base.model.changed(plan),
        rope=trained.rope,
        context=trained.context,
        original_context=trained.original_context,
    )
    inverse = {name: 1 / temperature for name, temperature in temperatures.items()}
    return folded(adapter, merged, inverse), merged


def _check_config(config: Mapping[str, Any], folder: Path) -> None:
    """Raises ValueError for what PEFT has and the decoder has not."""
    if config.get("peft_type") != "LORA":
        raise ValueError(
            f"{folder / CONFIG}: peft_type={config.get('peft_type')!r} is not implemented, LORA is"
        )
    for key, value in config.items():
        off = value in _OFF[key] if key in _OFF else not value
        if key not in (*_READ, *_HARMLESS) and not off:
            raise ValueError(
                f"{folder / CONFIG}: {key}={str(value)[:60]} is not implemented; merge the adapter "
                "with PEFT (merge_and_unload) instead"
            )
    numbers: dict[str, Any] = {"r": config.get("r"), "lora_alpha": config.get("lora_alpha")}
    for pattern in ("rank_pattern", "alpha_pattern"):
        values = config.get(pattern) or {}
        if not isinstance(values, Mapping):
            raise ValueError(f"{folder / CONFIG}: {pattern} must be an object")
        numbers |= {f"{pattern}.{name}": value for name, value in values.items()}
    for name, number in numbers.items():
        is_number = isinstance(number, int | float) and not isinstance(number, bool)
        if not (is_number and 0 < number < math.inf):
            raise ValueError(f"{folder / CONFIG}: {name}={number!r} must be a number above 0")


def _scaling(config: Mapping[str, Any], module: str, rank: int, folder: Path) -> float:
    """The factor of a module's update, by the patterns of its name as PEFT matches them."""

    def of_module(pattern: str, otherwise: str) -> float:
        values: Mapping[str, float] = config.get(pattern) or {}
        for name, value in values.items():
            try:
                if re.match(rf"(.*\.)?({name})$", module):
                    return value
            except re.error as error:
                raise ValueError(f"{folder / CONFIG}: {pattern} has {name!r}: {error}") from error
        number: float = config[otherwise]
        return number

    if of_module("rank_pattern", "r") != rank:
        raise ValueError(
            f"{folder / CONFIG} gives {module} a rank of {of_module('rank_pattern', 'r')}, but its "
            f"weights have {rank}; one of the two is wrong"
        )
    alpha = of_module("alpha_pattern", "lora_alpha")
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _rows(layout: Layout, tensor: Tensor) -> Iterator[tuple[Weight, slice]]:
    """The weights in a tensor and their rows of it."""
    for weight in tensor.weights:
        rows = layout.place(weight, tensor.layer).rows
        yield weight, slice(None) if rows is None else slice(rows.start, rows.stop)


def _read_json(file: Path) -> dict[str, Any]:
    try:
        return json_text.parse_object(file.read_bytes(), file)
    except OSError as error:
        raise ValueError(f"{file} cannot be read as JSON: {error}") from None


def _tensors(file: Path) -> dict[str, Array]:
    if not file.is_file():
        raise ValueError(
            f"{file} is not there; adapters are read as safetensors only (pickled ones, such as "
            "adapter_model.bin, never)"
        )
    try:
        with safe_open(file, framework="numpy") as opened:
            names = opened.keys()
            return {name: opened.get_tensor(name).astype(np.float32) for name in names}
    except (SafetensorError, TypeError) as error:  # TypeError: a dtype that NumPy lacks
        raise ValueError(f"{file} is damaged ({' '.join(str(error).split())})") from None


def _positions(file: Path) -> tuple[Description, Temperatures]:
    """The model that an adapter makes, and what was folded into its queries and keys."""
    value = _read_json(file)
    try:
        temperatures = {name: float(value["folded"][name]) for name in ROTATED}
        if not all(0 < each < math.inf for each in temperatures.values()):
            raise ValueError("folded must be numbers above 0")
        return description_from_json(value["description"]), temperatures
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{file} cannot be read: {error}") from error
