"""Writes a `RopeSpec` as the RoPE keys of a Hugging Face config.json."""

import dataclasses
import logging
from collections.abc import Callable, Mapping
from typing import Any

from rrope_jax.rope.factor_lists import as_factor_lists, counting_in_original_context
from rrope_jax.rope.far_positions import why_only_here
from rrope_jax.rope.frequencies import frequencies
from rrope_jax.rope.huggingface.layers import FULL, SLIDING
from rrope_jax.rope.huggingface.model_types import LLAMA, ModelType, SlidingLayers, model_type_of
from rrope_jax.rope.huggingface.rope_types import (
    BETA,
    KEY_OF_FIELD,
    LONGROPE,
    MAXIMUM,
    ORIGINAL,
    ROPE_TYPES,
)
from rrope_jax.rope.resonance import rule_of_list
from rrope_jax.rope.scalings import stretched_theta
from rrope_jax.rope.spec import RopeSpec
from rrope_jax.rope.temperature import why_not_in_runtimes

_LOG = logging.getLogger(__name__)
# LLaMA's default of `max_position_embeddings`.
_DEFAULT_LENGTH = 2048


def to_hf(
    spec: RopeSpec, *, model_type: str | None = None, max_position_embeddings: int | None = None
) -> dict[str, Any]:
    """Writes a spec as config.json keys that stock transformers, v4 and v5, computes exactly.

    Scalings that transformers supports keep its name. `ntk` and `abf` become plain RoPE with a
    larger theta, and `ntk_by_parts` becomes `llama3`, none of which changes the frequencies.
    Everything else (any resonance, `part_ntk`, `cope`, an attention factor that the `rope_type`
    would ignore; for Phi-3 all scalings) becomes `longrope` with one factor per feature, which
    preserves the frequencies and the attention factor. With resonance, an extra key
    `resonance: true` tells `from_hf` that the wavelengths are integers, and
    `resonance: "rational"` that they are fractions of at most `resonance_period` tokens. Some
    runtimes ignore `attention_factor`; whoever exports the weights must fold it into them.

    Types with two embeddings (Gemma 3, OLMo 3) get `rope_parameters` by layer type, and the keys of
    transformers 4 beside them. Those cannot scale layers with a sliding window; if the spec does,
    a log warning says that only transformers 5 computes it.

    Args:
      spec: the embedding.
      model_type: the type of the model that the keys are for; None for LLaMA.
      max_position_embeddings: the length that the model is meant for, in tokens. The default is
        original_context * factor. A spec without these gets the key only if `longrope` needs it,
        with the value 2048, which transformers assumes for a missing key.

    Returns:
      JSON-ready keys to merge into a model's config.json: `head_dim`, `rope_theta`,
      `rope_scaling`, `rope_parameters` and, if they apply, `max_position_embeddings`,
      `original_max_position_embeddings`, `partial_rotary_factor`, `rope_local_base_freq`,
      `resonance`, `resonance_limit` and `resonance_period`.

    Raises:
      ValueError: the type has one embedding for all layers or no position temperature, and the spec
        has two embeddings or such a temperature; or the scaling is `dynamic_ntk`, whose frequencies
        depend on the length, and the spec has resonance or an attention factor, or
        `max_position_embeddings` is not its original context; or it is `dynamic_yarn`; or far pairs
        have other positions.
    """
    row = model_type_of(model_type) or LLAMA
    if (reason := why_not_in_hf(spec, model_type=model_type)) is not None:
        raise ValueError(reason)
    maximum = max_position_embeddings or _extended_length(spec)
    for each in (spec.of(FULL), spec.of(SLIDING)):
        if each.scaling == "dynamic_ntk" and maximum != each.original_context:
            raise ValueError(
                f"max_position_embeddings={maximum} must be original_context "
                f"({each.original_context}) with scaling='dynamic_ntk', whose stretch starts "
                "there; leave it out"
            )
    native = {
        name: _in_terms_of_transformers(spec.of(name), maximum or _DEFAULT_LENGTH, row)
        for name in (FULL, SLIDING)
    }
    full = native[FULL]
    keys: dict[str, Any] = {"head_dim": full.head_dim}
    if row.sliding is None:
        top, parameters = _common(full), _parameters(full)
        if row.position_temperature:  # Ministral 3 computes with these two, whatever the rope_type
            parameters.setdefault(BETA, 0.0)
            parameters.setdefault(ORIGINAL, maximum or _DEFAULT_LENGTH)
        scaling = None if full.scaling == "none" else parameters
        keys |= {**top, "rope_scaling": scaling, "rope_parameters": {**top, **parameters}}
    else:
        keys |= _by_layer_type(native, row.sliding)
    if row.only_longrope:
        keys |= _of_phi3(full, maximum)
    elif full.scaling == LONGROPE.scaling:  # transformers 4 reads this length only at the top level
        keys[ORIGINAL] = full.original_context
    if LONGROPE.scaling in {each.scaling for each in native.values()}:
        maximum = maximum or full.original_context or native[SLIDING].original_context
    if maximum is not None:
        keys[MAXIMUM] = maximum
    if (rule := rule_of_list(full)) == rule_of_list(native[SLIDING]):
        keys |= rule
    return keys


def why_not_in_hf(spec: RopeSpec, *, model_type: str | None = None) -> str | None:
    """Says what about an embedding the keys of a type cannot express; None if they can.

    Args:
      spec: the embedding.
      model_type: the type; None for LLaMA.
    """
    row, name = model_type_of(model_type) or LLAMA, model_type or "llama"
    for each in (spec.of(FULL), spec.of(SLIDING)):
        if (reason := why_only_here(each)) is not None:
            return reason
    if spec.sliding_attention is not None and row.sliding is None:
        return (
            f"model_type={name!r} has one embedding for all layers and the spec has another one "
            "for those with a sliding window; write the model as gemma3_text or olmo3, or give all "
            "layers the same embedding"
        )
    for each in (spec.of(FULL), spec.of(SLIDING)):
        if (reason := why_not_in_runtimes(each)) is not None:
            return reason
    betas = {each.llama_4_scaling_beta for each in (spec.of(FULL), spec.of(SLIDING))}
    if betas != {0} and not row.position_temperature:
        return (
            f"{BETA}={max(betas)}: model_type={name!r} has no temperature that grows with the "
            "position; write the model as ministral3, or set it to 0"
        )
    return None


def _common(native: RopeSpec) -> dict[str, Any]:
    """The keys of any `rope_type`, which transformers 4 has at the top level."""
    keys = {"rope_theta": float(native.theta)}
    if native.partial_rotary_factor != 1:
        keys["partial_rotary_factor"] = float(native.partial_rotary_factor)
    return keys


def _parameters(native: RopeSpec) -> dict[str, Any]:
    """The `rope_type` and its keys."""
    name, row = next((n, r) for n, r in ROPE_TYPES.items() if r.scaling == native.scaling)
    fields = sorted(row.reads - {"original_context"} if row.context_is_maximum else row.reads)
    if native.llama_4_scaling_beta:
        fields.append(BETA)
    return {"rope_type": name} | {
        KEY_OF_FIELD.get(field, field): _json(field, value)
        for field in fields
        if (value := getattr(native, field)) is not None
    }


def _by_layer_type(native: Mapping[str, RopeSpec], sliding: SlidingLayers) -> dict[str, Any]:
    """The keys of a type with two embeddings."""
    full, other = native[FULL], native[SLIDING]
    nested = {}
    for name, each in native.items():
        nested[name] = {**_common(each), **_parameters(each)}
        if full.partial_rotary_factor != 1:  # else the top level's would apply
            nested[name]["partial_rotary_factor"] = float(each.partial_rotary_factor)
        if rule_of_list(full) != rule_of_list(other):
            nested[name] |= rule_of_list(each)
    if sliding.scaled:  # its `rope_scaling` would change both embeddings in transformers 5, too
        return {"rope_parameters": nested}
    common = _common(full)
    scaling = {key: value for key, value in nested[FULL].items() if key not in common}
    keys = {**common, "rope_scaling": None if full.scaling == "none" else scaling}
    if sliding.key is not None:
        keys[sliding.key] = float(other.theta)
    base = full.theta if sliding.key is None else other.theta
    share = full.partial_rotary_factor
    if other != RopeSpec(head_dim=full.head_dim, theta=base, partial_rotary_factor=share):
        _LOG.warning(
            "layers with a sliding window have theta=%g and scaling=%r, for which transformers 4 "
            "has no keys: only transformers 5 computes it",
            other.theta,
            other.scaling,
        )
    return keys | {"rope_parameters": nested}


def _of_phi3(native: RopeSpec, maximum: int | None) -> dict[str, Any]:
    """What Phi-3's config class wants: its own context, and in version 4 a dict of three keys."""
    original = native.original_context
    if original is None:
        return {}
    keys: dict[str, Any] = {ORIGINAL: original}
    factor = max(1.0, (maximum or original) / original)
    implied = dataclasses.replace(native, factor=factor, attention_factor=None)
    if frequencies(implied).attention_factor == frequencies(native).attention_factor:
        parameters = _parameters(implied)
        lists = {key: parameters[key] for key in ("short_factor", "long_factor")}
        keys["rope_scaling"] = {"type": LONGROPE.scaling, **lists}
        keys["rope_parameters"] = {**_common(native), **parameters}
    return keys


def _extended_length(spec: RopeSpec) -> int | None:
    if spec.original_context is None or spec.scaling == "dynamic_ntk":
        return spec.original_context
    return round(spec.original_context * spec.extension)


def _in_terms_of_transformers(spec: RopeSpec, length: int, row: ModelType) -> RopeSpec:
    """The spec itself, or an equivalent one that transformers computes exactly."""
    spec = counting_in_original_context(spec)
    rows = [row for row in ROPE_TYPES.values() if row.scaling == spec.scaling]
    reads_attention_factor = any(row.attention_factor for row in rows)
    needs_attention_factor = frequencies(spec).attention_factor != 1 and not reads_attention_factor
    if spec.resonance or needs_attention_factor:
        if spec.scaling == "dynamic_ntk":
            raise ValueError(
                "scaling='dynamic_ntk' with resonance or an attention_factor has no Hugging Face "
                "form, because its frequencies follow the length; export scaling='ntk' with a "
                "fixed factor"
            )
        return as_factor_lists(spec, length)
    if row.sliding is not None and not spec.truncate:
        # transformers reads `truncate` beside the layer types, other runtimes inside
        return as_factor_lists(spec, length)
    native = _REWRITES[spec.scaling](spec) if spec.scaling in _REWRITES else spec
    writable = ("none", LONGROPE.scaling) if row.only_longrope else _WRITABLE
    return native if native.scaling in writable else as_factor_lists(native, length)


def _as_default(spec: RopeSpec) -> RopeSpec:
    plain = spec.with_method("none", resonance=False)
    return dataclasses.replace(plain, theta=stretched_theta(spec, spec.extension))


def _of_adjusted_base(spec: RopeSpec) -> RopeSpec:
    plain = spec.with_method("none", resonance=False)
    return dataclasses.replace(plain, theta=spec.abf_theta or spec.theta)


def _as_llama3(spec: RopeSpec) -> RopeSpec:
    return dataclasses.replace(
        spec.with_method("llama3", resonance=False),
        low_freq_factor=spec.beta_slow,
        high_freq_factor=spec.beta_fast,
    )


def _with_attention_factor(spec: RopeSpec) -> RopeSpec:
    """Sets it explicitly, since transformers 4 and 5 derive it from different factors."""
    return dataclasses.replace(spec, attention_factor=frequencies(spec).attention_factor)


# Scalings that transformers has under another name, or that its versions read differently.
_REWRITES: dict[str, Callable[[RopeSpec], RopeSpec]] = {
    "ntk": _as_default,
    "abf": _of_adjusted_base,
    "ntk_by_parts": _as_llama3,
    "longrope": _with_attention_factor,
}
_WRITABLE = frozenset(row.scaling for row in ROPE_TYPES.values())


def _json(field: str, value: Any) -> Any:
    """Converts all but lengths and switches to float: transformers 4 warns of integer factors."""
    if isinstance(value, tuple):
        return [float(entry) for entry in value]
    return value if field in ("original_context", "truncate") else float(value)
