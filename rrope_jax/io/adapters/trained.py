"""Adapters in the checkpoints of `rrope train`, which hold no base."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from rrope_jax.io import json_text
from rrope_jax.io.adapters.adapter import Adapter, Base, Factors
from rrope_jax.io.adapters.config import A, B, LoraConfig
from rrope_jax.io.description import Description
from rrope_jax.io.orbax.layout import ADAPTER, layout_of
from rrope_jax.io.orbax.read import OrbaxSource
from rrope_jax.io.weights import WEIGHTS, Array, Weight


def to_json(config: LoraConfig, base: Base) -> dict[str, Any]:
    """What a checkpoint's metadata have under `layout.ADAPTER`."""
    return {"config": dataclasses.asdict(config), "base": dataclasses.asdict(base)}


def is_trained_adapter(path: Path) -> bool:
    """Whether a path is a training workdir, or one checkpoint in it, with an adapter."""
    return _metadata(path) is not None


def read_trained(path: Path) -> tuple[Adapter, Description]:
    """Reads an adapter, and the description of the model that it makes of its base.

    Raises:
      ValueError: the checkpoint is damaged.
    """
    metadata = _metadata(path)
    source = OrbaxSource(path)
    description = source.description  # verifies the metadata
    try:
        assert metadata is not None
        fields: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in metadata["config"].items()
        }
        config, base = LoraConfig(**fields), Base(**metadata["base"])
    except (AssertionError, KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"{path} describes no adapter ({error})") from error
    factors: dict[tuple[Weight, int], Factors] = {}
    replaced: dict[tuple[Weight, int], Array] = {}
    for weight in WEIGHTS:
        names = [f"{weight.path}.{key}" for key in (A, B)]
        if set(names) <= source.stored.keys():
            a_L, b_L = map(source.array, names)
            for layer, (a, b) in enumerate(zip(a_L, b_L, strict=True)):
                a_RI, b_OR = _matrices(a, b)
                factors[weight, layer] = Factors(a_RI, b_OR, config.scaling)
        elif weight.path in source.stored:
            kernel = source.array(weight.path)
            for layer in weight.layers(description.model):
                replaced[weight, layer] = weight.to_matrix(
                    kernel[layer] if weight.stacked else kernel
                )
    return Adapter(path, factors, replaced, config.rslora, base), description


def _matrices(a: Array, b: Array) -> tuple[Array, Array]:
    """One layer's factors [*I, R] and [R, *O] as matrices [R, I] and [O, R]."""
    return (
        np.ascontiguousarray(a.reshape(-1, a.shape[-1]).T),
        np.ascontiguousarray(b.reshape(len(b), -1).T),
    )


def _metadata(path: Path) -> Mapping[str, Any] | None:
    """The adapter's entry of a checkpoint's metadata; None if it is no checkpoint with one."""
    layout = layout_of(path)
    if layout is None or layout.key is None:
        return None
    try:
        value = json_text.parse(layout.description.read_bytes())
    except (OSError, ValueError):
        return None  # reading it as a model says what is wrong
    found = value.get(ADAPTER) if isinstance(value, dict) else None
    return found if isinstance(found, dict) else None
