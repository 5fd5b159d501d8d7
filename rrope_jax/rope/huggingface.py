"""Between `RopeSpec` and the RoPE keys of a Hugging Face config.json.

Both dialects are read and written: transformers v4 has `rope_theta` at the top level and the rest
in `rope_scaling`, v5 has all of it in `rope_parameters`. Keys mean what transformers 5.23 computes
from them; where 4.57 reads them differently, they are written so that both compute the same.
"""

import dataclasses
import logging
import re
from collections.abc import Callable, Mapping
from typing import Any

from rrope_jax.rope.fields import Unset, is_int
from rrope_jax.rope.frequencies import SCALINGS, frequencies, stretched_theta
from rrope_jax.rope.spec import RopeSpec

_log = logging.getLogger(__name__)

_DIALECTS = ("rope_scaling", "rope_parameters")
# Spec fields whose Hugging Face key has another name.
_KEYS = {
    "theta": "rope_theta",
    "scaling": "rope_type",
    "original_context": "original_max_position_embeddings",
}
# Keys that any rope_type may hold; those that it does not need are information.
_COMMON_KEYS = {
    "rope_type",
    "type",
    "rope_theta",
    "partial_rotary_factor",
    "original_max_position_embeddings",
    "resonance",
}
# A second base for some of the layers: Gemma 3 and ModernBERT before transformers v5.
_OTHER_BASES = ("rope_local_base_freq", "local_rope_theta")
# What a LLaMA config means where it leaves these keys out.
_DEFAULT_THETA = 10000.0
_DEFAULT_LENGTH = 2048
# The factor of a feature that never turns, since JSON has no infinity: its angle stays below 1e-20,
# for which any runtime's cosine is 1.
_NEVER_TURNS = 1e30


@dataclasses.dataclass(frozen=True)
class _RopeType:
    """One `rope_type` of transformers.

    Attributes:
      scaling: the `RopeSpec.scaling` that means the same.
      requires: keys that must be present.
      attention_factor: whether the key of this name is read; otherwise the factor is always 1.
      context_is_maximum: the ramp or stretch refers to `max_position_embeddings`, whatever
        `original_max_position_embeddings` says.
    """

    scaling: str
    requires: tuple[str, ...] = ()
    attention_factor: bool = False
    context_is_maximum: bool = False

    @property
    def reads(self) -> set[str]:
        """The spec fields that this type takes from its dict."""
        own = {"attention_factor"} if self.attention_factor else set()
        return own.union(SCALINGS[self.scaling].reads)


_LONGROPE = _RopeType("longrope", ("short_factor", "long_factor"), attention_factor=True)

_ROPE_TYPES = {
    "default": _RopeType("none"),
    "linear": _RopeType("linear", ("factor",)),
    "dynamic": _RopeType("dynamic_ntk", ("factor",), context_is_maximum=True),
    "yarn": _RopeType("yarn", ("factor",), attention_factor=True),
    "llama3": _RopeType("llama3", ("factor", "low_freq_factor", "high_freq_factor")),
    "longrope": _LONGROPE,
    "proportional": _RopeType("proportional"),
    "su": _LONGROPE,  # its name in the first Phi-3 configs
}


def from_hf(config: Mapping[str, Any]) -> RopeSpec:
    """Reads the RoPE keys of a model's config.json.

    Beside transformers' own keys, `resonance: true` is understood, at the top level or beside the
    scaling's keys. `head_dim` may be left to `hidden_size` and `num_attention_heads`, or be called
    `qk_rope_head_dim`. The original context is `original_max_position_embeddings`, at the top level
    before the scaling's own, else `max_position_embeddings`; for `dynamic` it is always the latter.
    Keys that the `rope_type` does not read are ignored, as in transformers, with a log warning.

    Args:
      config: the parsed config.json; its other keys are not looked at.

    Raises:
      ValueError: a key is missing, unknown or out of range, the two dialects contradict each other,
        or the parameters differ between layer types. The message names the key as in the config.
    """
    for key in _OTHER_BASES:
        if config.get(key) is not None:
            raise ValueError(
                f"{key}={config[key]!r} gives some layers another base and a RopeSpec is one "
                "embedding; remove it to read that of the other layers"
            )
    present = [dialect for dialect in _DIALECTS if config.get(dialect)]
    specs = [_read(config, dialect) for dialect in present or _DIALECTS[:1]]
    if specs[0] != specs[-1]:
        raise ValueError(
            f"rope_scaling={config['rope_scaling']!r} and rope_parameters="
            f"{config['rope_parameters']!r} describe different embeddings; remove the wrong one"
        )
    return specs[0]


def _read(config: Mapping[str, Any], dialect: str) -> RopeSpec:
    parameters = config.get(dialect) or {}
    name, row = _rope_type(parameters, dialect)
    _check_keys(parameters, dialect, name, row)
    fields = {
        field: parameters[field]
        for field in row.reads - {"original_context"}
        if parameters.get(field) is not None
    }
    if not (fields.get("mscale") and fields.get("mscale_all_dim")):  # one alone has no meaning
        fields.pop("mscale", None)
        fields.pop("mscale_all_dim", None)
    context_key, context = _context(config, parameters, name, row)
    if "original_context" in row.reads:
        fields["original_context"] = context
    if row is _LONGROPE and "factor" not in fields and "attention_factor" not in fields:
        fields["factor"] = _implied_factor(config, context_key, context)
    for field in ("theta", "partial_rotary_factor", "resonance"):
        key = _KEYS.get(field, field)
        holders = [holder for holder in (parameters, config) if holder.get(key) is not None]
        if holders:
            fields[field] = holders[0][key]
    try:
        defaults = {"scaling": row.scaling, "theta": _DEFAULT_THETA, "head_dim": _head_dim(config)}
        return RopeSpec(**defaults | fields)
    except ValueError as error:
        message = str(error)  # starts with the name of the field
        field = re.split(r"\W", message, maxsplit=1)[0]
        key = context_key if field == "original_context" else _KEYS.get(field, field)
        raise ValueError(key + message.removeprefix(field)) from error


def _rope_type(parameters: Any, dialect: str) -> tuple[str, _RopeType]:
    if not isinstance(parameters, Mapping):
        raise ValueError(
            f"{dialect}={parameters!r} must be a dict such as {{'rope_type': 'linear', 'factor': "
            "4.0}; leave it null for plain RoPE"
        )
    layer_types = [key for key, value in parameters.items() if isinstance(value, Mapping)]
    if layer_types:
        raise ValueError(
            f"{dialect} differs between layer types ({', '.join(layer_types)}) and a RopeSpec is "
            f"one embedding; read each with from_hf({{**config, {dialect!r}: "
            f"config[{dialect!r}][{layer_types[0]!r}]}})"
        )
    name = parameters.get("rope_type") or parameters.get("type")
    if name is None and parameters.keys() <= _COMMON_KEYS:
        name = "default"
    if not isinstance(name, str) or name not in _ROPE_TYPES:
        raise ValueError(f"rope_type={name!r} is unknown; choose one of {', '.join(_ROPE_TYPES)}")
    return name, _ROPE_TYPES[name]


def _check_keys(parameters: Mapping[str, Any], dialect: str, name: str, row: _RopeType) -> None:
    for key in row.requires:
        if parameters.get(key) is None:
            raise ValueError(
                f"{key} is missing from {dialect}={dict(parameters)!r}: rope_type={name!r} needs "
                f"it; add {key} to {dialect}"
            )
    ignored = sorted(parameters.keys() - _COMMON_KEYS - row.reads)
    if ignored:
        _log.warning("%s: rope_type=%r does not read %s", dialect, name, ", ".join(ignored))


def _context(
    config: Mapping[str, Any], parameters: Mapping[str, Any], name: str, row: _RopeType
) -> tuple[str, Any]:
    """The key that holds the original context, and its value; None where nothing needs it."""
    original, maximum = "original_max_position_embeddings", "max_position_embeddings"
    candidates = [(original, config), (original, parameters), (maximum, config)]
    if row.context_is_maximum:
        candidates.reverse()
    for key, holder in candidates:
        if holder.get(key) is not None:
            return key, holder[key]
    if "original_context" in row.reads:
        raise ValueError(
            f"{original} is missing and so is {maximum}: rope_type={name!r} needs the context "
            f"length before the extension; add {original} beside rope_type"
        )
    return original, None


def _implied_factor(config: Mapping[str, Any], context_key: str, context: Any) -> float:
    """The factor of a `longrope` dict without one, as transformers takes it."""
    maximum = config.get("max_position_embeddings")
    if not (is_int(maximum) and is_int(context) and maximum >= context > 0):
        raise ValueError(
            "factor is missing: without it rope_type='longrope' takes max_position_embeddings / "
            f"{context_key}, but these are {maximum!r} and {context!r}; add factor"
        )
    return float(maximum / context)


def _head_dim(config: Mapping[str, Any]) -> Any:
    for key in ("qk_rope_head_dim", "head_dim"):  # the first is the rotated part in DeepSeek's
        if config.get(key) is not None:
            return config[key]
    hidden_size, num_heads = config.get("hidden_size"), config.get("num_attention_heads")
    if hidden_size is None or num_heads is None:
        raise ValueError(
            "head_dim is missing, and so is hidden_size or num_attention_heads; add head_dim (in a "
            "multimodal config these keys are in text_config: pass that)"
        )
    if not (is_int(hidden_size) and is_int(num_heads) and num_heads > 0) or hidden_size % num_heads:
        raise ValueError(
            f"hidden_size={hidden_size!r} must be a multiple of num_attention_heads="
            f"{num_heads!r} where head_dim is not set; add head_dim"
        )
    return hidden_size // num_heads


def to_hf(spec: RopeSpec, *, max_position_embeddings: int | None = None) -> dict[str, Any]:
    """Writes a spec as config.json keys that stock transformers, v4 and v5, computes exactly.

    What transformers has a name for is written under that name; `ntk` becomes plain RoPE with a
    larger theta and `ntk_by_parts` becomes `llama3`, which are the same frequencies. Everything
    else (any resonance, `part_ntk`, an attention factor that the `rope_type` would ignore) becomes
    `longrope` with one factor per feature, lossless in frequency and attention factor, and
    `resonance: true` beside it tells `from_hf` that the wavelengths are whole. Some runtimes ignore
    `attention_factor`: folding it into the weights is up to whoever exports those.

    Args:
      spec: the embedding.
      max_position_embeddings: the length that the model is meant for. By default
        original_context * factor where the spec has them; a spec without them gets the key only
        where `longrope` needs it, as 2048, which is what transformers assumes without the key.

    Returns:
      JSON-ready keys, to be merged over those of a model's config.json: `head_dim`, `rope_theta`,
      `rope_scaling`, `rope_parameters` and, where they apply, `max_position_embeddings`,
      `original_max_position_embeddings`, `partial_rotary_factor` and `resonance`.

    Raises:
      ValueError: `dynamic_ntk` with resonance or an attention factor, whose frequencies depend on
        the length, or with a `max_position_embeddings` other than its original context.
    """
    maximum = max_position_embeddings or _extended_length(spec)
    if spec.scaling == "dynamic_ntk" and maximum != spec.original_context:
        raise ValueError(
            f"max_position_embeddings={maximum} must be original_context "
            f"({spec.original_context}) with scaling='dynamic_ntk', whose stretch starts there; "
            "leave it out"
        )
    native = _in_terms_of_transformers(spec, maximum or _DEFAULT_LENGTH)
    name, row = next((n, r) for n, r in _ROPE_TYPES.items() if r.scaling == native.scaling)
    written = row.reads - ({"original_context"} if row.context_is_maximum else set())
    values = {field: getattr(native, field) for field in sorted(written)}
    parameters = {"rope_type": name} | {
        _KEYS.get(field, field): _json(field, value)
        for field, value in values.items()
        if value is not None and not isinstance(value, Unset)
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
    if row is _LONGROPE:  # transformers 4 reads this length at the top level alone
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
    return round(spec.original_context * spec.factor)


def _in_terms_of_transformers(spec: RopeSpec, length: int) -> RopeSpec:
    """The spec itself, or an equal one whose scaling transformers has."""
    read = any(row.attention_factor for row in _ROPE_TYPES.values() if row.scaling == spec.scaling)
    if spec.resonance or (frequencies(spec).attention_factor != 1 and not read):
        return _as_factor_lists(spec, length)
    rewrite = _REWRITES.get(spec.scaling)
    return rewrite(spec, length) if rewrite else spec


def _as_default(spec: RopeSpec, length: int) -> RopeSpec:
    plain = spec.with_method("none", resonance=False)
    return dataclasses.replace(plain, theta=stretched_theta(spec, spec.factor))


def _as_llama3(spec: RopeSpec, length: int) -> RopeSpec:
    return dataclasses.replace(
        spec.with_method("llama3", resonance=False),
        low_freq_factor=spec.beta_slow,
        high_freq_factor=spec.beta_fast,
    )


def _with_attention_factor(spec: RopeSpec, length: int) -> RopeSpec:
    """Explicit, because transformers 4 derives it from another factor than transformers 5."""
    return dataclasses.replace(spec, attention_factor=frequencies(spec).attention_factor)


def _as_factor_lists(spec: RopeSpec, length: int) -> RopeSpec:
    """An equal `longrope` spec: whatever the frequencies are, relative to plain RoPE's."""
    if spec.scaling == "dynamic_ntk":
        raise ValueError(
            "scaling='dynamic_ntk' with resonance or an attention_factor has no Hugging Face form, "
            "because its frequencies follow the length; export scaling='ntk' with a fixed factor"
        )
    own_lists, rotates_all = spec.scaling == "longrope", SCALINGS[spec.scaling].rotates_all
    context = spec.context if own_lists else length
    plain = frequencies(RopeSpec(head_dim=spec.rotary_dim, theta=spec.theta)).inv_freq

    def factors(seq_len: int) -> tuple[float, ...]:
        wanted = frequencies(spec, seq_len).inv_freq
        return tuple(
            float(before / after) if after else _NEVER_TURNS
            for before, after in zip(plain, wanted, strict=True)
        )

    return RopeSpec(
        head_dim=spec.head_dim,
        theta=spec.theta,
        scaling="longrope",
        factor=spec.factor if own_lists else 1.0,
        original_context=context,
        resonance=spec.resonance,
        partial_rotary_factor=1.0 if rotates_all else spec.partial_rotary_factor,
        attention_factor=frequencies(spec).attention_factor,
        short_factor=factors(context),
        long_factor=factors(context + 1),
    )


_REWRITES: dict[str, Callable[[RopeSpec, int], RopeSpec]] = {
    "ntk": _as_default,
    "ntk_by_parts": _as_llama3,
    "part_ntk": _as_factor_lists,
    "longrope": _with_attention_factor,
}


def _json(field: str, value: Any) -> Any:
    """All but lengths and switches as floats: transformers 4 warns of an integer factor."""
    if isinstance(value, tuple):
        return [float(entry) for entry in value]
    return value if field in ("original_context", "truncate") else float(value)
