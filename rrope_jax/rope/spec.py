"""`RopeSpec`: everything that determines a rotary embedding, frozen and hashable.

A spec is static under jit and travels as checkpoint metadata; nothing derived from it is a
parameter or a checkpointed array.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

from rrope_jax.rope import resonance
from rrope_jax.rope.fields import INT32_MAX, check_fields, check_method, is_int, is_number
from rrope_jax.rope.scalings import SCALINGS, unread_fields

# Far beyond any model, and small enough that nothing computed from them overflows or takes long.
_WIDEST_HEAD = 2**14
_LARGEST = 1e30
_LARGEST_DIVISOR = 1e60  # files hold 1e30, in float32 and times a factor, for what never turns


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class RopeSpec:
    """A rotary position embedding.

    Fields carry the names of the contract and of Hugging Face's configs. A field that the chosen
    scaling does not read must keep its default: `factor=4` without a scaling is a mistake, not a
    no-op.

    Attributes:
      head_dim: dimensions of one attention head.
      theta: the base b of the geometric frequencies.
      scaling: a key of `rrope_jax.rope.scalings.SCALINGS`.
      factor: the extension s; with `ntk` the stretch of the slowest feature. A scaling that cannot
        do without it insists on being given one (1 is fine).
      original_context: the length L, in tokens, that the ramps of a scaling refer to.
      resonance: round every wavelength to whole tokens, after the scaling (arXiv 2403.00071).
      partial_rotary_factor: share of head_dim that is rotated; the rest passes unchanged.
      attention_factor: multiplied into cos and sin; None means what the scaling prescribes.
      beta_fast, beta_slow: turns within L above which (below which) a feature is kept
        (interpolated) by `yarn` and `ntk_by_parts`.
      truncate: `yarn` rounds the ends of its ramp outwards to whole feature indices.
      mscale, mscale_all_dim: DeepSeek's form of the `yarn` temperature; both or neither.
      low_freq_factor, high_freq_factor: ends of the `llama3` ramp, in turns within L.
      short_factor, long_factor: `longrope` factors per feature, up to L and past it.

    Raises:
      ValueError: a field is out of range, missing, or not read by the scaling.
    """

    head_dim: int
    theta: float = 10000.0
    scaling: str = "none"
    factor: float | None = None
    original_context: int | None = None
    resonance: bool = False
    partial_rotary_factor: float = 1.0
    attention_factor: float | None = None
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    mscale: float | None = None
    mscale_all_dim: float | None = None
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    short_factor: tuple[float, ...] | None = None
    long_factor: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        for name in ("short_factor", "long_factor"):
            if isinstance(value := getattr(self, name), list):
                object.__setattr__(self, name, tuple(value))  # hashable
        check_method(self, "scaling", SCALINGS)
        if is_number(self.factor) and self.factor == 1 and "factor" in unread_fields(self.scaling):
            object.__setattr__(self, "factor", None)  # files of older releases have a 1 for it
        check_fields(self, "scaling", SCALINGS)
        self._check_ranges()
        self._check_factor_lists()
        if self.resonance:  # raises where a rounded wavelength leaves no rotation
            for seq_len in (None, INT32_MAX):
                inv_freq = SCALINGS[self.scaling].inv_freq(self, seq_len)
                resonance.round_wavelengths(resonance.wavelengths_of(inv_freq))

    def fields(self) -> dict[str, Any]:
        """All that determines the embedding: the fields that its scaling reads, as JSON has them.

        `factor` is the number that the scaling computes with (`extension`). `RopeSpec(**fields)`
        is an equal spec.
        """
        unread = unread_fields(self.scaling)
        fields = {name: value for name, value in vars(self).items() if name not in unread}
        if "factor" in fields:
            fields["factor"] = self.extension
        return fields

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, RopeSpec):
            return NotImplemented
        return self.fields() == other.fields()

    def __hash__(self) -> int:
        return hash(tuple(self.fields().items()))

    def _check_ranges(self) -> None:
        for name, holds, allowed, mend in _RANGES:
            if not holds(self):
                value = getattr(self, name)
                raise ValueError(f"{name}={value!r} must be {allowed.format(spec=self)}; {mend}")

    def _check_factor_lists(self) -> None:
        expected = self.rotary_dim // 2
        for name in ("short_factor", "long_factor"):
            value = getattr(self, name)
            if value is None:
                continue
            if not isinstance(value, tuple):
                raise ValueError(
                    f"{name}={value!r} must be a list or tuple of numbers; give {expected} factors"
                )
            if len(value) != expected:
                raise ValueError(
                    f"{name} has {len(value)} entries but the {self.rotary_dim} rotated dimensions "
                    f"make {expected} features; give exactly {expected} factors"
                )
            for index, entry in enumerate(value):
                if not (is_number(entry) and 1 / _LARGEST_DIVISOR <= entry <= _LARGEST_DIVISOR):
                    raise ValueError(
                        f"{name}[{index}]={entry!r} must be a finite number > 0, from "
                        f"{1 / _LARGEST_DIVISOR:g} to {_LARGEST_DIVISOR:g}; "
                        "use 1.0 to leave a feature as it is"
                    )

    @property
    def rotary_dim(self) -> int:
        """The number d of dimensions per head that take part in the rotation."""
        if SCALINGS[self.scaling].rotates_all:
            return self.head_dim
        return int(self.head_dim * self.partial_rotary_factor)

    @property
    def extension(self) -> float:
        """`factor`, or 1 where it is not set."""
        return 1.0 if self.factor is None else self.factor

    def with_method(self, scaling: str, *, resonance: bool) -> "RopeSpec":
        """This spec under another scaling, with every field that it does not read at default.

        Lets one set of fields (a factor, a context, a ramp) describe all methods of a comparison.

        Raises:
          ValueError: the scaling is unknown, or needs a field that this spec leaves unset.
        """
        return spec_for_method(vars(self), scaling, resonance=resonance)


def spec_for_method(fields: dict[str, Any], scaling: str, *, resonance: bool) -> RopeSpec:
    """Builds the spec of one method from fields that describe several.

    Args:
      fields: RopeSpec fields; those that `scaling` does not read are left out.
      scaling: the method's scaling.
      resonance: the method's resonance.

    Raises:
      ValueError: the scaling is unknown, or a field it needs is missing or out of range.
    """
    read = {name: fields[name] for name in fields.keys() - unread_fields(scaling)}
    return RopeSpec(**{**read, "scaling": scaling, "resonance": resonance})


def _is_number_in(value: object, low: float, high: float) -> bool:
    return is_number(value) and low <= value <= high  # type: ignore[operator]


def _is_int_in(value: object, low: int, high: int) -> bool:
    return is_int(value) and low <= value <= high  # type: ignore[operator]


# A field, whether a spec passes, what is allowed, and the mend; checked in this order.
_RANGES: tuple[tuple[str, Callable[[RopeSpec], bool], str, str], ...] = (
    (
        "head_dim",
        lambda spec: _is_int_in(spec.head_dim, 2, _WIDEST_HEAD) and spec.head_dim % 2 == 0,
        f"an even integer >= 2 and <= {_WIDEST_HEAD}",
        "rotary features are pairs of dimensions, so choose an even head size",
    ),
    (
        "theta",
        lambda spec: is_number(spec.theta) and 1 < spec.theta <= _LARGEST,
        f"a finite number > 1 and <= {_LARGEST:g}",
        "10000 is RoPE's own base",
    ),
    (
        "factor",
        lambda spec: _is_number_in(spec.extension, 1, INT32_MAX),
        f"a finite number >= 1 and <= {INT32_MAX}",
        "a factor says how many times longer the context becomes; use 1 for no extension",
    ),
    (
        "original_context",
        lambda spec: (
            spec.original_context is None or _is_int_in(spec.original_context, 1, INT32_MAX)
        ),
        f"a positive integer <= {INT32_MAX}",
        "give the context length, in tokens, that the model was trained at",
    ),
    (
        "partial_rotary_factor",
        lambda spec: is_number(spec.partial_rotary_factor) and 0 < spec.partial_rotary_factor <= 1,
        "in (0, 1]",
        "use 1 to rotate all of head_dim",
    ),
    (
        "partial_rotary_factor",
        lambda spec: spec.rotary_dim >= 2 and spec.rotary_dim % 2 == 0,
        "such that head_dim ({spec.head_dim}) times it is an even number >= 2, "
        "not {spec.rotary_dim}",
        "choose a share that leaves whole pairs of dimensions",
    ),
    (
        "head_dim",
        lambda spec: spec.rotary_dim > 2 or spec.scaling not in ("ntk", "dynamic_ntk", "part_ntk"),
        "such that more than 2 dimensions are rotated with scaling={spec.scaling!r}",
        "its exponent is d/(d-2)",
    ),
    (
        "original_context",
        lambda spec: spec.scaling != "longrope" or spec.original_context != 1,
        "at least 2 with scaling='longrope'",
        "its temperature divides by ln(original_context)",
    ),
    (
        "attention_factor",
        lambda spec: (
            spec.attention_factor is None
            or (is_number(spec.attention_factor) and 0 < spec.attention_factor <= INT32_MAX)
        ),
        f"a finite number > 0 and <= {INT32_MAX}",
        "leave it None for the value that the scaling prescribes",
    ),
    (
        "beta_slow",
        lambda spec: is_number(spec.beta_slow) and spec.beta_slow >= 1 / _LARGEST,
        f"a finite number >= {1 / _LARGEST:g}",
        "YaRN uses 1",
    ),
    (
        "beta_fast",
        lambda spec: is_number(spec.beta_fast) and spec.beta_slow < spec.beta_fast <= INT32_MAX,
        f"a finite number > beta_slow ({{spec.beta_slow!r}}) and <= {INT32_MAX}",
        "YaRN uses beta_fast=32 and beta_slow=1",
    ),
    (
        "mscale",
        lambda spec: (spec.mscale is None) == (spec.mscale_all_dim is None),
        "set together with mscale_all_dim, or not at all",
        "the temperature is the ratio of the two",
    ),
    (
        "mscale",
        lambda spec: spec.mscale is None or _is_number_in(spec.mscale, 0, INT32_MAX),
        f"a finite number >= 0 and <= {INT32_MAX}",
        "leave both None for YaRN's own temperature",
    ),
    (
        "mscale_all_dim",
        lambda spec: spec.mscale is None or _is_number_in(spec.mscale_all_dim, 0, INT32_MAX),
        f"a finite number >= 0 and <= {INT32_MAX}",
        "leave both None for YaRN's own temperature",
    ),
    (
        "low_freq_factor",
        lambda spec: is_number(spec.low_freq_factor) and spec.low_freq_factor > 0,
        "a finite number > 0",
        "Llama 3 uses 1",
    ),
    (
        "high_freq_factor",
        lambda spec: _is_number_in(spec.high_freq_factor, spec.low_freq_factor, INT32_MAX),
        f"a finite number from low_freq_factor ({{spec.low_freq_factor!r}}) to {INT32_MAX}",
        "Llama 3 uses low_freq_factor=1 and high_freq_factor=4",
    ),
    (
        "resonance",
        lambda spec: isinstance(spec.resonance, bool),
        "True or False",
        "it is a switch",
    ),
    (
        "truncate",
        lambda spec: isinstance(spec.truncate, bool),
        "True or False",
        "it is a switch",
    ),
)
