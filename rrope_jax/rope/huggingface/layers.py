"""Reads configs whose layers have different embeddings.

transformers 4 has a key for the base of layers with a sliding window and applies `rope_scaling`
to the other layers only (to all in ModernBERT); transformers 5 has one dict of parameters for each
layer type in `rope_parameters`. Configs whose layers differ in other ways are rejected; the message
shows a call that reads the embedding of some of the layers.

OLMo 3's scaling is that of full-attention layers, as in its paper (arXiv 2512.13961) and in
transformers 4.57 and 5.23; some releases between them scaled all layers
(huggingface/transformers#45945).
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from rrope_jax.rope.huggingface.embedding import read_one
from rrope_jax.rope.huggingface.keys import HfConfig, check_nested
from rrope_jax.rope.huggingface.model_types import (
    LAYERED,
    SLIDING_KEYS,
    UNROTATED_LAYERS,
    SlidingLayers,
)
from rrope_jax.rope.huggingface.rope_types import DIALECTS, NESTED_KEYS
from rrope_jax.rope.spec import RopeSpec

FULL, SLIDING = "full_attention", "sliding_attention"
"""The layer types of transformers that a RopeSpec distinguishes."""
_FLAT, _NESTED = DIALECTS
_PER_LAYER = ("no_rope_layers", "no_rope_layer_interval", "layer_rope_theta", *SLIDING_KEYS)


class Expression(str):
    """Python code that `advice` inserts verbatim; it formats other values with `repr`."""


def advice(hf: HfConfig, **edits: Any) -> str:
    """A `from_hf` call, ready to copy, that reads the embedding of some of the layers.

    Args:
      hf: the config.
      **edits: keys that the call must replace, besides those that differ between layers.
    """
    nested = [hf.keys[dialect] for dialect in DIALECTS if isinstance(hf.keys.get(dialect), Mapping)]
    defaults = {
        "rope_theta": hf.defaults.theta,
        "partial_rotary_factor": hf.defaults.share,
        "head_dim": hf.defaults.head_dim,
        "qk_rope_head_dim": hf.defaults.qk_rope_head_dim,
    }
    edits |= {key: None for key in _PER_LAYER if hf.keys.get(key) is not None}
    edits |= {
        key: value
        for key, value in defaults.items()
        if value not in (None, 1.0)
        and all(holder.get(key) is None for holder in (hf.keys, *nested))
    }
    if hf.keys.get("model_type") is not None:
        edits = {"model_type": None} | edits
    parts = [
        f"{key!r}: {value if isinstance(value, Expression) else repr(value)}"
        for key, value in edits.items()
    ]
    return f"from_hf({{**config, {', '.join(parts)}}})"


def read_layers(hf: HfConfig) -> RopeSpec:
    """Reads the embeddings of all layers.

    Raises:
      ValueError: the layers differ in ways that a RopeSpec does not express, or keys contradict
        each other, are missing, unsupported or out of range.
    """
    dialects = [dialect for dialect in DIALECTS if hf.keys.get(dialect)]
    both = len(dialects) == 2
    if both and _layers(hf, _NESTED) and not _layers(hf, _FLAT):
        spec = _by_layer_type(hf, _NESTED)
        same = _agrees_with_flat(hf, spec)
    else:
        specs = [_read_dialect(hf, dialect) for dialect in dialects or DIALECTS[:1]]
        spec, same = specs[0], specs[0] == specs[-1]
    if not same:
        raise ValueError(
            f"rope_scaling={hf.keys[_FLAT]!r} and rope_parameters={hf.keys[_NESTED]!r} describe "
            "different embeddings; remove the wrong one"
        )
    _check_layers(hf, spec)
    return spec


def _layers(hf: HfConfig, dialect: str) -> dict[str, Any]:
    """The dicts of each layer type; empty if there is one for all."""
    parameters: Any = hf.keys.get(dialect)
    if not isinstance(parameters, Mapping):
        return {}
    return {key: each for key, each in parameters.items() if isinstance(each, Mapping)}


def _read_dialect(hf: HfConfig, dialect: str) -> RopeSpec:
    if _layers(hf, dialect):
        return _by_layer_type(hf, dialect)
    sliding = _sliding_keys(hf)
    if sliding is not None:
        return _two_bases(hf, dialect, sliding)
    if (model_type := hf.keys.get("model_type")) in LAYERED:
        raise ValueError(
            f"model_type={model_type!r} has several embeddings, which its config has to state in "
            f"rope_parameters by layer type; read the one for the whole context with {advice(hf)}"
        )
    return read_one(hf, dialect)


def _sliding_keys(hf: HfConfig) -> SlidingLayers | None:
    """The keys of layers with a sliding window; of a known type, or of those that are present."""
    if hf.keys.get("model_type") is not None and hf.model_type is not None:
        return hf.model_type.sliding
    present = [key for key in SLIDING_KEYS if hf.keys.get(key) is not None]
    return SLIDING_KEYS[present[0]] if present else None


def _two_bases(hf: HfConfig, dialect: str, sliding: SlidingLayers) -> RopeSpec:
    """The embeddings of a config with the keys of transformers 4."""
    parameters: Any = hf.keys.get(dialect)
    if dialect == _NESTED and parameters:
        raise ValueError(
            f"rope_parameters={parameters!r} does not say which layers it is about, and those with "
            f"a sliding window have another embedding; nest it: {{{FULL!r}: ..., {SLIDING!r}: ...}}"
        )
    if hf.keys.get("model_type") is None and hf.keys.get("rope_theta") is None:
        raise ValueError(
            f"{sliding.key} is the base of layers with a sliding window, and rope_theta, that of "
            "the others, is missing; add it"
        )
    given = parameters if isinstance(parameters, Mapping) else {}
    old = given.get("type", "default")
    if old != "default" and given.get("rope_type") is None:
        raise ValueError(
            f"{dialect} has type={old!r}, which transformers 5 ignores where layer types have "
            "embeddings of their own; call it rope_type"
        )
    if given.get("rope_type") == "yarn" and not given.get("truncate", True):
        raise ValueError(
            f"{dialect} has truncate={given['truncate']!r}, which transformers 5 ignores where "
            "layer types have embeddings of their own; say it in rope_parameters, in "
            f"{FULL} and beside it"
        )
    full = read_one(dataclasses.replace(hf, one_layer_type=True), dialect)
    without = hf if sliding.scaled else hf.replace(**{dialect: None})
    return dataclasses.replace(
        full, sliding_attention=read_one(_of_sliding(without, sliding), dialect)
    )


def _of_sliding(hf: HfConfig, sliding: SlidingLayers) -> HfConfig:
    """The config with the base of layers with a sliding window, where they do not state it."""
    theta = hf.keys.get("rope_theta" if sliding.key is None else sliding.key)
    if theta is None:
        theta = sliding.theta
    if sliding.key is None and theta != sliding.theta:
        raise ValueError(
            f"rope_theta={theta!r} is the base of all layers in transformers 4 and of "
            f"full-attention layers in transformers 5, where the others have {sliding.theta}; say "
            f"both in rope_parameters, as {FULL} and {SLIDING}"
        )
    names = {**hf.names, "rope_theta": sliding.key or "rope_theta"}
    changed = dataclasses.replace(hf, names=names, one_layer_type=True)
    return changed.replace(rope_theta=theta)


def _by_layer_type(hf: HfConfig, dialect: str) -> RopeSpec:
    """The embeddings of a config whose parameters are nested by layer type."""
    parameters: Any = hf.keys[dialect]
    layers = _layers(hf, dialect)
    sliding = _sliding_keys(hf)
    unrotated = [key for key in parameters if parameters[key] is None and key not in NESTED_KEYS]
    if sliding is not None:  # transformers fills in those that are missing
        layers = {FULL: {}, SLIDING: {}} | layers
        unrotated = [key for key in unrotated if key not in layers]
    _check_beside(parameters, dialect, layers)
    if sliding is None:
        _check_stated(hf, dialect, layers)
    one = dataclasses.replace(hf, one_layer_type=True)
    specs = {}
    for name, each in layers.items():
        has_own_base = name == SLIDING and sliding is not None and each.get("rope_theta") is None
        base = _of_sliding(one, sliding) if has_own_base and sliding is not None else one
        specs[name] = read_one(base.replace(**{dialect: each}), dialect)
    if not unrotated and specs.keys() == {FULL, SLIDING} and _may_differ(hf):
        _check_base(hf, sliding, specs[SLIDING])
        return dataclasses.replace(specs[FULL], sliding_attention=specs[SLIDING])
    first = next(iter(layers))
    if unrotated or len(specs) == 1 or any(spec != specs[first] for spec in specs.values()):
        one_of_them = Expression(f"config[{dialect!r}][{first!r}]")
        others = {key: None for key in DIALECTS if key != dialect and hf.keys.get(key)}
        call = advice(hf.replace(**{dialect: layers[first]}), **{dialect: one_of_them}, **others)
        raise ValueError(
            f"{dialect} differs between layer types ({', '.join([*layers, *unrotated])}), of which "
            f"only {FULL} and {SLIDING} are read together; read each with {call}"
        )
    return specs[first]


def _may_differ(hf: HfConfig) -> bool:
    """Whether the model may have two embeddings: known types with one have no nested keys."""
    model_type = hf.keys.get("model_type")
    return model_type is None or hf.model_type is None or model_type in LAYERED


def _check_beside(parameters: Mapping[str, Any], dialect: str, layers: Mapping[str, Any]) -> None:
    """Raises ValueError for keys beside the layer types, where only `truncate` is read."""
    beside = {key: value for key, value in parameters.items() if key not in layers}
    if beside.get("rope_type", "default") == "default":
        beside.pop("rope_type", None)
    truncate = beside.pop("truncate", True)
    if "rope_type" in beside:
        raise ValueError(
            f"{dialect} has rope_type={beside['rope_type']!r} beside the layer types "
            f"{', '.join(layers)}, where it is not read; move it into them"
        )
    check_nested(beside, dialect, frozenset())
    for name, each in layers.items():
        is_yarn = "yarn" in (each.get("rope_type"), each.get("type"))
        if is_yarn and each.get("truncate", True) != truncate:
            raise ValueError(
                f"{dialect} has truncate={each.get('truncate', True)!r} in {name} and {truncate!r} "
                f"beside it, where transformers reads it; set both (true if missing)"
            )


def _check_stated(hf: HfConfig, dialect: str, layers: Mapping[str, Any]) -> None:
    """Raises ValueError for missing keys whose defaults differ between layer types."""
    if hf.keys.get("model_type") not in LAYERED:
        return
    keys = ("rope_theta",) if hf.defaults.share == 1 else ("rope_theta", "partial_rotary_factor")
    for name, each in layers.items():
        for key in keys:
            if each.get(key) is None:
                raise ValueError(f"{key} is missing from {dialect}.{name}={each!r}; add it")


def _check_base(hf: HfConfig, sliding: SlidingLayers | None, spec: RopeSpec) -> None:
    """Raises ValueError if transformers 4's key has another base than the nested parameters."""
    base = hf.keys.get(sliding.key) if sliding is not None and sliding.key else None
    if base is not None and base != spec.theta:
        assert sliding is not None
        raise ValueError(
            f"{sliding.key}={base!r} and rope_theta={spec.theta!r} of {SLIDING} in rope_parameters "
            "contradict each other; remove the wrong one"
        )


def _agrees_with_flat(hf: HfConfig, spec: RopeSpec) -> bool:
    """Whether a flat `rope_scaling` says the same as the nested parameters."""
    one = dataclasses.replace(hf, one_layer_type=True)
    sliding = _sliding_keys(hf)
    thetas = {FULL: hf.keys.get("rope_theta")}
    if sliding is not None and sliding.scaled:
        thetas[SLIDING] = spec.of(SLIDING).theta
    return all(
        read_one(one.replace(rope_theta=theta), _FLAT) == spec.of(name)
        for name, theta in thetas.items()
    )


def _check_layers(hf: HfConfig, spec: RopeSpec) -> None:
    """Raises ValueError if some layers have another base than `spec` says, or no rotation."""
    for key in SLIDING_KEYS:
        base = hf.keys.get(key)
        if base is not None and base != hf.keys.get("rope_theta") and _sliding_keys(hf) is None:
            raise ValueError(
                f"{key}={base!r} gives some layers another base, and this model_type has one for "
                f"all; remove it to read that of the other layers: {advice(hf)}"
            )
    others = f"read that of the others with {advice(hf)}"
    bases = hf.keys.get("layer_rope_theta")
    if bases and (not isinstance(bases, list) or any(base != spec.theta for base in bases)):
        raise ValueError(f"layer_rope_theta={bases!r} gives some layers another base; {others}")
    if hf.keys.get("model_type") in UNROTATED_LAYERS:
        return
    rotated, interval = hf.keys.get("no_rope_layers"), hf.keys.get("no_rope_layer_interval")
    if rotated and not (isinstance(rotated, list) and all(rotated)):
        raise ValueError(
            f"no_rope_layers={rotated!r} leaves layers without rotation (those with a 0); {others}"
        )
    if interval and not rotated:
        raise ValueError(
            f"no_rope_layer_interval={interval!r} leaves layers without rotation; {others}"
        )
