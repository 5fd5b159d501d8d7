"""An adapter as the point that training starts from."""

import math
from typing import Any

import numpy as np
from flax.nnx.traversals import unflatten_mapping

from rrope_jax.io.adapters.adapter import Adapter
from rrope_jax.io.adapters.config import TARGETS, TRAINED_IN_FULL, A, B, LoraConfig
from rrope_jax.io.weights import parameter_shapes
from rrope_jax.model import ModelConfig


def check_trainable(adapter: Adapter, config: LoraConfig, model: ModelConfig) -> None:
    """Raises ValueError if an adapter is not one that a config trains; it says what differs."""
    its = _fields(adapter, model)
    same = {
        "rank": config.rank == its["rank"],
        "alpha": math.isclose(config.alpha, its["alpha"], rel_tol=1e-6),
        "rslora": config.rslora == its["rslora"],
        "targets": set(config.targets) == set(its["targets"]),
        "train_also": set(config.train_also) == set(its["train_also"]),
        "base_dtype": config.base_dtype == its.get("base_dtype", config.base_dtype),
    }
    differ = [name for name, is_same in same.items() if not is_same]
    if differ:
        theirs, ours = (
            ", ".join(f"{name}={_shown(values[name])}" for name in differ)
            for values in (its, vars(config))
        )
        raise ValueError(
            f"{adapter.path} was trained with {theirs}, and config.lora has {ours}; give it the "
            "adapter's, or train a new adapter"
        )


def factors(adapter: Adapter, config: LoraConfig, model: ModelConfig) -> dict[str, Any]:
    """The factors of an adapter that `check_trainable` accepts, as training has them.

    Returns:
      A pure dict with the paths of the kernels and, under each, `A` float32[L, *I, R] and `B`
      float32[L, R, *O], where L are the layers, I and O the kernel's axes and R the rank.
    """
    shapes = parameter_shapes(model)
    flat: dict[tuple[str, ...], np.ndarray] = {}
    for name in config.targets:
        weight = TARGETS[name]
        assert weight.inputs is not None
        _, *sizes = shapes[weight]
        inputs, outputs = sizes[: weight.inputs], sizes[weight.inputs :]
        of_layers = [adapter.factors[weight, layer] for layer in weight.layers(model)]
        path = tuple(weight.path.split("."))
        flat[*path, A] = np.stack([each.a_RI.T.reshape(*inputs, -1) for each in of_layers])
        flat[*path, B] = np.stack([each.b_OR.T.reshape(-1, *outputs) for each in of_layers])
    nested: dict[str, Any] = unflatten_mapping(flat)
    return nested


def _fields(adapter: Adapter, model: ModelConfig) -> dict[str, Any]:
    """The fields of `LoraConfig` that an adapter was trained with, as far as it says.

    Raises:
      ValueError: its matrices or layers have different ones, or it has others than a config names.
    """
    weights = parameter_shapes(model)
    targets = [name for name, weight in TARGETS.items() if (weight, 0) in adapter.factors]
    in_full = {weight.path for weight, _ in adapter.replaced}
    also = [word for word, paths in TRAINED_IN_FULL.items() if in_full & set(paths)]
    whole = [weight for weight in weights for word in also if weight.path in TRAINED_IN_FULL[word]]
    updated = {(TARGETS[name], layer) for name in targets for layer in range(model.num_layers)}
    replaced = {(weight, layer) for weight in whole for layer in weight.layers(model)}
    numbers = {(len(each.a_RI), each.scaling) for each in adapter.factors.values()}
    others = updated ^ adapter.factors.keys() | replaced ^ adapter.replaced.keys()
    if others or len(numbers) != 1:
        raise ValueError(
            f"{adapter.path} does not treat all layers and matrices alike, or has others than "
            "config.lora can name; merge it into its base with rrope convert --adapter, and train "
            "that with a new adapter"
        )
    ((rank, scaling),) = numbers
    fields = {
        "rank": rank,
        "alpha": scaling * (math.sqrt(rank) if adapter.rslora else rank),
        "rslora": adapter.rslora,
        "targets": tuple(targets),
        "train_also": tuple(also),
    }
    return fields if adapter.base is None else {**fields, "base_dtype": adapter.base.dtype}


def _shown(value: Any) -> str:
    if isinstance(value, tuple):
        return ",".join(value) or "()"
    return f"{value:g}" if isinstance(value, float) else str(value)
