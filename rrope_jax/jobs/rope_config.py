"""RopeSpecs from a config group: of several methods, or over those of a checkpoint."""

import dataclasses
import types
import typing
from typing import Any

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from rrope_jax.io.description import FOLDED_TEMPERATURE, Description
from rrope_jax.jobs.configuration import UsageError, from_config
from rrope_jax.posgen.grid import parse_method
from rrope_jax.rope import SCALINGS, RopeSpec
from rrope_jax.rope.fields import Unset
from rrope_jax.rope.spec import SCALING_FIELDS


def spec_of(
    group: ConfigDict, path: str, *, scaling: str, resonance: bool, **fixed: Any
) -> RopeSpec:
    """The spec of one scaling; fields that only other scalings read are left out.

    Args:
      group: RopeSpec fields, such as `config.rope`; its own scaling and resonance do not count.
      path: the group's name in messages.
      scaling, resonance: the method.
      **fixed: fields that the caller has settled, such as head_dim.

    Raises:
      UsageError: a key is unknown or a value wrong.
    """
    unread = SCALING_FIELDS - SCALINGS[scaling].reads if scaling in SCALINGS else frozenset()
    kept = {key: group[key] for key in group if key not in unread | {"scaling", "resonance"}}
    kept |= {"scaling": scaling, "resonance": resonance}
    return from_config(RopeSpec, ConfigDict(kept), path, **fixed)


def spec_of_method(group: ConfigDict, path: str, method: str, **fixed: Any) -> RopeSpec:
    """The spec of a method by its name (`[resonance_]scaling`): see `spec_of`."""
    scaling, resonance = parse_method(method)
    try:
        return spec_of(group, path, scaling=scaling, resonance=resonance, **fixed)
    except UsageError as error:
        raise UsageError(f"method {method!r}: {error}") from error


def unset_group() -> ConfigDict:
    """A group with every field of RopeSpec, all None, for overrides over a checkpoint's."""
    group = ConfigDict()
    for name, hint in typing.get_type_hints(RopeSpec).items():
        options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
        group[name] = placeholder(typing.get_origin(options[0]) or options[0])
    return group


def extend(
    description: Description, group: ConfigDict | None, path: str = "config.rope"
) -> Description:
    """A checkpoint's description with some fields of its rotary embedding replaced.

    Fields that are None or absent keep the checkpoint's; an attention factor belongs to its scaling
    and goes with it. Without `original_context`, it is the context that the checkpoint was made
    for before any extension. A scaling with a factor extends that context by it.

    Args:
      description: of the checkpoint.
      group: RopeSpec fields, such as `config.rope`; None for no change.
      path: the group's name in messages.

    Raises:
      UsageError: a key is unknown, has no effect or a wrong value, head_dim is not the model's, or
        the checkpoint is an export with a temperature in its weights.
    """
    given = {} if group is None else {key: group[key] for key in group if group[key] is not None}
    if not given:
        return description
    if (temperature := description.extras.get(FOLDED_TEMPERATURE)) is not None:
        raise UsageError(
            f"{path}: the checkpoint is an export whose weights hold the temperature "
            f"{temperature:.4f} of its embedding, so it cannot get another one; take the "
            "checkpoint that it was exported from"
        )
    old = description.rope
    unread = SCALING_FIELDS - SCALINGS[old.scaling].reads
    if "scaling" not in given and (idle := sorted(given.keys() & unread)):
        raise UsageError(
            f"{path}.{idle[0]} = {given[idle[0]]!r} has no effect on the checkpoint's scaling, "
            f"{old.scaling!r}; set {path}.scaling too"
        )
    kept = {field.name: getattr(old, field.name) for field in dataclasses.fields(old)}
    if given.get("scaling", old.scaling) != old.scaling:
        kept["attention_factor"] = None
    original = given.get("original_context") or old.original_context
    if original is None:
        original = round(description.context / old.factor)
    merged = kept | {"original_context": original} | given
    scaling, resonance = merged["scaling"], merged["resonance"]
    if isinstance(merged["factor"], Unset):
        del merged["factor"]  # left out, and not a 1 that someone gave
    spec = spec_of(
        ConfigDict(merged),
        path,
        scaling=scaling,
        resonance=resonance,
        head_dim=description.model.head_size,
    )
    rescaled = given.keys() & {"scaling", "factor", "original_context"}
    context = round(original * spec.factor) if rescaled else description.context
    return dataclasses.replace(description, rope=spec, context=context)
