"""Valid values of the fields of a `RopeSpec`: one row of `_RANGES` per rule.

The bounds are far beyond any model. They ensure that nothing computed from a spec overflows or
takes long.
"""

from collections.abc import Callable
from typing import Any

from rrope_jax.rope.fields import INT32_MAX, is_int, is_number
from rrope_jax.rope.temperature import counted_in

_WIDEST_HEAD = 2**14
_LARGEST = 1e30
_LONGEST_DESIGN = 2**20  # every distance up to it is looked at
_LONGEST_DISTRIBUTION = 2**22  # the same
_LARGEST_DIVISOR = 1e60  # a feature that never turns has 1e30 in files, times a factor


def check_ranges(spec: Any) -> None:
    """Checks every field of a spec, regardless of its scaling.

    Args:
      spec: any object with the fields and the `rotary_dim` of a `RopeSpec`.

    Raises:
      ValueError: a value is not allowed; the message names the field, its value, the allowed
        values and the fix.
    """
    for name, is_allowed, allowed, mend in _RANGES:
        value = getattr(spec, name)
        if not is_allowed(value, spec):
            raise ValueError(f"{name}={value!r} must be {allowed.format(spec=spec)}; {mend}")
    for name in ("short_factor", "long_factor"):
        if (factors := getattr(spec, name)) is not None:
            _check_factors(name, factors, spec.rotary_dim)


def _check_factors(name: str, factors: Any, rotary_dim: int) -> None:
    expected = rotary_dim // 2
    if not isinstance(factors, tuple):
        raise ValueError(
            f"{name}={factors!r} must be a list or tuple of numbers; give {expected} factors"
        )
    if len(factors) != expected:
        raise ValueError(
            f"{name} has {len(factors)} entries but the {rotary_dim} rotated dimensions make "
            f"{expected} features; give exactly {expected} factors"
        )
    for index, factor in enumerate(factors):
        if not _is_number_in(factor, 1 / _LARGEST_DIVISOR, _LARGEST_DIVISOR):
            raise ValueError(
                f"{name}[{index}]={factor!r} must be a finite number > 0, from "
                f"{1 / _LARGEST_DIVISOR:g} to {_LARGEST_DIVISOR:g}; use 1.0 to leave a feature as "
                "it is"
            )


def _is_int_in(value: Any, least: int, most: int) -> bool:
    return is_int(value) and least <= value <= most


def _is_number_in(value: Any, least: float, most: float) -> bool:
    return is_number(value) and least <= value <= most


# (field, predicate on its value and the spec, allowed values in words, fix). Order matters: a row
# relies on those above it.
_RANGES: tuple[tuple[str, Callable[[Any, Any], bool], str, str], ...] = (
    (
        "head_dim",
        lambda value, spec: _is_int_in(value, 2, _WIDEST_HEAD) and value % 2 == 0,
        f"an even integer >= 2 and <= {_WIDEST_HEAD}",
        "rotary features are pairs of dimensions, so choose an even head size",
    ),
    (
        "theta",
        lambda value, spec: _is_number_in(value, 1, _LARGEST) and value > 1,
        f"a finite number > 1 and <= {_LARGEST:g}",
        "10000 is RoPE's own base",
    ),
    (
        "factor",
        lambda value, spec: value is None or _is_number_in(value, 1, INT32_MAX),
        f"a finite number >= 1 and <= {INT32_MAX}",
        "a factor says how many times longer the context becomes; use 1 for no extension",
    ),
    (
        "original_context",
        lambda value, spec: value is None or _is_int_in(value, 1, INT32_MAX),
        f"a positive integer <= {INT32_MAX}",
        "give the context length, in tokens, that the model was trained at",
    ),
    (
        "partial_rotary_factor",
        lambda value, spec: _is_number_in(value, 0, 1) and value > 0,
        "in (0, 1]",
        "use 1 to rotate all of head_dim",
    ),
    (
        "partial_rotary_factor",
        lambda value, spec: spec.rotary_dim >= 2 and spec.rotary_dim % 2 == 0,
        "such that head_dim ({spec.head_dim}) times it is an even number >= 2, "
        "not {spec.rotary_dim}",
        "choose a share that leaves whole pairs of dimensions",
    ),
    (
        "head_dim",
        lambda value, spec: (
            spec.rotary_dim > 2 or spec.scaling not in ("ntk", "dynamic_ntk", "part_ntk")
        ),
        "such that more than 2 dimensions are rotated with scaling={spec.scaling!r}",
        "its exponent is d/(d-2)",
    ),
    (
        "original_context",
        lambda value, spec: value != 1 or spec.scaling != "longrope",
        "at least 2 with scaling='longrope'",
        "its temperature divides by ln(original_context)",
    ),
    (
        "abf_theta",
        lambda value, spec: value is None or (_is_number_in(value, 1, _LARGEST) and value > 1),
        f"a finite number > 1 and <= {_LARGEST:g}",
        "arXiv 2309.16039 uses 500000",
    ),
    (
        "clipped_features",
        lambda value, spec: value is None or _is_int_in(value, 1, spec.rotary_dim // 2),
        "an integer from 1 to the number of features, half of the {spec.rotary_dim} rotated "
        "dimensions",
        "CoPE clips 20 of Llama 3's 64",
    ),
    (
        "clipped_features",
        lambda value, spec: value != 1 or spec.scaling != "cope",
        "at least 2 with scaling='cope'",
        "the fastest of them keeps its frequency",
    ),
    (
        "shortest_wavelength",
        lambda value, spec: _is_number_in(value, 2, INT32_MAX),
        f"a finite number from 2 to {INT32_MAX}",
        "RoPE-ID uses 32 tokens",
    ),
    (
        "shortest_wavelength",
        lambda value, spec: spec.scaling != "rope_id" or 2 * value <= spec.original_context,
        "at most half of original_context ({spec.original_context}) with scaling='rope_id'",
        "its slowest feature turns twice within original_context",
    ),
    (
        "head_dim",
        lambda value, spec: spec.rotary_dim > 2 or spec.scaling != "rope_id",
        "such that more than 2 dimensions are rotated with scaling={spec.scaling!r}",
        "half of the features do not turn",
    ),
    (
        "original_context",
        lambda value, spec: (
            spec.scaling != "dprope" or value * spec.extension <= _LONGEST_DISTRIBUTION
        ),
        f"at most {_LONGEST_DISTRIBUTION} when multiplied by factor, with scaling='dprope'",
        "it looks at every position; use scaling='yarn' for longer contexts",
    ),
    (
        "attention_factor",
        lambda value, spec: value is None or (_is_number_in(value, 0, INT32_MAX) and value > 0),
        f"a finite number > 0 and <= {INT32_MAX}",
        "leave it None for the value that the scaling prescribes",
    ),
    (
        "beta_slow",
        lambda value, spec: is_number(value) and value >= 1 / _LARGEST,
        f"a finite number >= {1 / _LARGEST:g}",
        "YaRN uses 1",
    ),
    (
        "beta_fast",
        lambda value, spec: is_number(value) and spec.beta_slow < value <= INT32_MAX,
        f"a finite number > beta_slow ({{spec.beta_slow!r}}) and <= {INT32_MAX}",
        "YaRN uses beta_fast=32 and beta_slow=1",
    ),
    (
        "mscale",
        lambda value, spec: (value is None) == (spec.mscale_all_dim is None),
        "set together with mscale_all_dim, or not at all",
        "the temperature is the ratio of the two",
    ),
    *(
        (
            name,
            lambda value, spec: value is None or _is_number_in(value, 0, INT32_MAX),
            f"a finite number >= 0 and <= {INT32_MAX}",
            "leave both None for YaRN's own temperature",
        )
        for name in ("mscale", "mscale_all_dim")
    ),
    (
        "low_freq_factor",
        lambda value, spec: is_number(value) and value > 0,
        "a finite number > 0",
        "Llama 3 uses 1",
    ),
    (
        "high_freq_factor",
        lambda value, spec: _is_number_in(value, spec.low_freq_factor, INT32_MAX),
        f"a finite number from low_freq_factor ({{spec.low_freq_factor!r}}) to {INT32_MAX}",
        "Llama 3 uses low_freq_factor=1 and high_freq_factor=4",
    ),
    (
        "llama_4_scaling_beta",
        lambda value, spec: _is_number_in(value, 0, INT32_MAX),
        f"a finite number >= 0 and <= {INT32_MAX}",
        "Ministral 3 uses 0.1; use 0 for no temperature that grows with the position",
    ),
    (
        "llama_4_scaling_beta",
        lambda value, spec: value == 0 or counted_in(spec) is not None,
        "0 without an original_context, which it counts in",
        "use a scaling that reads original_context (such as yarn with factor=1), or 0",
    ),
    (
        "llama_4_scaling_beta",
        lambda value, spec: value != 0 or spec.position_temperature != "llama4",
        "above 0 with position_temperature='llama4'",
        "Ministral 3 uses 0.1",
    ),
    (
        "temperature_context",
        lambda value, spec: value is None or _is_int_in(value, 2, INT32_MAX),
        f"an integer from 2 to {INT32_MAX}",
        "give the length, in tokens, that the model was trained at",
    ),
    (
        "position_temperature",
        lambda value, spec: value != "log_n" or (counted_in(spec) or 0) >= 2,
        "given with a temperature_context of at least 2, or an original_context",
        "it is 1 up to that length",
    ),
    (
        "truncate",
        lambda value, spec: isinstance(value, bool),
        "True or False",
        "it is a switch",
    ),
    *(
        (
            name,
            lambda value, spec: value is None or _is_int_in(value, 2, INT32_MAX),
            f"an integer from 2 to {INT32_MAX}",
            "give a length in tokens, such as that of training",
        )
        for name in ("resonance_limit", "resonance_period")
    ),
    (
        "resonance_near",
        lambda value, spec: (
            _is_int_in(value, 1, INT32_MAX)
            and (value == 1 or (spec.resonance_period or 0) >= value)
        ),
        "an integer from 1 to resonance_period ({spec.resonance_period!r})",
        "it is a number of near distances",
    ),
    (
        "resonance_length",
        lambda value, spec: (
            value is None or _is_int_in(value, (spec.resonance_period or 0) + 1, _LONGEST_DESIGN)
        ),
        f"an integer above resonance_period ({{spec.resonance_period!r}}) and <= {_LONGEST_DESIGN}",
        "give the length, in tokens, that the model is to reach",
    ),
    (
        "resonance_tolerance",
        lambda value, spec: is_number(value) and 0 < value < 1,
        "a number between 0 and 1",
        "it is the largest relative change of a wavelength; 0.15 is the default",
    ),
    *(
        (
            name,
            lambda value, spec: value is None or _is_int_in(value, 1, INT32_MAX),
            f"a positive integer <= {INT32_MAX}",
            mend,
        )
        for name, mend in (
            ("far_context", "give the context length, in tokens, that the model was trained at"),
            ("far_group", "SelfExtend uses 2 to 64, and 1 leaves all positions as they are"),
            ("far_window", "it counts tokens; 1024 is usual"),
        )
    ),
    (
        "far_window",
        lambda value, spec: spec.far_context is None or value <= spec.far_context,
        "at most far_context ({spec.far_context!r})",
        "near pairs keep their distances, which training must have seen",
    ),
)
