"""RopeSpecs from a config group: of several methods, or over those of a checkpoint."""

import dataclasses
import logging
import math
import types
import typing
from typing import Any

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from rrope_jax.cli.configuration import UsageError, from_config
from rrope_jax.io.description import FOLDED_TEMPERATURE, Description
from rrope_jax.rope import RopeSpec, frequencies
from rrope_jax.rope.methods import parse_method
from rrope_jax.rope.scalings import SCALING_FIELDS, unread_fields

_LOG = logging.getLogger(__name__)


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
    unread = unread_fields(scaling)
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


def original_context(description: Description) -> int | None:
    """The context, in tokens, that a checkpoint was trained at before any extension of it.

    Returns:
      None where the checkpoint names it nowhere.
    """
    if description.original_context is not None:
        return description.original_context
    spec = description.rope
    # two equal lists never switch, so the length at which they would may be any
    idle = spec.scaling == "longrope" and spec.short_factor == spec.long_factor
    if spec.original_context is not None and not (
        idle and spec.original_context == description.context
    ):
        return spec.original_context
    return description.context if not idle and spec.extension == 1 else None


def extend(
    description: Description, group: ConfigDict | None, path: str = "config.rope"
) -> Description:
    """A checkpoint's description with some fields of its rotary embedding replaced.

    Fields that are None or absent keep the checkpoint's. But what was made for one extension goes
    with it: the fields of a scaling with the scaling, and an attention factor also where the
    factor, the original context or an mscale changes. Without `original_context`, it is the
    context that the checkpoint was made for before any extension. A scaling with a factor extends
    that context by it.

    Args:
      description: of the checkpoint.
      group: RopeSpec fields, such as `config.rope`; None for no change.
      path: the group's name in messages.

    Raises:
      UsageError: a key is unknown, has no effect or a wrong value, head_dim is not the model's,
        the checkpoint is an export with a temperature in its weights, does not name its original
        context, or has lists of factors made for another extension.
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
    if "scaling" not in given and (idle := sorted(given.keys() & unread_fields(old.scaling))):
        raise UsageError(
            f"{path}.{idle[0]} = {given[idle[0]]!r} has no effect on the checkpoint's scaling, "
            f"{old.scaling!r}; set {path}.scaling too"
        )
    original = given.get("original_context") or original_context(description)
    rescaled = given.keys() & {"scaling", "factor", "original_context"}
    if rescaled and original is None:
        raise UsageError(
            f"{path}.original_context is not set, and the checkpoint does not say what context it "
            f"had before its scaling {old.scaling!r} by {old.extension:g}, only "
            f"{description.context} tokens now; set it to the tokens that the model was trained at"
        )
    merged = _kept(old, given, path) | ({"original_context": original} if original else {}) | given
    spec = spec_of(
        ConfigDict(merged),
        path,
        scaling=merged["scaling"],
        resonance=merged["resonance"],
        head_dim=description.model.head_size,
    )
    if spec.scaling != old.scaling and old.scaling != "none":
        _LOG.warning(
            "%s.scaling = %r replaces the checkpoint's %r by %g; %s tokens are extended, not %s",
            path,
            spec.scaling,
            old.scaling,
            old.extension,
            original,
            description.context,
        )
    if rescaled and original is not None:
        extended = round(original * spec.extension)
        named = None if spec.original_context == original or spec.extension == 1 else original
        return dataclasses.replace(description, rope=spec, context=extended, original_context=named)
    return dataclasses.replace(description, rope=spec)


_MADE_FOR_AN_EXTENSION = {"factor", "original_context", "mscale", "mscale_all_dim"}


def _kept(old: RopeSpec, given: dict[str, Any], path: str) -> dict[str, Any]:
    """The fields of a checkpoint's embedding that go on beside those given."""
    kept = {field.name: getattr(old, field.name) for field in dataclasses.fields(old)}
    current = kept | {"factor": old.extension}
    changed = {name for name in given if given[name] != current.get(name)}
    if "scaling" in changed:
        defaults = {field.name: field.default for field in dataclasses.fields(old)}
        kept |= {name: defaults[name] for name in SCALING_FIELDS - {"factor"}}
        if old.scaling == "longrope":  # its factor is a part of its temperature
            kept["factor"] = defaults["factor"]
        kept["attention_factor"] = None
        return kept
    lists = {"short_factor", "long_factor"}
    if old.scaling == "longrope" and changed & _MADE_FOR_AN_EXTENSION and not lists <= given.keys():
        name = sorted(changed & _MADE_FOR_AN_EXTENSION)[0]
        raise UsageError(
            f"{path}.{name} = {given[name]!r}: the checkpoint's short_factor and long_factor are "
            f"made for {name}={current[name]!r}; set both lists too, or another {path}.scaling"
        )
    if old.attention_factor is not None and changed & (_MADE_FOR_AN_EXTENSION | lists):
        kept["attention_factor"] = None
        own = frequencies(dataclasses.replace(old, attention_factor=None)).attention_factor
        if not math.isclose(own, old.attention_factor, rel_tol=1e-6):
            _LOG.warning(
                "%s.attention_factor is not set: the checkpoint's %g goes with its factor, and "
                "%r gives its own",
                path,
                old.attention_factor,
                old.scaling,
            )
    return kept
