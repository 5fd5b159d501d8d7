"""Builds RoPE specs from the fields of a config: for several methods, or over a checkpoint's."""

import dataclasses
import logging
import math
from typing import Annotated, Any

from rrope_jax.cli.errors import UsageError
from rrope_jax.cli.settings import Fields, SomeOf, build
from rrope_jax.io.description import FOLDED_TEMPERATURE, Description
from rrope_jax.rope import RopeSpec, frequencies
from rrope_jax.rope.methods import parse_method
from rrope_jax.rope.scalings import SCALING_FIELDS, unread_fields

_LOG = logging.getLogger(__name__)
_PATH = "config.rope"

RopeFields = Annotated[Fields, SomeOf(RopeSpec)]
"""The group `config.rope`, which describes several methods or changes a checkpoint's embedding."""


def spec_of(
    fields: Fields, path: str = _PATH, *, scaling: str, resonance: bool, **fixed: Any
) -> RopeSpec:
    """Builds the spec of a method, ignoring fields that only other scalings use.

    Args:
      fields: RopeSpec fields; `scaling` and `resonance` among them are ignored.
      path: The group's name in messages.
      scaling, resonance: The method.
      **fixed: Fields that the caller sets, such as `head_dim`.

    Raises:
      UsageError: A value is wrong.
    """
    unread = unread_fields(scaling)
    read = {name: fields[name] for name in fields if name not in unread}
    return build(RopeSpec, read | {"scaling": scaling, "resonance": resonance}, path, **fixed)


def spec_of_method(fields: Fields, path: str, method: str, **fixed: Any) -> RopeSpec:
    """Like `spec_of`, for the name of a method (`[resonance_]scaling`)."""
    scaling, resonance = parse_method(method)
    try:
        return spec_of(fields, path, scaling=scaling, resonance=resonance, **fixed)
    except UsageError as error:
        raise UsageError(f"method {method!r}: {error}") from error


def original_context(description: Description) -> int | None:
    """Returns the context length, in tokens, that a checkpoint was trained at before any extension.

    Returns:
      The length, or None if the checkpoint does not give it.
    """
    if description.original_context is not None:
        return description.original_context
    spec = description.rope
    # With equal factor lists, the length at which LongRoPE switches between them is arbitrary.
    idle = spec.scaling == "longrope" and spec.short_factor == spec.long_factor
    if spec.original_context is not None and not (
        idle and spec.original_context == description.context
    ):
        return spec.original_context
    return description.context if not idle and spec.extension == 1 else None


def extend(description: Description, fields: Fields) -> Description:
    """Replaces fields of a checkpoint's rotary embedding, and extends its context to match.

    Other fields keep the checkpoint's values, except those that no longer apply. A new scaling
    resets the fields of the old one (its factor only for LongRoPE). A new factor, original context
    or mscale resets the attention factor. `original_context` defaults to the context length before
    any extension; the new context is that length times the scaling's factor.

    Args:
      description: The checkpoint's description.
      fields: RopeSpec fields of `config.rope`.

    Returns:
      The new description.

    Raises:
      UsageError: A field has no effect or a wrong value, `head_dim` is not the model's, or the
        checkpoint cannot be changed: its weights include a temperature, its original context is
        unknown, or its factor lists were made for another extension.
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
    idle = sorted(unread_fields(old.scaling).intersection(fields))
    if idle and "scaling" not in fields:
        raise UsageError(
            f"{_PATH}.{idle[0]} = {fields[idle[0]]!r} has no effect on the checkpoint's scaling, "
            f"{old.scaling!r}; set {_PATH}.scaling too"
        )
    original = fields.get("original_context") or original_context(description)
    rescaled = {"scaling", "factor", "original_context"}.intersection(fields)
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
    """Returns the embedding's fields with those reset that the config's changes invalidate."""
    inherited = {field.name: getattr(old, field.name) for field in dataclasses.fields(old)}
    current = inherited | {"factor": old.extension}
    changed = {name for name in fields if fields[name] != current.get(name)}
    if "scaling" in changed:
        defaults = {field.name: field.default for field in dataclasses.fields(old)}
        inherited |= {name: defaults[name] for name in SCALING_FIELDS - {"factor"}}
        if old.scaling == "longrope":  # its factor determines its temperature
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
