"""Builds RoPE specs from the fields of a config: for several methods, or over a checkpoint's."""

import dataclasses
import logging
import math
from typing import Any

from rrope_jax.cli.errors import UsageError
from rrope_jax.cli.settings import Fields, build
from rrope_jax.io.description import FOLDED_TEMPERATURE, Description
from rrope_jax.jobs.rope_groups import FULL, PATH, SLIDING, Groups, check_layers, split
from rrope_jax.model import ModelConfig
from rrope_jax.rope import RopeSpec, frequencies
from rrope_jax.rope.far_positions import FAR_FIELDS, FAR_POSITIONS, unread_by_far
from rrope_jax.rope.methods import fields_of, split_period
from rrope_jax.rope.resonance import RULE_FIELDS, unread_by_rule
from rrope_jax.rope.scalings import SCALING_FIELDS, unread_fields
from rrope_jax.rope.spec import unread_by_method
from rrope_jax.rope.temperature import counts_in_original_context

_LOG = logging.getLogger(__name__)


def spec_of(
    fields: Fields,
    path: str = PATH,
    *,
    scaling: str,
    resonance: bool | str,
    far_positions: str = "none",
    **fixed: Any,
) -> RopeSpec:
    """Builds the spec of a method, ignoring fields that only other scalings or rules use.

    Args:
      fields: What the group `config.rope` contains; `scaling`, `resonance` and `far_positions` at
        its top are ignored. Those of one layer type replace the method's.
      path: The group's name in messages.
      scaling, resonance, far_positions: The method.
      **fixed: Fields that the caller sets, such as `head_dim`.

    Raises:
      UsageError: A value is wrong.
    """
    groups = split(fields, path)
    method = {"scaling": scaling, "resonance": resonance, "far_positions": far_positions}
    every = {**groups.all, **method}

    def of_layers(name: str, own: Fields) -> RopeSpec:
        return _build({**every, **own}, f"{path}.{name}" if own else path, **fixed)

    full = of_layers(FULL, groups.full)
    if not groups.full and not groups.sliding:
        return full
    return dataclasses.replace(full, sliding_attention=of_layers(SLIDING, groups.sliding))


def _build(fields: Fields, path: str, **fixed: Any) -> RopeSpec:
    """Builds the spec of some layers, ignoring fields that only other scalings or rules use."""
    unread = unread_by_method(fields["scaling"], fields["resonance"], fields["far_positions"])
    read = {name: fields[name] for name in fields if name not in unread}
    return build(RopeSpec, read, path, **fixed)


def new_spec(fields: Fields, model: ModelConfig) -> RopeSpec:
    """Builds the spec of a new model.

    Args:
      fields: What the group `config.rope` contains.
      model: The model.

    Raises:
      UsageError: A field has no effect or a wrong value.
    """
    groups = split(fields)
    check_layers(groups, model)
    full = _of_new_layers(groups.all, groups.full, FULL, model)
    if not groups.full and not groups.sliding:
        return full
    sliding = _of_new_layers(groups.all, groups.sliding, SLIDING, model)
    return dataclasses.replace(full, sliding_attention=sliding)


def _of_new_layers(every: Fields, own: Fields, name: str, model: ModelConfig) -> RopeSpec:
    unread = unread_fields(own["scaling"]) if "scaling" in own else frozenset()
    read = {field: value for field, value in every.items() if field not in unread}
    path = f"{PATH}.{name}" if own else PATH
    return build(RopeSpec, {**read, **own}, path, head_dim=model.head_size)


def spec_of_method(fields: Fields, path: str, method: str, **fixed: Any) -> RopeSpec:
    """Like `spec_of`, for the name of a method (`[rule_]scaling`)."""
    period = split_period(method)[1]
    if period is not None:
        fields = {**fields, "resonance_period": period}
    try:
        return spec_of(fields, path, **fields_of(method), **fixed)
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
    any extension; the new context is that length times the factor of full-attention layers.

    Args:
      description: The checkpoint's description.
      fields: What the group `config.rope` contains, see `rope_groups`.

    Returns:
      The new description.

    Raises:
      UsageError: A field has no effect or a wrong value, is given twice, or is one of layers that
        the model does not have; `head_dim` is not the model's; or the checkpoint cannot be changed:
        its weights include a temperature, its original context is unknown, or its factor lists were
        made for another extension.
    """
    groups = split(fields)
    if not groups:
        return description
    if (temperature := description.extras.get(FOLDED_TEMPERATURE)) is not None:
        raise UsageError(
            f"{PATH}: the checkpoint is an export whose weights hold the temperature "
            f"{temperature:.4f} of its embedding, so it cannot get another one; take the "
            "checkpoint that it was exported from"
        )
    check_layers(groups, description.model)
    old, types = description.rope, description.model.layer_types
    if FULL not in types:  # then there is one embedding, which the context goes with
        groups = Groups({**groups.all, **groups.sliding}, {}, {})
    of_full = {**groups.all, **groups.full}
    full = _changed(description, old.of(FULL), of_full, _path(FULL, groups.full))
    sliding = old.sliding_attention
    of_sliding = groups.sliding if sliding is not None else {**groups.all, **groups.sliding}
    if SLIDING in types and (sliding is not None or groups.full or groups.sliding):
        path, own = _path(SLIDING, groups.sliding), old.of(SLIDING)
        length = own.original_context or description.original_context
        described = dataclasses.replace(description, original_context=length)
        sliding = _changed(described, own, of_sliding, path)
    spec = dataclasses.replace(full, sliding_attention=sliding)
    original = of_full.get("original_context") or original_context(description)
    if _RESCALING.intersection(of_full) and original is not None:
        extended = round(original * spec.extension)
        named = None if spec.original_context == original or spec.extension == 1 else original
        return dataclasses.replace(description, rope=spec, context=extended, original_context=named)
    return dataclasses.replace(description, rope=spec)


def _path(name: str, own: Fields) -> str:
    return f"{PATH}.{name}" if own else PATH


# Fields that set how far an embedding is extended.
_RESCALING = frozenset({"scaling", "factor", "original_context"})


def _changed(description: Description, old: RopeSpec, fields: Fields, path: str) -> RopeSpec:
    """Replaces fields of the embedding of some layers.

    Args:
      description: The checkpoint's description.
      old: The embedding of these layers.
      fields: The new fields.
      path: Their group's name in messages.

    Raises:
      UsageError: See `extend`.
    """
    if not fields:
        return old
    idle = sorted(unread_fields(old.scaling).intersection(fields))
    if idle and "scaling" not in fields:
        raise UsageError(
            f"{path}.{idle[0]} = {fields[idle[0]]!r} has no effect on the checkpoint's scaling, "
            f"{old.scaling!r}; set {path}.scaling too"
        )
    rule = fields.get("resonance", old.resonance)
    if idle := sorted(unread_by_rule(rule).intersection(fields)):
        raise UsageError(
            f"{path}.{idle[0]} = {fields[idle[0]]!r} has no effect with resonance={rule!r}; set "
            f"{path}.resonance to a rule that reads it"
        )
    method = fields.get("far_positions", old.far_positions)
    if idle := sorted(unread_by_far(method).intersection(fields)):
        raise UsageError(
            f"{path}.{idle[0]} = {fields[idle[0]]!r} has no effect with far_positions={method!r}; "
            f"set {path}.far_positions to a method that reads it"
        )
    original = fields.get("original_context") or original_context(description)
    if _RESCALING.intersection(fields) and original is None:
        raise UsageError(
            f"{path}.original_context is not set, and the checkpoint does not say what context it "
            f"had before its scaling {old.scaling!r} by {old.extension:g}, only "
            f"{description.context} tokens now; set it to the tokens that the model was trained at"
        )
    merged = _inherited(old, fields, path)
    if original:
        merged["original_context"] = original
    if method in FAR_POSITIONS and "far_context" in FAR_POSITIONS[method].reads:
        merged["far_context"] = merged["far_context"] or original
    scaling = fields.get("scaling", old.scaling)
    if counts_in_original_context(old) and "original_context" in unread_fields(scaling):
        merged["temperature_context"] = old.original_context
    merged |= fields
    spec = _build(merged, path, head_dim=description.model.head_size)
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
    return spec


_OF_AN_EXTENSION = {"factor", "original_context", "mscale", "mscale_all_dim"}


def _inherited(old: RopeSpec, fields: Fields, path: str) -> dict[str, Any]:
    """Returns the embedding's fields with those reset that the config's changes invalidate."""
    inherited = {field.name: getattr(old, field.name) for field in dataclasses.fields(old)}
    current = inherited | {"factor": old.extension}
    changed = {name for name in fields if fields[name] != current.get(name)}
    defaults = {field.name: field.default for field in dataclasses.fields(old)}
    if "resonance" in changed:
        inherited |= {name: defaults[name] for name in RULE_FIELDS}
    if "far_positions" in changed:
        inherited |= {name: defaults[name] for name in FAR_FIELDS}
    if "scaling" in changed:
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
            f"{path}.{name} = {fields[name]!r}: the checkpoint's short_factor and long_factor are "
            f"made for {name}={current[name]!r}; set both lists too, or another {path}.scaling"
        )
    if old.attention_factor is not None and changed & (_OF_AN_EXTENSION | lists):
        inherited["attention_factor"] = None
        prescribed = frequencies(dataclasses.replace(old, attention_factor=None)).attention_factor
        if not math.isclose(prescribed, old.attention_factor, rel_tol=1e-6):
            _LOG.warning(
                "%s.attention_factor is not set: the checkpoint's %g goes with its factor, and "
                "%r gives its own",
                path,
                old.attention_factor,
                old.scaling,
            )
    return inherited
