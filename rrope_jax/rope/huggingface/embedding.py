"""Reads one embedding from the top level of a config.json and one dict of RoPE parameters."""

import logging
import re
from collections.abc import Mapping
from typing import Any

from rrope_jax.rope.fields import INT32_MAX, is_int, is_number
from rrope_jax.rope.huggingface.dimensions import read_dimensions
from rrope_jax.rope.huggingface.keys import HfConfig, check_nested
from rrope_jax.rope.huggingface.rope_types import (
    ALPHA,
    BETA,
    COMMON_KEYS,
    KEY_OF_FIELD,
    LONGROPE,
    MAXIMUM,
    MSCALES,
    NESTED_KEYS,
    ORIGINAL,
    REMARKS,
    ROPE_TYPES,
    RopeType,
)
from rrope_jax.rope.resonance import RULE_FIELDS
from rrope_jax.rope.spec import RopeSpec

_LOG = logging.getLogger(__name__)
# The types whose frequencies do not depend on ORIGINAL; a position temperature may count in it.
_WITHOUT_ORIGINAL = ("linear", "dynamic", "proportional")


def read_one(hf: HfConfig, dialect: str) -> RopeSpec:
    """The embedding described by the top level and one dict of parameters.

    Args:
      hf: the config.
      dialect: the key that holds the dict, one of `DIALECTS`.

    Raises:
      ValueError: a key is missing, unsupported or out of range, or two contradict each other; the
        message names the key as in the config.
    """
    parameters = hf.keys.get(dialect) or {}
    name, row = _rope_type(parameters, dialect, hf)
    _check_keys(parameters, dialect, name, row)
    beta = _position_temperature(hf, parameters, dialect, name)
    if beta and row.scaling == "none":  # takes a scaling that changes nothing but has a context
        row = ROPE_TYPES["yarn"]
        common = {key: parameters[key] for key in parameters.keys() & COMMON_KEYS}
        parameters = {**common, "factor": 1.0}
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
    if beta:
        fields[BETA] = beta
        if name in _WITHOUT_ORIGINAL and parameters[ORIGINAL] != fields.get("original_context"):
            fields["temperature_context"] = parameters[ORIGINAL]
    for field in ("theta", "partial_rotary_factor", "resonance", *sorted(RULE_FIELDS)):
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
        keys = {
            **KEY_OF_FIELD,
            "original_context": context_key,
            "temperature_context": ORIGINAL,
            "factor": row.factor_key,
        }
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
    if name == "yarn" and hf.defaults.only_longrope:
        name = "longrope"  # its name in the first Phi-3 configs
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
    defaults = {ORIGINAL: hf.defaults.original_context}
    candidates = [(ORIGINAL, hf.keys), (ORIGINAL, defaults), (ORIGINAL, parameters)]
    candidates.append((MAXIMUM, hf.keys))
    if row.context_is_maximum:
        candidates.reverse()
    elif hf.one_layer_type and "original_context" in row.reads:
        candidates = candidates[2:]
        above = hf.keys.get(ORIGINAL)
        if parameters.get(ORIGINAL) is None and above not in (None, hf.keys.get(MAXIMUM)):
            raise ValueError(
                f"{ORIGINAL}={above!r} is not read where layer types have embeddings of their own; "
                f"say it beside rope_type={name!r}"
            )
    for key, holder in candidates:
        if holder.get(key) is not None:
            return key, holder[key]
    if "original_context" in row.reads:
        raise ValueError(
            f"{ORIGINAL} is missing and so is {MAXIMUM}: rope_type={name!r} needs the context "
            f"length before the extension; add {ORIGINAL} beside rope_type"
        )
    return ORIGINAL, None


def _implied_factor(hf: HfConfig, name: str, context_key: str, context: Any) -> float:
    """The factor of a `longrope` dict without one, or of a `yarn` dict in which it is null."""
    maximum: Any = hf.keys.get(MAXIMUM)
    if not (is_int(maximum) and is_int(context) and INT32_MAX >= maximum >= context > 0):
        raise ValueError(
            f"factor is missing: without it rope_type={name!r} takes max_position_embeddings / "
            f"{context_key}, but these are {maximum!r} and {context!r}; add factor"
        )
    return float(maximum / context)


def _position_temperature(
    hf: HfConfig, parameters: Mapping[str, Any], dialect: str, name: str
) -> Any:
    """The value of `llama_4_scaling_beta`; 0 without one."""
    beta = parameters.get(BETA)
    if not beta:
        return 0.0
    model_type = hf.keys.get("model_type")
    is_other = model_type is not None and hf.model_type is not None
    if hf.one_layer_type or (is_other and not hf.defaults.position_temperature):
        raise ValueError(
            f"{dialect} has {BETA}={beta!r}, which model_type={model_type!r} does not read there; "
            "set it to null (model_type='ministral3' has such a temperature)"
        )
    holders = [parameters]
    if name not in _WITHOUT_ORIGINAL:  # for these, transformers does not look above
        holders.append(hf.keys)
    if name in (*_WITHOUT_ORIGINAL, "default") and all(
        holder.get(ORIGINAL) is None for holder in holders
    ):
        raise ValueError(
            f"{BETA}={beta!r} counts in {ORIGINAL}, which rope_type={name!r} does not read or "
            f"{dialect} does not have; add {ORIGINAL} and rope_type='yarn' (with factor=1 for no "
            "extension)"
        )
    return beta


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
