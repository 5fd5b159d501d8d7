"""Between `RopeSpec` and the RoPE keys of a Hugging Face config.json.

Both dialects are read and written: transformers v4 has `rope_theta` at the top level and the rest
in `rope_scaling`, v5 has all of it in `rope_parameters`. Keys mean what transformers 5.23 computes
from them; where 4.57 reads them differently, they are written so that both compute the same.
"""

import dataclasses
import logging
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

from rrope_jax.rope.factor_lists import as_factor_lists
from rrope_jax.rope.fields import is_int, is_number
from rrope_jax.rope.frequencies import frequencies
from rrope_jax.rope.huggingface.keys import OTHER_BASES, check_nested, in_terms_of_transformers
from rrope_jax.rope.huggingface.model_types import (
    LAYERED,
    LLAMA,
    SCALED,
    ModelType,
    meaning,
    obstacle,
)
from rrope_jax.rope.scalings import SCALINGS, stretched_theta
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
_COMMON_KEYS = frozenset(
    {
        "rope_type",
        "type",
        "rope_theta",
        "partial_rotary_factor",
        "original_max_position_embeddings",
        "resonance",
    }
)
# Keys without an effect on the positions of text: the axes of images, and notes.
_NOTES = frozenset(
    {"mrope_section", "mrope_interleaved", "interleaved", "finetuned", "max_position_embeddings"}
)
# The temperatures of Phi-3.5-MoE, up to the original context and past it.
_MSCALES = ("short_mscale", "long_mscale")
# What a LLaMA config means where it leaves the key out.
_DEFAULT_LENGTH = 2048
_LONGEST = 2**31 - 1


@dataclasses.dataclass(frozen=True)
class _RopeType:
    """One `rope_type` of transformers.

    Attributes:
      scaling: the `RopeSpec.scaling` that means the same.
      requires: keys that must be present.
      attention_factor: whether the key of this name is read; otherwise the factor is always 1.
      context_is_maximum: the ramp or stretch refers to `max_position_embeddings`, whatever
        `original_max_position_embeddings` says.
      factor_key: the key that holds the spec's factor.
    """

    scaling: str
    requires: tuple[str, ...] = ()
    attention_factor: bool = False
    context_is_maximum: bool = False
    factor_key: str = "factor"

    @property
    def reads(self) -> set[str]:
        """The spec fields that this type takes from its dict."""
        own = {"attention_factor"} if self.attention_factor else set()
        return own.union(SCALINGS[self.scaling].reads)


_LONGROPE = _RopeType("longrope", ("short_factor", "long_factor"), attention_factor=True)
_DYNAMIC = _RopeType("dynamic_ntk", ("factor",), context_is_maximum=True)
# HunYuan's `dynamic` with an alpha, which does not follow the length.
_ALPHA = _RopeType("ntk", ("alpha",), factor_key="alpha")

_ROPE_TYPES = {
    "default": _RopeType("none"),
    "linear": _RopeType("linear", ("factor",)),
    "dynamic": _DYNAMIC,
    "yarn": _RopeType("yarn", ("factor",), attention_factor=True),
    "llama3": _RopeType("llama3", ("factor", "low_freq_factor", "high_freq_factor")),
    "longrope": _LONGROPE,
    "proportional": _RopeType("proportional"),
    "su": _LONGROPE,  # its name in the first Phi-3 configs
}
_NESTED_KEYS = frozenset(
    {*_COMMON_KEYS, *_NOTES, *_MSCALES, "alpha"}.union(
        *(row.reads | set(row.requires) for row in _ROPE_TYPES.values()), {"attention_factor"}
    )
) - {"original_context"}


def from_hf(config: Mapping[str, Any]) -> RopeSpec:
    """Reads the RoPE keys of a model's config.json.

    Beside transformers' own keys, the names that models give them elsewhere (`rotary_pct`,
    `rotary_emb_base`, `rotary_dim`, `kv_channels`, `rope_ratio` and more, see `hf_keys`) and
    `resonance: true` are understood, at the top level or beside the scaling's keys. What is left
    out has the default of the `model_type` (see `model_types`), or LLaMA's without one. The
    original context is `original_max_position_embeddings`, at the top level before the scaling's
    own, else `max_position_embeddings`; for `dynamic` it is always the latter. Keys of another
    `rope_type` are ignored, as in transformers, with a log warning.

    A RopeSpec is the embedding of text. Which dimensions are pairs is no part of it: GPT-J, GLM,
    Cohere and DeepSeek pair (2i, 2i + 1), LLaMA (i, i + d/2).

    Args:
      config: the parsed config.json; its other keys are not looked at.

    Raises:
      ValueError: a key is missing, unknown or out of range, would change the embedding and is not
        read, or two contradict each other; the layers have several embeddings, or the type has
        one that is no RopeSpec. The message names the key as in the config.
    """
    name = config.get("model_type")
    if name is not None and not isinstance(name, str):
        raise ValueError(f"model_type={name!r} must be a string, such as 'llama'")
    named, names = in_terms_of_transformers(config)
    kind = meaning(name)
    if (reason := obstacle(config)) is not None:
        mend = "no RopeSpec is its embedding"
        if kind is not None:
            mend = f"read that of its rotated layers with {_advice(named, kind)}"
        raise ValueError(f"model_type={name!r} {reason}; {mend}")
    present = [dialect for dialect in _DIALECTS if config.get(dialect)]
    if name in SCALED and not present:
        raise ValueError(
            f"rope_parameters is missing and model_type={name!r} is extended without it; add it"
        )
    specs = [_read_layers(named, names, kind, dialect) for dialect in present or _DIALECTS[:1]]
    if specs[0] != specs[-1]:
        raise ValueError(
            f"rope_scaling={config['rope_scaling']!r} and rope_parameters="
            f"{config['rope_parameters']!r} describe different embeddings; remove the wrong one"
        )
    _check_layers(named, specs[0], kind)
    return specs[0]


def original_context(config: Mapping[str, Any]) -> int | None:
    """The context, in tokens, that a config.json names as the one before any extension.

    That is `original_max_position_embeddings`, or `max_position_embeddings` where a greater
    `max_sequence_length` says that the former is not the extended one (Vicuna).

    Returns:
      A positive integer; None where the config names none.
    """
    key = "original_max_position_embeddings"
    nested = (config.get(dialect) for dialect in _DIALECTS)
    for holder in (config, *(each for each in nested if isinstance(each, Mapping))):
        value: Any = holder.get(key)
        if is_int(value) and value > 0:
            return int(value)
    maximum: Any = config.get("max_position_embeddings")
    extended: Any = config.get("max_sequence_length")
    if is_int(maximum) and is_int(extended) and 0 < maximum < extended:
        return int(maximum)
    return None


def _advice(named: Mapping[str, Any], kind: ModelType, **edits: Any) -> str:
    """A call that reads the embedding of some of the layers, to be copied."""
    nested = [named[dialect] for dialect in _DIALECTS if isinstance(named.get(dialect), Mapping)]
    defaults = {
        "rope_theta": kind.theta,
        "partial_rotary_factor": kind.share,
        "head_dim": kind.head_dim,
        "qk_rope_head_dim": kind.qk_rope_head_dim,
    }
    edits |= {key: None for key in _PER_LAYER if named.get(key) is not None}
    edits |= {
        key: value
        for key, value in defaults.items()
        if value not in (None, 1.0)
        and named.get(key) is None
        and not any(holder.get(key) is not None for holder in nested)
    }
    if named.get("model_type") is not None:
        edits = {"model_type": None} | edits
    parts = ", ".join(f"{key!r}: {_text(value)}" for key, value in edits.items())
    return f"from_hf({{**config, {parts}}})"


class _Expression(str):
    """Python code, where other values are written by `repr`."""


def _text(value: Any) -> str:
    return str(value) if isinstance(value, _Expression) else repr(value)


_PER_LAYER = ("no_rope_layers", "no_rope_layer_interval", "layer_rope_theta", *OTHER_BASES)


def _check_layers(named: Mapping[str, Any], spec: RopeSpec, kind: ModelType | None) -> None:
    """Raises ValueError where some layers have another base, or no rotation."""
    advice = f"read that of the others with {_advice(named, kind or LLAMA)}"
    for key in OTHER_BASES:
        if (base := named.get(key)) is not None and base != named.get("rope_theta"):
            raise ValueError(
                f"{key}={base!r} gives some layers another base and a RopeSpec is one embedding; "
                f"remove it to read that of the other layers: {_advice(named, kind or LLAMA)}"
            )
    bases = named.get("layer_rope_theta")
    if bases and (not isinstance(bases, list) or any(base != spec.theta for base in bases)):
        raise ValueError(f"layer_rope_theta={bases!r} gives some layers another base; {advice}")
    rotated, interval = named.get("no_rope_layers"), named.get("no_rope_layer_interval")
    if rotated and not (isinstance(rotated, list) and all(rotated)):
        raise ValueError(
            f"no_rope_layers={rotated!r} leaves layers without rotation (those with a 0); {advice}"
        )
    if interval and not rotated:
        raise ValueError(
            f"no_rope_layer_interval={interval!r} leaves layers without rotation; {advice}"
        )


def _read_layers(
    named: Mapping[str, Any], names: Mapping[str, str], kind: ModelType | None, dialect: str
) -> RopeSpec:
    """The one embedding of all layer types."""
    parameters: Any = named.get(dialect)
    layers: dict[str, Any] = {}
    if isinstance(parameters, Mapping):
        layers = {key: each for key, each in parameters.items() if isinstance(each, Mapping)}
    if not layers:
        if (model_type := named.get("model_type")) in LAYERED:
            raise ValueError(
                f"model_type={model_type!r} has several embeddings and a RopeSpec is one; read the "
                f"one for the whole context with {_advice(named, kind or LLAMA)}"
            )
        return _read(named, names, kind, dialect)
    idle = [key for key in parameters if parameters[key] is None and key not in _NESTED_KEYS]
    specs = [_read({**named, dialect: each}, names, kind, dialect) for each in layers.values()]
    if idle or len(specs) == 1 or any(spec != specs[0] for spec in specs):
        first = next(iter(layers))
        one = _Expression(f"config[{dialect!r}][{first!r}]")
        others = {key: None for key in _DIALECTS if key != dialect and named.get(key)}
        given = {**named, dialect: layers[first]}
        raise ValueError(
            f"{dialect} differs between layer types ({', '.join([*layers, *idle])}) and a RopeSpec "
            f"is one embedding; read each with "
            f"{_advice(given, kind or LLAMA, **{dialect: one}, **others)}"
        )
    return specs[0]


def _read(
    named: Mapping[str, Any], names: Mapping[str, str], kind: ModelType | None, dialect: str
) -> RopeSpec:
    parameters = named.get(dialect) or {}
    name, row = _rope_type(parameters, dialect, named.get("model_type"))
    _check_keys(parameters, dialect, name, row)
    fields = {
        field: parameters[field]
        for field in row.reads - {"original_context"}
        if parameters.get(field) is not None
    }
    if not (fields.get("mscale") and fields.get("mscale_all_dim")):  # one alone has no meaning
        fields.pop("mscale", None)
        fields.pop("mscale_all_dim", None)
    context_key, context = _context(named, parameters, name, row)
    if "original_context" in row.reads:
        fields["original_context"] = context
    if row is _ALPHA:
        fields["factor"] = parameters["alpha"]
    elif "factor" not in fields and (
        "factor" in row.requires or (row is _LONGROPE and "attention_factor" not in fields)
    ):
        fields["factor"] = _implied_factor(named, name, context_key, context)
    if row is _LONGROPE:
        fields |= _phi_temperature(parameters, fields)
    for field in ("theta", "partial_rotary_factor", "resonance"):
        key = _KEYS.get(field, field)
        holders = [holder for holder in (parameters, named) if holder.get(key) is not None]
        if holders:
            fields[field] = holders[0][key]
    fields["theta"] = _theta(fields.get("theta"), named, kind)
    fields |= _dimensions(named, kind, fields.get("partial_rotary_factor"))
    try:
        return RopeSpec(scaling=row.scaling, **fields)
    except ValueError as error:
        message = str(error)  # starts with the name of the field
        field = re.split(r"\W", message, maxsplit=1)[0]
        key = {"original_context": context_key, "factor": row.factor_key}.get(
            field, _KEYS.get(field, field)
        )
        raise ValueError(names.get(key, key) + message.removeprefix(field)) from error


def _rope_type(parameters: Any, dialect: str, model_type: str | None) -> tuple[str, _RopeType]:
    if not isinstance(parameters, Mapping):
        raise ValueError(
            f"{dialect}={parameters!r} must be a dict such as {{'rope_type': 'linear', 'factor': "
            "4.0}; leave it null for plain RoPE"
        )
    check_nested(parameters, dialect, _NESTED_KEYS | _neutral(parameters))
    name = parameters.get("rope_type") or parameters.get("type")
    if name is None and parameters.keys() <= _COMMON_KEYS | _NOTES:
        name = "default"
    if name == "mrope" and "mrope_section" in parameters:
        name = "default"  # Qwen2-VL's axes, which are one for text
    if not isinstance(name, str) or name not in _ROPE_TYPES:
        raise ValueError(f"rope_type={name!r} is unknown; choose one of {', '.join(_ROPE_TYPES)}")
    if not parameters.get("alpha"):
        return name, _ROPE_TYPES[name]
    alpha, factor = parameters["alpha"], parameters.get("factor")
    ours = model_type is None or "hunyuan" in model_type or meaning(model_type) is None
    if name != "dynamic" or factor not in (None, 1) or not ours:
        raise ValueError(
            f"alpha={alpha!r} in {dialect} is read only where HunYuan has it, with "
            f"rope_type='dynamic' and factor=1, and here are model_type={model_type!r}, "
            f"rope_type={name!r} and factor={factor!r}; remove alpha, or the factor"
        )
    return name, _ALPHA


def _check_keys(parameters: Mapping[str, Any], dialect: str, name: str, row: _RopeType) -> None:
    for key in row.requires:
        if key not in parameters or (parameters[key] is None and name != "yarn"):
            raise ValueError(
                f"{key} is missing from {dialect}={dict(parameters)!r}: rope_type={name!r} needs "
                f"it; add {key} to {dialect}"
            )
    read = row.reads | set(row.requires) | (set(_MSCALES) if row is _LONGROPE else set())
    ignored = sorted(parameters.keys() - _COMMON_KEYS - read - {row.factor_key})
    if ignored:
        _log.warning("%s: rope_type=%r does not read %s", dialect, name, ", ".join(ignored))


def _neutral(parameters: Mapping[str, Any]) -> set[str]:
    """Factors of YaRN's first code whose value is the one that they have in transformers."""
    return {key for key in ("attn_factor", "extrapolation_factor") if parameters.get(key) == 1}


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


def _implied_factor(config: Mapping[str, Any], name: str, context_key: str, context: Any) -> float:
    """The factor of a `longrope` dict without one, or a `yarn` dict with null for it."""
    maximum: Any = config.get("max_position_embeddings")
    if not (is_int(maximum) and is_int(context) and _LONGEST >= maximum >= context > 0):
        raise ValueError(
            f"factor is missing: without it rope_type={name!r} takes max_position_embeddings / "
            f"{context_key}, but these are {maximum!r} and {context!r}; add factor"
        )
    return float(maximum / context)


def _phi_temperature(parameters: Mapping[str, Any], fields: Mapping[str, Any]) -> dict[str, Any]:
    """The attention factor that `short_mscale` and `long_mscale` are, if they are one."""
    values = {key: parameters[key] for key in _MSCALES if parameters.get(key) is not None}
    if not values:
        return {}
    given = fields.get("attention_factor")
    factor = next(iter(values.values()))
    if len(values) < 2 or any(value != factor for value in [*values.values(), given or factor]):
        raise ValueError(
            f"short_mscale={parameters.get('short_mscale')!r}, "
            f"long_mscale={parameters.get('long_mscale')!r} and attention_factor={given!r} are "
            "several temperatures and a RopeSpec has one for all lengths; set the first two to the "
            "one of the lengths that you need"
        )
    return {"attention_factor": factor}


def _theta(value: Any, named: Mapping[str, Any], kind: ModelType | None) -> Any:
    """The base, of which ChatGLM gives a multiple of the default."""
    if value is None and kind is None and named.get("rope_ratio") is None:
        raise ValueError(
            f"rope_theta is missing, and what model_type={named['model_type']!r} takes without it "
            "is not known; add rope_theta (in a multimodal config these keys are in text_config: "
            "pass that)"
        )
    theta = (kind or LLAMA).theta if value is None else value
    ratio = named.get("rope_ratio")
    if ratio is None:
        return theta
    if not (is_number(ratio) and ratio > 0 and is_number(theta)):
        raise ValueError(f"rope_ratio={ratio!r} must be a finite number > 0; 1 is ChatGLM's own")
    return theta * ratio


def _dimensions(named: Mapping[str, Any], kind: ModelType | None, share: Any) -> dict[str, Any]:
    """The head and how much of it is rotated: `head_dim` and `partial_rotary_factor`."""
    kind = kind or LLAMA
    head_dim = _head_dim(named, kind)
    if not is_int(head_dim) or not 0 < head_dim <= _LONGEST:
        return {"head_dim": head_dim}  # RopeSpec says what is wrong with it
    if (rotated := named.get("qk_rope_head_dim", kind.qk_rope_head_dim)) is not None:
        # DeepSeek's head has a part that is rotated as a whole, and one that is not
        other: Any = named.get("qk_nope_head_dim")
        whole: Any = named.get("head_dim")
        wholes = [rotated, whole, rotated + other if is_int(other) else None]
        shares = [rotated / each for each in wholes if is_int(each) and each > 0]
        if share is not None and is_number(share) and share not in shares:
            raise ValueError(
                f"partial_rotary_factor={share!r} and qk_rope_head_dim={rotated!r} contradict each "
                "other; remove the former"
            )
        return {"head_dim": head_dim, "partial_rotary_factor": 1.0}
    width = named.get("rotary_dim", kind.rotary_dim)
    if width is None:
        if kind.rotary_dim is not None:
            raise ValueError(
                f"rotary_dim=None: model_type={named.get('model_type')!r} then rotates more than a "
                "head; set rotary_dim"
            )
        return {
            "head_dim": head_dim,
            "partial_rotary_factor": kind.share if share is None else share,
        }
    if not (is_int(width) and is_int(head_dim) and 0 < width <= head_dim):
        raise ValueError(
            f"rotary_dim={width!r} must be an integer from 2 to head_dim={head_dim!r}: it is the "
            "part of a head that is rotated"
        )
    if share is not None and (not is_number(share) or int(head_dim * share) != width):
        raise ValueError(
            f"partial_rotary_factor={share!r} of head_dim={head_dim!r} is not "
            f"rotary_dim={width!r}; remove the wrong one"
        )
    ratio = width / head_dim
    if int(head_dim * ratio) < width:  # rounded down
        ratio = math.nextafter(ratio, 2)
    return {"head_dim": head_dim, "partial_rotary_factor": ratio}


def _head_dim(config: Mapping[str, Any], kind: ModelType) -> Any:
    rotated = config.get("qk_rope_head_dim", kind.qk_rope_head_dim)
    if rotated is not None:  # the rotated part in DeepSeek's
        return rotated
    if config.get("head_dim") is not None:
        return config["head_dim"]
    if kind.head_dim is not None and "head_dim" not in config:
        return kind.head_dim
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
        if value is not None
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
    return round(spec.original_context * spec.extension)


def _in_terms_of_transformers(spec: RopeSpec, length: int) -> RopeSpec:
    """The spec itself, or an equal one whose scaling transformers has."""
    read = any(row.attention_factor for row in _ROPE_TYPES.values() if row.scaling == spec.scaling)
    if spec.resonance or (frequencies(spec).attention_factor != 1 and not read):
        if spec.scaling == "dynamic_ntk":
            raise ValueError(
                "scaling='dynamic_ntk' with resonance or an attention_factor has no Hugging Face "
                "form, because its frequencies follow the length; export scaling='ntk' with a "
                "fixed factor"
            )
        return as_factor_lists(spec, length)
    rewrite = _REWRITES.get(spec.scaling)
    return rewrite(spec, length) if rewrite else spec


def _as_default(spec: RopeSpec, length: int) -> RopeSpec:
    plain = spec.with_method("none", resonance=False)
    return dataclasses.replace(plain, theta=stretched_theta(spec, spec.extension))


def _as_llama3(spec: RopeSpec, length: int) -> RopeSpec:
    return dataclasses.replace(
        spec.with_method("llama3", resonance=False),
        low_freq_factor=spec.beta_slow,
        high_freq_factor=spec.beta_fast,
    )


def _with_attention_factor(spec: RopeSpec, length: int) -> RopeSpec:
    """Explicit, because transformers 4 derives it from another factor than transformers 5."""
    return dataclasses.replace(spec, attention_factor=frequencies(spec).attention_factor)


_REWRITES: dict[str, Callable[[RopeSpec, int], RopeSpec]] = {
    "ntk": _as_default,
    "ntk_by_parts": _as_llama3,
    "part_ntk": as_factor_lists,
    "longrope": _with_attention_factor,
}


def _json(field: str, value: Any) -> Any:
    """All but lengths and switches as floats: transformers 4 warns of an integer factor."""
    if isinstance(value, tuple):
        return [float(entry) for entry in value]
    return value if field in ("original_context", "truncate") else float(value)
