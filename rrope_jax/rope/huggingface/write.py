"""Writes a `RopeSpec` as the RoPE keys of a Hugging Face config.json."""

import dataclasses
from collections.abc import Callable
from typing import Any

from rrope_jax.rope.factor_lists import as_factor_lists
from rrope_jax.rope.frequencies import frequencies
from rrope_jax.rope.huggingface.rope_types import KEY_OF_FIELD, LONGROPE, ROPE_TYPES
from rrope_jax.rope.scalings import stretched_theta
from rrope_jax.rope.spec import RopeSpec

# LLaMA's default of `max_position_embeddings`.
_DEFAULT_LENGTH = 2048


def to_hf(spec: RopeSpec, *, max_position_embeddings: int | None = None) -> dict[str, Any]:
    """Writes a spec as config.json keys that stock transformers, v4 and v5, computes exactly.

    Scalings that transformers supports keep its name. `ntk` becomes plain RoPE with a larger theta,
    and `ntk_by_parts` becomes `llama3`; neither changes the frequencies. Everything else (any
    resonance, `part_ntk`, an attention factor that the `rope_type` would ignore) becomes `longrope`
    with one factor per feature, which preserves the frequencies and the attention factor. With
    resonance, an extra key `resonance: true` tells `from_hf` that the wavelengths are integers.
    Some runtimes ignore `attention_factor`; whoever exports the weights must fold it into them.

    Args:
      spec: the embedding.
      max_position_embeddings: the length that the model is meant for, in tokens. The default is
        original_context * factor. A spec without these gets the key only if `longrope` needs it,
        with the value 2048, which transformers assumes for a missing key.

    Returns:
      JSON-ready keys to merge into a model's config.json: `head_dim`, `rope_theta`,
      `rope_scaling`, `rope_parameters` and, if they apply, `max_position_embeddings`,
      `original_max_position_embeddings`, `partial_rotary_factor` and `resonance`.

    Raises:
      ValueError: the scaling is `dynamic_ntk`, whose frequencies depend on the length, and the spec
        has resonance or an attention factor, or `max_position_embeddings` is not its original
        context.
    """
    maximum = max_position_embeddings or _extended_length(spec)
    if spec.scaling == "dynamic_ntk" and maximum != spec.original_context:
        raise ValueError(
            f"max_position_embeddings={maximum} must be original_context "
            f"({spec.original_context}) with scaling='dynamic_ntk', whose stretch starts there; "
            "leave it out"
        )
    native = _in_terms_of_transformers(spec, maximum or _DEFAULT_LENGTH)
    name, row = next((n, r) for n, r in ROPE_TYPES.items() if r.scaling == native.scaling)
    fields = sorted(row.reads - {"original_context"} if row.context_is_maximum else row.reads)
    parameters = {"rope_type": name} | {
        KEY_OF_FIELD.get(field, field): _json(field, value)
        for field in fields
        if (value := getattr(native, field)) is not None
    }
    top = {"rope_theta": float(native.theta)}
    if native.partial_rotary_factor != 1:
        top["partial_rotary_factor"] = float(native.partial_rotary_factor)
    keys: dict[str, Any] = {
        "head_dim": native.head_dim,
        **top,
        "rope_scaling": None if native.scaling == "none" else parameters,
        "rope_parameters": {**top, **parameters},
    }
    if row is LONGROPE:  # transformers 4 reads this length only at the top level
        keys["original_max_position_embeddings"] = native.original_context
        maximum = maximum or native.original_context
    if maximum is not None:
        keys["max_position_embeddings"] = maximum
    if native.resonance:
        keys["resonance"] = True
    return keys


def _extended_length(spec: RopeSpec) -> int | None:
    if spec.original_context is None or spec.scaling == "dynamic_ntk":
        return spec.original_context
    return round(spec.original_context * spec.extension)


def _in_terms_of_transformers(spec: RopeSpec, length: int) -> RopeSpec:
    """The spec itself, or an equivalent one that transformers computes exactly."""
    rows = [row for row in ROPE_TYPES.values() if row.scaling == spec.scaling]
    reads_attention_factor = any(row.attention_factor for row in rows)
    if spec.resonance or (frequencies(spec).attention_factor != 1 and not reads_attention_factor):
        if spec.scaling == "dynamic_ntk":
            raise ValueError(
                "scaling='dynamic_ntk' with resonance or an attention_factor has no Hugging Face "
                "form, because its frequencies follow the length; export scaling='ntk' with a "
                "fixed factor"
            )
        return as_factor_lists(spec, length)
    if spec.scaling in _REWRITES:
        return _REWRITES[spec.scaling](spec)
    return spec if rows else as_factor_lists(spec, length)


def _as_default(spec: RopeSpec) -> RopeSpec:
    plain = spec.with_method("none", resonance=False)
    return dataclasses.replace(plain, theta=stretched_theta(spec, spec.extension))


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
    "ntk_by_parts": _as_llama3,
    "longrope": _with_attention_factor,
}


def _json(field: str, value: Any) -> Any:
    """Converts all but lengths and switches to float: transformers 4 warns of integer factors."""
    if isinstance(value, tuple):
        return [float(entry) for entry in value]
    return value if field in ("original_context", "truncate") else float(value)
