"""Reads a `RopeSpec` from the RoPE keys of a Hugging Face config.json."""

import logging
import re
from collections.abc import Mapping
from typing import Any

from rrope_jax.rope.fields import INT32_MAX, is_int, is_number
from rrope_jax.rope.huggingface.dimensions import read_dimensions
from rrope_jax.rope.huggingface.keys import HfConfig, check_nested, in_terms_of_transformers
from rrope_jax.rope.huggingface.layers import Expression, advice, check_layers
from rrope_jax.rope.huggingface.model_types import LAYERED, SCALED, obstacle
from rrope_jax.rope.huggingface.rope_types import (
    ALPHA,
    COMMON_KEYS,
    DIALECTS,
    KEY_OF_FIELD,
    LONGROPE,
    MSCALES,
    NESTED_KEYS,
    REMARKS,
    ROPE_TYPES,
    RopeType,
)
from rrope_jax.rope.spec import RopeSpec

_LOG = logging.getLogger(__name__)
_ORIGINAL, _MAXIMUM = "original_max_position_embeddings", "max_position_embeddings"


def from_hf(config: Mapping[str, Any]) -> RopeSpec:
    """Reads the RoPE keys of a model's config.json.

    Besides transformers' own keys, it accepts the names that other models use (`rotary_pct`,
    `rotary_emb_base`, `rotary_dim`, `kv_channels`, `rope_ratio` and more, see `keys`), and
    `resonance: true` at the top level or next to the scaling's keys. A missing key takes the
    default of the `model_type` (see `model_types`), or LLaMA's if there is no type. The original
    context is `original_max_position_embeddings`, first from the top level, then from the scaling's
    keys, and otherwise `max_position_embeddings`; for `dynamic` it is always the latter. Keys of
    another `rope_type` are ignored with a log warning, as in transformers.

    A RopeSpec describes the embedding of text. It does not say which dimensions form pairs: GPT-J,
    GLM, Cohere and DeepSeek pair (2i, 2i + 1), while LLaMA pairs (i, i + d/2).

    Args:
      config: the parsed config.json; keys unrelated to the embedding are ignored.

    Raises:
      ValueError: a key is missing, unsupported or out of range, two keys contradict each other, the
        layers have different embeddings, or a RopeSpec cannot describe the type's embedding. The
        message names the key as in the config.
    """
    model_type = config.get("model_type")
    if model_type is not None and not isinstance(model_type, str):
        raise ValueError(f"model_type={model_type!r} must be a string, such as 'llama'")
    hf = in_terms_of_transformers(config)
    if (reason := obstacle(config)) is not None:
        mend = "no RopeSpec is its embedding"
        if hf.model_type is not None:
            mend = f"read that of its rotated layers with {advice(hf)}"
        raise ValueError(f"model_type={model_type!r} {reason}; {mend}")
    dialects = [dialect for dialect in DIALECTS if config.get(dialect)]
    if model_type in SCALED and not dialects:
        raise ValueError(
            f"rope_parameters is missing and model_type={model_type!r} is extended without it; "
            "add it"
        )
    specs = [_read_layers(hf, dialect) for dialect in dialects or DIALECTS[:1]]
    if specs[0] != specs[-1]:
        raise ValueError(
            f"rope_scaling={config['rope_scaling']!r} and rope_parameters="
            f"{config['rope_parameters']!r} describe different embeddings; remove the wrong one"
        )
    check_layers(hf, specs[0])
    return specs[0]


def original_context(config: Mapping[str, Any]) -> int | None:
    """The context before any extension, in tokens, as stated in a config.json.

    This is `original_max_position_embeddings`, or `max_position_embeddings` if a larger
    `max_sequence_length` holds the extended length (Vicuna).

    Returns:
      A positive integer; None if the config does not state it.
    """
    nested = (config.get(dialect) for dialect in DIALECTS)
    for holder in (config, *(each for each in nested if isinstance(each, Mapping))):
        value: Any = holder.get(_ORIGINAL)
        if is_int(value) and value > 0:
            return int(value)
    maximum: Any = config.get(_MAXIMUM)
    extended: Any = config.get("max_sequence_length")
    if is_int(maximum) and is_int(extended) and 0 < maximum < extended:
        return int(maximum)
    return None


def _read_layers(hf: HfConfig, dialect: str) -> RopeSpec:
    """The embedding shared by all layer types."""
    parameters: Any = hf.keys.get(dialect)
    layers: dict[str, Any] = {}
    if isinstance(parameters, Mapping):
        layers = {key: each for key, each in parameters.items() if isinstance(each, Mapping)}
    if not layers:
        if (model_type := hf.keys.get("model_type")) in LAYERED:
            raise ValueError(
                f"model_type={model_type!r} has several embeddings and a RopeSpec is one; read the "
                f"one for the whole context with {advice(hf)}"
            )
        return _read(hf, dialect)
    unrotated = [key for key in parameters if parameters[key] is None and key not in NESTED_KEYS]
    specs = [_read(hf.replace(**{dialect: each}), dialect) for each in layers.values()]
    if unrotated or len(specs) == 1 or any(spec != specs[0] for spec in specs):
        first = next(iter(layers))
        one = Expression(f"config[{dialect!r}][{first!r}]")
        others = {key: None for key in DIALECTS if key != dialect and hf.keys.get(key)}
        call = advice(hf.replace(**{dialect: layers[first]}), **{dialect: one}, **others)
        raise ValueError(
            f"{dialect} differs between layer types ({', '.join([*layers, *unrotated])}) and a "
            f"RopeSpec is one embedding; read each with {call}"
        )
    return specs[0]


def _read(hf: HfConfig, dialect: str) -> RopeSpec:
    """The embedding described by the top level and one dict of parameters."""
    parameters = hf.keys.get(dialect) or {}
    name, row = _rope_type(parameters, dialect, hf)
    _check_keys(parameters, dialect, name, row)
    fields = {
        field: parameters[field]
        for field in row.reads - {"original_context"}
        if parameters.get(field) is not None
    }
    if not (fields.get("mscale") and fields.get("mscale_all_dim")):  # one alone has no meaning
        fields.pop("mscale", None)
        fields.pop("mscale_all_dim", None)
    context_key, context = _context(hf, parameters, name, row)
    if "original_context" in row.reads:
        fields["original_context"] = context
    if row is ALPHA:
        fields["factor"] = parameters["alpha"]
    elif "factor" not in fields and (
        "factor" in row.requires or (row is LONGROPE and "attention_factor" not in fields)
    ):
        fields["factor"] = _implied_factor(hf, name, context_key, context)
    if row is LONGROPE:
        fields |= _phi_temperature(parameters, fields)
    for field in ("theta", "partial_rotary_factor", "resonance"):
        key = KEY_OF_FIELD.get(field, field)
        values = [each[key] for each in (parameters, hf.keys) if each.get(key) is not None]
        if values:
            fields[field] = values[0]
    fields["theta"] = _theta(hf, fields.get("theta"))
    fields |= read_dimensions(hf, fields.get("partial_rotary_factor"))
    try:
        return RopeSpec(scaling=row.scaling, **fields)
    except ValueError as error:
        message = str(error)  # starts with the name of the field
        field = re.split(r"\W", message, maxsplit=1)[0]
        keys = {**KEY_OF_FIELD, "original_context": context_key, "factor": row.factor_key}
        key = keys.get(field, field)
        raise ValueError(hf.names.get(key, key) + message.removeprefix(field)) from error


def _rope_type(parameters: Any, dialect: str, hf: HfConfig) -> tuple[str, RopeType]:
    """The `rope_type` of a dict of parameters: its name, and its row of `ROPE_TYPES` or `ALPHA`."""
    if not isinstance(parameters, Mapping):
        raise ValueError(
            f"{dialect}={parameters!r} must be a dict such as {{'rope_type': 'linear', 'factor': "
            "4.0}; leave it null for plain RoPE"
        )
    # factors from YaRN's first code, accepted if they equal what transformers computes
    ones = {key for key in ("attn_factor", "extrapolation_factor") if parameters.get(key) == 1}
    check_nested(parameters, dialect, NESTED_KEYS | ones)
    name = parameters.get("rope_type") or parameters.get("type")
    if name is None and parameters.keys() <= COMMON_KEYS | REMARKS:
        name = "default"
    if name == "mrope" and "mrope_section" in parameters:
        name = "default"  # Qwen2-VL's axes, which coincide for text
    if not isinstance(name, str) or name not in ROPE_TYPES:
        raise ValueError(f"rope_type={name!r} is unknown; choose one of {', '.join(ROPE_TYPES)}")
    if not parameters.get("alpha"):
        return name, ROPE_TYPES[name]
    alpha, factor = parameters["alpha"], parameters.get("factor")
    model_type = hf.keys.get("model_type")
    may_be_hunyuan = model_type is None or "hunyuan" in model_type or hf.model_type is None
    if name != "dynamic" or factor not in (None, 1) or not may_be_hunyuan:
        raise ValueError(
            f"alpha={alpha!r} in {dialect} is read only where HunYuan has it, with "
            f"rope_type='dynamic' and factor=1, and here are model_type={model_type!r}, "
            f"rope_type={name!r} and factor={factor!r}; remove alpha, or the factor"
        )
    return name, ALPHA


def _check_keys(parameters: Mapping[str, Any], dialect: str, name: str, row: RopeType) -> None:
    """Raises ValueError if a required key is missing; logs keys that are ignored."""
    for key in row.requires:
        if key not in parameters or (parameters[key] is None and name != "yarn"):
            raise ValueError(
                f"{key} is missing from {dialect}={dict(parameters)!r}: rope_type={name!r} needs "
                f"it; add {key} to {dialect}"
            )
    read = row.reads.union(row.requires, COMMON_KEYS, {row.factor_key})
    if row is LONGROPE:
        read |= set(MSCALES)
    if ignored := sorted(parameters.keys() - read):
        _LOG.warning("%s: rope_type=%r does not read %s", dialect, name, ", ".join(ignored))


def _context(
    hf: HfConfig, parameters: Mapping[str, Any], name: str, row: RopeType
) -> tuple[str, Any]:
    """The key that holds the original context, and its value; None if missing and not needed."""
    candidates = [(_ORIGINAL, hf.keys), (_ORIGINAL, parameters), (_MAXIMUM, hf.keys)]
    if row.context_is_maximum:
        candidates.reverse()
    for key, holder in candidates:
        if holder.get(key) is not None:
            return key, holder[key]
    if "original_context" in row.reads:
        raise ValueError(
            f"{_ORIGINAL} is missing and so is {_MAXIMUM}: rope_type={name!r} needs the context "
            f"length before the extension; add {_ORIGINAL} beside rope_type"
        )
    return _ORIGINAL, None


def _implied_factor(hf: HfConfig, name: str, context_key: str, context: Any) -> float:
    """The factor of a `longrope` dict without one, or of a `yarn` dict in which it is null."""
    maximum: Any = hf.keys.get(_MAXIMUM)
    if not (is_int(maximum) and is_int(context) and INT32_MAX >= maximum >= context > 0):
        raise ValueError(
            f"factor is missing: without it rope_type={name!r} takes max_position_embeddings / "
            f"{context_key}, but these are {maximum!r} and {context!r}; add factor"
        )
    return float(maximum / context)


def _phi_temperature(parameters: Mapping[str, Any], fields: Mapping[str, Any]) -> dict[str, Any]:
    """The attention factor given by `short_mscale` and `long_mscale`, which must be equal."""
    values = [parameters[key] for key in MSCALES if parameters.get(key) is not None]
    if not values:
        return {}
    explicit = fields.get("attention_factor")
    if len(values) < 2 or any(value != values[0] for value in (*values, explicit or values[0])):
        raise ValueError(
            f"short_mscale={parameters.get('short_mscale')!r}, "
            f"long_mscale={parameters.get('long_mscale')!r} and attention_factor={explicit!r} are "
            "several temperatures and a RopeSpec has one for all lengths; set the first two to the "
            "one of the lengths that you need"
        )
    return {"attention_factor": values[0]}


def _theta(hf: HfConfig, theta: Any) -> Any:
    """The base; ChatGLM states it as a multiple (`rope_ratio`) of the default."""
    ratio = hf.keys.get("rope_ratio")
    if theta is None and hf.model_type is None and ratio is None:
        raise ValueError(
            f"rope_theta is missing, and what model_type={hf.keys['model_type']!r} takes without "
            "it is not known; add rope_theta (in a multimodal config these keys are in "
            "text_config: pass that)"
        )
    theta = hf.defaults.theta if theta is None else theta
    if ratio is None:
        return theta
    if not (is_number(ratio) and ratio > 0 and is_number(theta)):
        raise ValueError(f"rope_ratio={ratio!r} must be a finite number > 0; 1 is ChatGLM's own")
    return theta * ratio
