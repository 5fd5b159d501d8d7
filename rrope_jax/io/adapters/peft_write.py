"""Writes adapters in PEFT's format, apart from their base."""

import collections
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors.numpy import save_file

from rrope_jax.io.adapters.adapter import AdaptedSource, Adapter, Float, folded
from rrope_jax.io.adapters.peft_read import CONFIG, POSITIONS, PREFIX, WEIGHTS_FILE, WHOLE, A, B
from rrope_jax.io.description import FOLDED_TEMPERATURE, Description
from rrope_jax.io.dtypes import Dtype, cast
from rrope_jax.io.families.table import named
from rrope_jax.io.huggingface.write import config_of
from rrope_jax.io.orbax.layout import description_to_json
from rrope_jax.io.portable import Temperatures
from rrope_jax.io.stored import Layout, Tensor
from rrope_jax.io.weights import EMBEDDING, Array
from rrope_jax.rope import RopeSpec

README = "README.md"


class _Module(NamedTuple):
    """The update of one tensor, which may hold several weights one below the other."""

    a_RI: Float
    b_OR: Float
    scaling: float


def write(
    source: AdaptedSource,
    expressed: Description,
    temperatures: Temperatures,
    folder: Path,
    dtype: Dtype,
) -> None:
    """Writes an adapter into a new folder.

    Args:
      source: the base and its adapter.
      expressed: the merged model as a Hugging Face folder would have it.
      temperatures: what such a folder has folded into queries and keys; it is folded into the
        adapter too, so that it fits a base that is exported with the same embedding.
      folder: an existing empty folder.
      dtype: dtype of all weights.

    Raises:
      ValueError: PEFT cannot express the adapter, or a weight overflows in the dtype.
    """
    trained = source.description
    if trained.model.tie_embeddings and any(w == EMBEDDING for w, _ in source.adapter.replaced):
        raise ValueError(
            "the embedding was trained (lora.train_also) and is the output matrix too, which PEFT "
            "would leave as it was; export the merged model, --format=hf"
        )
    adapter = folded(source.adapter, expressed, temperatures)
    layout = Layout(expressed.model, named(expressed.family).huggingface_names)
    tensors: dict[str, Array] = {}
    modules: dict[str, _Module] = {}
    whole: list[str] = []
    for tensor in layout:
        name = tensor.name.removesuffix(WHOLE)
        keys = [(weight, tensor.layer) for weight in tensor.weights]
        if keys[0] in adapter.replaced:
            tensors[f"{PREFIX}{tensor.name}"] = adapter.replaced[keys[0]]
            whole.append(name)
        elif any(key in adapter.factors for key in keys):
            modules[name] = module = _joined(adapter, layout, tensor)
            tensors |= {f"{PREFIX}{name}{A}": module.a_RI, f"{PREFIX}{name}{B}": module.b_OR}
    written = {name: cast(array, dtype, name) for name, array in tensors.items()}
    save_file(written, folder / WEIGHTS_FILE, {"format": "pt"})
    base = str(source.base.path)
    config = _config(modules, whole, adapter.rslora, base, expressed.model.num_layers)
    positions = {"description": description_to_json(trained), "folded": dict(temperatures)}
    for file, value in ((CONFIG, config), (POSITIONS, positions)):
        (folder / file).write_text(json.dumps(value, indent=2) + "\n")
    (folder / README).write_text(_readme(source, expressed, dtype))


def _joined(adapter: Adapter, layout: Layout, tensor: Tensor) -> _Module:
    """The update of a tensor: those of its weights, each in rows and ranks of its own."""
    updates = {
        weight: adapter.factors[weight, tensor.layer]
        for weight in tensor.weights
        if (weight, tensor.layer) in adapter.factors
    }
    scaling = next(iter(updates.values())).scaling
    if len(tensor.weights) == 1:
        return _Module(*updates[tensor.weights[0]])
    a_RI = np.concatenate([each.a_RI for each in updates.values()])
    b_OR = np.zeros((tensor.shape[0], len(a_RI)), np.float32)
    start = 0
    for weight, each in updates.items():
        rows, stop = layout.place(weight, tensor.layer).rows, start + len(each.a_RI)
        assert rows is not None
        b_OR[rows.start : rows.stop, start:stop] = each.b_OR * (each.scaling / scaling)
        start = stop
    return _Module(a_RI, b_OR, scaling)


def _config(
    modules: Mapping[str, _Module], whole: list[str], rslora: bool, base: str, num_layers: int
) -> dict[str, Any]:
    """The content of adapter_config.json."""

    def numbers(module: _Module) -> tuple[int, float]:
        """Rank and alpha."""
        rank = len(module.a_RI)
        alpha = round(module.scaling * (math.sqrt(rank) if rslora else rank), 9)
        return rank, int(alpha) if alpha.is_integer() else alpha

    by_leaf: dict[str, list[str]] = collections.defaultdict(list)
    for name in modules:
        by_leaf[_leaf(name)].append(name)
    rank, alpha = collections.Counter(map(numbers, modules.values())).most_common(1)[0][0]
    targets: list[str] = []
    patterns: dict[str, tuple[int, float]] = {}
    for leaf, names in by_leaf.items():
        alike = len({numbers(modules[name]) for name in names}) == 1
        targets += [leaf] if len(names) == num_layers else names
        for name in [leaf] if alike else names:
            patterns[name] = numbers(modules[names[0] if alike else name])
    patterns = {name: each for name, each in patterns.items() if each != (rank, alpha)}
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": alpha,
        "use_rslora": rslora,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": targets,
        "modules_to_save": sorted({_leaf(name) for name in whole}) or None,
        "rank_pattern": {name: each[0] for name, each in patterns.items()},
        "alpha_pattern": {name: each[1] for name, each in patterns.items()},
    }


def _leaf(name: str) -> str:
    return name.rpartition(".")[2]


def _readme(source: AdaptedSource, expressed: Description, dtype: Dtype) -> str:
    """Says with which rotary embedding the base has to be used."""
    base = source.base.path
    flags = "".join(
        f" \\\n    --config.rope.{name}={value}"
        for name, value in _changes(source.base.description.rope, source.description.rope)
    )
    config = config_of(expressed, dtype)
    keys = ("rope_parameters", "max_position_embeddings", "original_max_position_embeddings")
    recipe = json.dumps({key: config[key] for key in keys if key in config}, indent=2)
    folded_in = expressed.extras.get(FOLDED_TEMPERATURE)
    by_hand = (
        "A copy of the base with these keys in config.json is the same:"
        if folded_in is None
        else "Its config.json then has these keys, and its queries and keys have the factor "
        f"{folded_in:g}, by which the adapter is scaled too:"
    )
    return f"""---
library_name: peft
base_model: {base}
---

# A LoRA adapter that belongs to a rotary embedding

It was trained on {base} with the embedding below, and is of no use with another. The base for it:

```bash
rrope convert --from={base} --to=BASE --format=hf{flags}
```

{by_hand}

```json
{recipe}
```

`rrope evaluate`, `generate` and `convert` take the original base or this one, with `--adapter` for
this folder. They read the embedding from {POSITIONS}.
"""


def _changes(old: RopeSpec, new: RopeSpec) -> Iterator[tuple[str, str]]:
    """The fields in which an embedding differs from another, as flags have them."""
    before = old.fields()
    for name, value in new.fields().items():
        if isinstance(value, Mapping):
            nested = before.get(name) or {}
            yield from (
                (f"{name}.{key}", _shown(each))
                for key, each in value.items()
                if nested.get(key) != each
            )
        elif before.get(name) != value:
            yield name, _shown(value)


def _shown(value: Any) -> str:
    return ",".join(map(repr, value)) if isinstance(value, list | tuple) else str(value)
