"""LoRA in the training step: which parameters are trained, and the decoder that they make.

The trained parameters are a pure dict with the decoder's paths. At the place of a kernel with an
update it has the two factors instead, under `io.adapters.config.A` and `B`.

Letters: L layers, I input axes and O output axes of a kernel, R rank.
"""

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax.nnx.traversals import flatten_mapping, unflatten_mapping

from rrope_jax.io.adapters.config import TARGETS, A, B, LoraConfig
from rrope_jax.io.weights import Weight
from rrope_jax.model import ModelConfig
from rrope_jax.model.decoder import parameter_layout
from rrope_jax.model.low_rank import LowRankUpdated
from rrope_jax.sharding import LogicalAxes
from rrope_jax.train.optimizer import matrices

Params = dict[str, Any]
Path = tuple[str, ...]


def check(config: LoraConfig, model: ModelConfig) -> None:
    """Raises ValueError if the model has no matrix of a target's name."""
    layout = parameter_layout(model)
    for name in config.targets if config.rank else ():
        if _path(TARGETS[name]) not in layout:
            raise ValueError(
                f"lora.targets has {name!r}, which a model with activation={model.activation!r} "
                "lacks; leave it out"
            )


def layout(
    config: LoraConfig, model: ModelConfig
) -> Mapping[Path, tuple[tuple[int, ...], LogicalAxes]]:
    """Path -> shape and logical axes of every factor."""
    factors: dict[Path, tuple[tuple[int, ...], LogicalAxes]] = {}
    for name in config.targets if config.rank else ():
        weight = TARGETS[name]
        assert weight.inputs is not None
        (layers, *sizes), (_, *axes) = parameter_layout(model)[_path(weight)]
        cut = weight.inputs
        a_shape, b_shape = (*sizes[:cut], config.rank), (config.rank, *sizes[cut:])
        factors[(*_path(weight), A)] = (layers, *a_shape), (None, *axes[:cut], None)
        factors[(*_path(weight), B)] = (layers, *b_shape), (None, None, *axes[cut:])
    return factors


def new_factors(config: LoraConfig, model: ModelConfig, key: jax.Array) -> Params:
    """Factors to start from: A uniform within 1 / sqrt(inputs), as in PEFT; B zero."""
    factors = {}
    for index, (path, (shape, _)) in enumerate(layout(config, model).items()):
        if path[-1] == B:
            factors[path] = jnp.zeros(shape, jnp.float32)
            continue
        bound = 1 / math.sqrt(math.prod(shape[1:-1]))
        draw = jax.random.fold_in(key, index)
        factors[path] = jax.random.uniform(draw, shape, jnp.float32, -bound, bound)
    nested: Params = unflatten_mapping(factors)
    return nested


def split_paths(config: LoraConfig, params: Params) -> tuple[Params, Params | None]:
    """The parts of a tree like a decoder's parameters that are trained in full, and not at all.

    Without LoRA, all are trained, and the second part is None.
    """
    if not config.rank:
        return params, None
    parts: tuple[dict[Path, Any], dict[Path, Any]] = ({}, {})
    for path, leaf in flatten_mapping(params).items():
        parts[".".join(path) not in config.trained_in_full][path] = leaf
    trained, frozen = map(unflatten_mapping, parts)
    return trained, frozen


def split(config: LoraConfig, params: Params) -> tuple[Params, Params | None]:
    """Like `split_paths` for parameters; the frozen matrices are cast to `base_dtype`."""
    trained, frozen = split_paths(config, params)
    if frozen is not None:
        frozen = jax.tree.map(
            lambda leaf, is_matrix: leaf.astype(config.base_dtype) if is_matrix else leaf,
            frozen,
            matrices(frozen),
        )
    return trained, frozen


def joined(trained: Params, factors: Params) -> Params:
    """Parameters that are trained in full, and factors, as one pure dict."""
    whole: Params = unflatten_mapping(flatten_mapping(trained) | flatten_mapping(factors))
    return whole


def decoder_params(
    config: LoraConfig, trained: Params, frozen: Params | None, dropout_key: jax.Array | None = None
) -> Params:
    """The parameters of the decoder, where each adapted kernel is a `LowRankUpdated`.

    Args:
      config: which kernels have an update.
      trained: the trained parameters.
      frozen: the others; None without LoRA.
      dropout_key: a PRNG key; None for no dropout.
    """
    if frozen is None:
        return trained
    flat, factors = flatten_mapping(frozen), flatten_mapping(trained)
    for index, name in enumerate(config.targets):
        path = _path(TARGETS[name])
        a, b = factors.pop((*path, A)), factors.pop((*path, B))
        keys_L = None
        if dropout_key is not None:
            keys_L = jax.random.split(jax.random.fold_in(dropout_key, index), len(a))
        flat[path] = LowRankUpdated(flat[path], a, b, keys_L, config.scaling, config.dropout)
    params: Params = unflatten_mapping(flat | factors)
    return params


def _path(weight: Weight) -> Path:
    return tuple(weight.path.split("."))
