"""The rotary embedding of a GGUF file, as each architecture of llama.cpp computes it."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from rrope_jax.io.families.family import Gguf
from rrope_jax.io.gguf import container as gguf_file
from rrope_jax.model import ModelConfig
from rrope_jax.rope import RopeSpec, frequencies, llama3_context
from rrope_jax.rope.far_positions import why_only_here
from rrope_jax.rope.resonance import RULE_FIELDS
from rrope_jax.rope.scalings import NEVER_TURNS, stretched_theta
from rrope_jax.rope.temperature import why_not_in_runtimes

ORIGINAL_CONTEXT = "rope.scaling.original_context_length"
OURS = "rrope."
"""The prefix of our own keys, which other programs do not read."""
_BASE, _SLIDING_BASE = "rope.freq_base", "rope.freq_base_swa"
_DEFAULT_BASE = 10000.0
_TEMPERATURE = "rope.scaling.attn_factor"
_POSITION_TEMPERATURE = "attention.temperature_scale"
_LOG_MULTIPLIER = "rope.scaling.yarn_log_multiplier"
_ROTATED = "rope.dimension_count"


def _plain(spec: RopeSpec) -> dict[str, Any]:
    return {_BASE: float(spec.theta)}


def _linear(spec: RopeSpec) -> dict[str, Any]:
    return _plain(spec) | {"rope.scaling.type": "linear", "rope.scaling.factor": spec.extension}


def _ntk(spec: RopeSpec) -> dict[str, Any]:
    return {_BASE: stretched_theta(spec, spec.extension)}


def _abf(spec: RopeSpec) -> dict[str, Any]:
    return {_BASE: float(spec.abf_theta or spec.theta)}


def _yarn(spec: RopeSpec) -> dict[str, Any]:
    return _plain(spec) | {
        "rope.scaling.type": "yarn",
        "rope.scaling.factor": spec.extension,
        ORIGINAL_CONTEXT: spec.original_context,
    }


def _lists(spec: RopeSpec) -> dict[str, Any]:
    return _plain(spec) | {ORIGINAL_CONTEXT: spec.original_context}


# Scalings that llama.cpp computes itself, if all fields but `_BASIC_FIELDS` have their defaults.
_NATIVE: dict[str, Callable[[RopeSpec], dict[str, Any]]] = {
    "none": _plain,
    "linear": _linear,
    "ntk": _ntk,
    "abf": _abf,
    "yarn": _yarn,
}
_BASIC_FIELDS = ("head_dim", "theta", "scaling", "factor", "original_context", "abf_theta")


def is_native(gguf: Gguf, spec: RopeSpec) -> bool:
    """Whether an architecture computes an embedding, its temperature included, from its keys."""
    spec = spec.of("full_attention")
    basic = {name: getattr(spec, name) for name in _BASIC_FIELDS}
    if gguf.partial_rotary:
        basic["partial_rotary_factor"] = spec.partial_rotary_factor
    if gguf.position_temperature:
        basic["llama_4_scaling_beta"] = spec.llama_4_scaling_beta
        if spec.mscale == 1:  # llama.cpp takes it as 1
            basic |= {"mscale": 1.0, "mscale_all_dim": spec.mscale_all_dim}
    if len(gguf.frequency_factors) == 2 and spec.scaling == "longrope":
        return not spec.llama_4_scaling_beta
    if spec.scaling not in _NATIVE or spec.temperature_context is not None:
        return False
    own = RopeSpec(**basic)
    if spec == own:
        return True
    temperature = _relative_temperature(spec, own)
    basic |= {
        name: getattr(spec, name) for name in ("attention_factor", "mscale", "mscale_all_dim")
    }
    if spec != RopeSpec(**basic):
        return False
    return temperature == 1 or (not gguf.frequency_factors and gguf.sliding_rope != "own base")


def _relative_temperature(spec: RopeSpec, own: RopeSpec) -> float:
    """The temperature of a spec over that of another; exactly 1 if they differ by rounding."""
    ratio = frequencies(spec).attention_factor / frequencies(own).attention_factor
    return 1.0 if math.isclose(ratio, 1.0, rel_tol=1e-7) else ratio


def obstacle(gguf: Gguf, model: ModelConfig, spec: RopeSpec, *, native: bool) -> str | None:
    """Says why an architecture cannot have an embedding; None if it can.

    Args:
      gguf: the architecture.
      model: the model.
      spec: its embedding.
      native: whether the embedding is to be written as keys; else it becomes lists of factors.
    """
    if (reason := why_only_here(spec)) is not None:
        return reason
    name = f"llama.cpp's architecture {gguf.architecture!r}"
    if "sliding_attention" in model.layer_types:
        sliding = spec.of("sliding_attention")
        expected = _sliding(gguf, spec.of("full_attention"), sliding.theta)
        if sliding != expected:
            ours, theirs = sliding.fields(), expected.fields()
            fields = [key for key in ours | theirs if ours.get(key) != theirs.get(key)]
            return (
                f"{name} gives layers with a sliding window "
                f"{', '.join(f'{key}={theirs.get(key)!r}' for key in fields)}, and this model has "
                f"{', '.join(f'{key}={ours.get(key)!r}' for key in fields)}; write a Hugging Face "
                "folder"
            )
    if (reason := why_not_in_runtimes(spec)) is not None:
        return reason
    if spec.llama_4_scaling_beta and not gguf.position_temperature:
        return (
            f"llama_4_scaling_beta={spec.llama_4_scaling_beta}: {name} has no temperature that "
            "grows with the position"
        )
    if native:
        return None
    if not gguf.frequency_factors:
        return (
            f"{name} reads no list of frequencies, and it has no name for this embedding; only "
            f"{', '.join(repr(name) for name in _NATIVE)} can be written, or a Hugging Face folder"
        )
    return None


def _sliding(gguf: Gguf, full: RopeSpec, theta: float) -> RopeSpec:
    """The embedding of layers with a sliding window, given that of the others."""
    if gguf.sliding_rope == "same":
        return full
    base = theta if gguf.sliding_rope == "own base" else full.theta
    return RopeSpec(
        head_dim=full.head_dim, theta=base, partial_rotary_factor=full.partial_rotary_factor
    )


def keys_of(gguf: Gguf, model: ModelConfig, spec: RopeSpec) -> dict[str, Any]:
    """The keys, without their prefix, of an embedding that `obstacle` has nothing against."""
    full = spec.of("full_attention")
    keys: dict[str, Any] = {_ROTATED: full.rotary_dim if gguf.partial_rotary else full.head_dim}
    if not is_native(gguf, full) or full.scaling == "longrope":
        keys |= _lists(full) if len(gguf.frequency_factors) == 2 else _plain(full)
        temperature = frequencies(full).attention_factor
        if temperature != 1:
            keys[_TEMPERATURE] = temperature
    else:
        keys |= _NATIVE[full.scaling](full)
        own = dataclasses.replace(full, attention_factor=None, mscale=None, mscale_all_dim=None)
        temperature = _relative_temperature(full, own)
        if gguf.position_temperature and full.mscale == 1:
            keys[_LOG_MULTIPLIER] = float(full.mscale_all_dim or 0)
        elif temperature != 1:
            keys[_TEMPERATURE] = temperature
    if full.llama_4_scaling_beta:
        keys[_POSITION_TEMPERATURE] = float(full.llama_4_scaling_beta)
        keys[ORIGINAL_CONTEXT] = full.original_context
    if gguf.sliding_rope == "own base" and "sliding_attention" in model.layer_types:
        keys[_SLIDING_BASE] = float(spec.of("sliding_attention").theta)
    return keys


def factors_of(gguf: Gguf, spec: RopeSpec) -> dict[str, np.ndarray]:
    """The lists of factors by tensor name: divisors of plain RoPE's frequencies, float32."""
    full = spec.of("full_attention")
    if is_native(gguf, full) and full.scaling != "longrope":
        return {}
    size = full.rotary_dim if gguf.partial_rotary else full.head_dim
    plain = frequencies(RopeSpec(head_dim=size, theta=full.theta)).inv_freq
    lengths = (full.original_context, (full.original_context or 0) + 1)

    def factors(length: int | None) -> np.ndarray:
        scaled = frequencies(full, length).inv_freq
        divisors = np.full(plain.shape, NEVER_TURNS)
        with np.errstate(divide="ignore"):  # a feature that never turns
            divisors[: scaled.size] = np.minimum(plain[: scaled.size] / scaled, NEVER_TURNS)
        return divisors.astype(np.float32)

    return {
        name: factors(length) for name, length in zip(gguf.frequency_factors, lengths, strict=False)
    }


def rope_of(
    contents: gguf_file.Contents,
    gguf: Gguf,
    keys: Mapping[str, Any],
    head_dim: int,
    *,
    windowed: bool = False,
) -> RopeSpec:
    """The rotary embedding that llama.cpp computes.

    Args:
      contents: the file.
      gguf: its architecture.
      keys: its keys without their prefix.
      head_dim: dimensions of a head.
      windowed: whether some layers have a sliding window.

    Raises:
      ValueError: a scaling is not implemented, or a value is out of range.
    """
    full = _full(contents, gguf, keys, head_dim)
    if not windowed:
        return full
    sliding = _sliding(gguf, full, float(keys.get(_SLIDING_BASE, _DEFAULT_BASE)))
    return dataclasses.replace(full, sliding_attention=sliding)


def _full(
    contents: gguf_file.Contents, gguf: Gguf, keys: Mapping[str, Any], head_dim: int
) -> RopeSpec:
    """The embedding of layers without a window."""
    context = keys.get("context_length")
    scaling = keys.get("rope.scaling.type", "none")
    factor = keys.get("rope.scaling.factor", keys.get("rope.scale_linear", 1.0))
    if "rope.scaling.type" not in keys and factor != 1:
        scaling = "linear"
    temperature = keys.get(_TEMPERATURE, 1.0)
    fields: dict[str, Any] = {
        "head_dim": head_dim,
        "theta": float(keys.get(_BASE, _DEFAULT_BASE)),
    }
    rotary_dim = keys.get(_ROTATED, head_dim)
    if rotary_dim != head_dim:
        fields["partial_rotary_factor"] = rotary_dim / head_dim
    rule = {name: contents.metadata.get(OURS + name) for name in ("resonance", *RULE_FIELDS)}
    fields |= {name: value for name, value in rule.items() if value is not None}
    beta = keys.get(_POSITION_TEMPERATURE, 0.0) if gguf.position_temperature else 0.0
    if beta:
        fields["llama_4_scaling_beta"] = beta
    lists = [
        factor * gguf_file.read_tensor(name, contents.tensors[name]).astype(np.float64).reshape(-1)
        for name in gguf.frequency_factors
        if name in contents.tensors
    ]
    if lists and scaling in ("none", "linear"):
        if len(gguf.frequency_factors) == 2 or beta:
            original = keys.get(ORIGINAL_CONTEXT, context)
        else:  # with two equal lists, it does not affect the result
            original = llama3_context(lists[0], theta=fields["theta"]) or context
        fields |= {
            "scaling": "longrope",
            "original_context": original,
            "short_factor": tuple(lists[0].tolist()),
            "long_factor": tuple(lists[-1].tolist()),
            "attention_factor": temperature,
        }
        return RopeSpec(**fields)
    if lists or scaling not in ("none", "linear", "yarn"):
        also = f" beside {gguf.frequency_factors[0]}" if lists else ""
        raise ValueError(
            f"{gguf.architecture}.rope.scaling.type={scaling!r}{also} is not implemented; "
            "only 'none', 'linear' and 'yarn' are"
        )
    if beta and scaling == "none":  # a scaling that changes nothing, but has a context
        scaling = "yarn"
    fields["scaling"] = scaling
    if scaling != "none":
        fields["factor"] = factor
    if scaling == "yarn":
        fields |= _yarn_fields(gguf, keys)
    spec = RopeSpec(**fields)
    if temperature == 1:
        return spec
    # llama.cpp multiplies YaRN's own temperature by this one.
    fields["attention_factor"] = temperature * frequencies(spec).attention_factor
    return RopeSpec(**fields)


def _yarn_fields(gguf: Gguf, keys: Mapping[str, Any]) -> dict[str, Any]:
    fields = {"original_context": keys.get(ORIGINAL_CONTEXT, keys.get("context_length"))}
    for name in ("beta_fast", "beta_slow"):
        if (value := keys.get(f"rope.scaling.yarn_{name}")) is not None:
            fields[name] = value
    if gguf.position_temperature and keys.get(_LOG_MULTIPLIER):
        fields |= {"mscale": 1.0, "mscale_all_dim": keys[_LOG_MULTIPLIER]}
    return fields
