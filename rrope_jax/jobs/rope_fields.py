"""Fields of a rotary embedding from a config: of several methods, or over those of a checkpoint."""

import dataclasses
import logging
import math
import types
import typing
from typing import Annotated, Any

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from rrope_jax.cli.errors import UsageError
from rrope_jax.cli.settings import Fields, SomeOf, build
from rrope_jax.io.description import FOLDED_TEMPERATURE, Description
from rrope_jax.rope import RopeSpec, frequencies
from rrope_jax.rope.methods import parse_method
from rrope_jax.rope.scalings import SCALING_FIELDS, unread_fields

_LOG = logging.getLogger(__name__)
_PATH = "config.rope"

RopeFields = Annotated[Fields, SomeOf(RopeSpec)]
"""The group `config.rope`: it describes several methods, or changes a checkpoint's embedding."""


def spec_of(
    fields: Fields, path: str = _PATH, *, scaling: str, resonance: bool, **fixed: Any
) -> RopeSpec:
    """The spec of one scaling; fields that only other scalings read are left out.

    Args:
      fields: RopeSpec fields; their own scaling and resonance do not count.
      path: The group's name in messages.
      scaling, resonance: The method.
      **fixed: Fields that the caller has settled, such as head_dim.

    Raises:
      UsageError: A value is wrong.
    """
    unread = unread_fields(scaling)
    read = {name: fields[name] for name in fields if name not in unread}
    return build(RopeSpec, read | {"scaling": scaling, "resonance": resonance}, path, **fixed)


def spec_of_method(fields: Fields, path: str, method: str, **fixed: Any) -> RopeSpec:
    """The spec of a method by its name (`[resonance_]scaling`): see `spec_of`."""
    scaling, resonance = parse_method(method)
    try:
        return spec_of(fields, path, scaling=scaling, resonance=resonance, **fixed)
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


def extend(description: Description, fields: Fields) -> Description:
    """A checkpoint's description with some fields of its rotary embedding replaced.

    Fields that are absent keep the checkpoint's values. But what was made for one extension goes
    with it: the fields of a scaling with the scaling, and an attention factor also where the
    factor, the original context or an mscale changes. Without `original_context`, it is the
    context that the checkpoint was made for before any extension. A scaling with a factor extends
    that context by it.

    Args:
      description: Of the checkpoint.
      fields: RopeSpec fields of `config.rope`.

    Raises:
      UsageError: A field has no effect or a wrong value, head_dim is not the model's, the
        checkpoint is an export with a temperature in its weights, does not name its original
        context, or has lists of factors made for another extension.
    """
    if not fields:
        return description
    if (temperature := description.extras.get(FOLDED_TEMPERATURE)) is not None:
        raise UsageError(
            f"{_PATH}: the checkpoint is an export whose weights hold the temperature "
            f"{temperature:.4f} of its embedding, so it cannot get another one; take the "
            "checkpoint that it was exported from"
        )
    old = description.rope
    if "scaling" not in fields and (idle := sorted(fields.keys() & unread_fields(old.scaling))):
        raise UsageError(
            f"{_PATH}.{idle[0]} = {fields[idle[0]]!r} has no effect on the checkpoint's scaling, "
            f"{old.scaling!r}; set {_PATH}.scaling too"
        )
    original = fields.get("original_context") or original_context(description)
    rescaled = fields.keys() & {"scaling", "factor", "original_context"}
    if rescaled and original is None:
        raise UsageError(
            f"{_PATH}.original_context is not set, and the checkpoint does not say what context it "
            f"had before its scaling {old.scaling!r} by {old.extension:g}, only "
            f"{description.context} tokens now; set it to the tokens that the model was trained at"
        )
    merged = _inherited(old, fields)
    if original:
        merged["original_context"] = original
    merged |= fields
    spec = spec_of(
        merged,
        scaling=merged["scaling"],
        resonance=merged["resonance"],
        head_dim=description.model.head_size,
    )
    if spec.scaling != old.scaling and old.scaling != "none":
        _LOG.warning(
            "%s.scaling = %r replaces the checkpoint's %r by %g; %s tokens are extended, not %s",
            _PATH,
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


_OF_AN_EXTENSION = {"factor", "original_context", "mscale", "mscale_all_dim"}


def _inherited(old: RopeSpec, fields: Fields) -> dict[str, Any]:
    """The fields of a checkpoint's embedding that stay beside those that a config gives."""
    inherited = {field.name: getattr(old, field.name) for field in dataclasses.fields(old)}
    current = inherited | {"factor": old.extension}
    changed = {name for name in fields if fields[name] != current.get(name)}
    if "scaling" in changed:
        defaults = {field.name: field.default for field in dataclasses.fields(old)}
        inherited |= {name: defaults[name] for name in SCALING_FIELDS - {"factor"}}
        if old.scaling == "longrope":  # its factor is a part of its temperature
            inherited["factor"] = defaults["factor"]
        inherited["attention_factor"] = None
        return inherited
    lists = {"short_factor", "long_factor"}
    rescaled = sorted(changed & _OF_AN_EXTENSION)
    if old.scaling == "longrope" and rescaled and not lists <= fields.keys():
        name = rescaled[0]
        raise UsageError(
            f"{_PATH}.{name} = {fields[name]!r}: the checkpoint's short_factor and long_factor are "
            f"made for {name}={current[name]!r}; set both lists too, or another {_PATH}.scaling"
        )
    if old.attention_factor is not None and changed & (_OF_AN_EXTENSION | lists):
        inherited["attention_factor"] = None
        prescribed = frequencies(dataclasses.replace(old, attention_factor=None)).attention_factor
        if not math.isclose(prescribed, old.attention_factor, rel_tol=1e-6):
            _LOG.warning(
                "%s.attention_factor is not set: the checkpoint's %g goes with its factor, and "
                "%r gives its own",
                _PATH,
                old.attention_factor,
                old.scaling,
            )
    return inherited
