"""`RopeSpec`: everything that determines a rotary embedding, frozen and hashable.

A spec is static under jit and travels as checkpoint metadata; nothing derived from it is a
parameter or a checkpointed array.
"""

import dataclasses
from typing import Any

from rrope_jax.rope.fields import Unset, check_method, is_int, is_number
from rrope_jax.rope.frequencies import SCALINGS, frequencies

_LONGEST = 2**31 - 1  # positions are int32
# Far beyond any model, and small enough that nothing computed from them overflows or takes long.
_WIDEST_HEAD = 2**14
_LARGEST = 1e30
_LARGEST_DIVISOR = 1e60  # files hold 1e30, in float32 and times a factor, for what never turns


@dataclasses.dataclass(frozen=True, kw_only=True)
class RopeSpec:
    """A rotary position embedding.

    Fields carry the names of the contract and of Hugging Face's configs. A field that the chosen
    scaling does not read must keep its default: `factor=4` without a scaling is a mistake, not a
    no-op.

    Attributes:
      head_dim: dimensions of one attention head.
      theta: the base b of the geometric frequencies.
      scaling: a key of `rrope_jax.rope.frequencies.SCALINGS`.
      factor: the extension s; with `ntk` the stretch of the slowest feature. Computes as 1 where it
        is left out, but a scaling that reads it insists on being given one (1 is fine).
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
    factor: float = Unset(1.0)
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
        self._check_ranges()
        self._check_factor_lists()
        if self.resonance:  # raises where a rounded wavelength leaves no rotation
            frequencies(self)
            frequencies(self, _LONGEST)

    def _check_ranges(self) -> None:
        def require(holds: bool, name: str, allowed: str, mend: str) -> None:
            if not holds:
                raise ValueError(f"{name}={getattr(self, name)!r} must be {allowed}; {mend}")

        require(
            is_int(self.head_dim) and 2 <= self.head_dim <= _WIDEST_HEAD and self.head_dim % 2 == 0,
            "head_dim",
            f"an even integer >= 2 and <= {_WIDEST_HEAD}",
            "rotary features are pairs of dimensions, so choose an even head size",
        )
        require(
            is_number(self.theta) and 1 < self.theta <= _LARGEST,
            "theta",
            f"a finite number > 1 and <= {_LARGEST:g}",
            "10000 is RoPE's own base",
        )
        require(
            is_number(self.factor) and 1 <= self.factor <= _LONGEST,
            "factor",
            f"a finite number >= 1 and <= {_LONGEST}",
            "a factor says how many times longer the context becomes; use 1 for no extension",
        )
        require(
            self.original_context is None
            or (is_int(self.original_context) and 1 <= self.original_context <= _LONGEST),
            "original_context",
            f"a positive integer <= {_LONGEST}",
            "give the context length, in tokens, that the model was trained at",
        )
        require(
            is_number(self.partial_rotary_factor) and 0 < self.partial_rotary_factor <= 1,
            "partial_rotary_factor",
            "in (0, 1]",
            "use 1 to rotate all of head_dim",
        )
        require(
            self.rotary_dim >= 2 and self.rotary_dim % 2 == 0,
            "partial_rotary_factor",
            f"such that head_dim ({self.head_dim}) times it is an even number >= 2, "
            f"not {self.rotary_dim}",
            "choose a share that leaves whole pairs of dimensions",
        )
        if self.scaling in ("ntk", "dynamic_ntk", "part_ntk"):
            require(
                self.rotary_dim > 2,
                "head_dim",
                f"such that more than 2 dimensions are rotated with scaling={self.scaling!r}",
                "its exponent is d/(d-2)",
            )
        if self.scaling == "longrope":
            require(
                self.original_context is not None and self.original_context >= 2,
                "original_context",
                "at least 2 with scaling='longrope'",
                "its temperature divides by ln(original_context)",
            )
        require(
            self.attention_factor is None
            or (is_number(self.attention_factor) and 0 < self.attention_factor <= _LONGEST),
            "attention_factor",
            f"a finite number > 0 and <= {_LONGEST}",
            "leave it None for the value that the scaling prescribes",
        )
        require(
            is_number(self.beta_slow) and self.beta_slow >= 1 / _LARGEST,
            "beta_slow",
            f"a finite number >= {1 / _LARGEST:g}",
            "YaRN uses 1",
        )
        require(
            is_number(self.beta_fast) and self.beta_slow < self.beta_fast <= _LONGEST,
            "beta_fast",
            f"a finite number > beta_slow ({self.beta_slow!r}) and <= {_LONGEST}",
            "YaRN uses beta_fast=32 and beta_slow=1",
        )
        require(
            (self.mscale is None) == (self.mscale_all_dim is None),
            "mscale",
            "set together with mscale_all_dim, or not at all",
            "the temperature is the ratio of the two",
        )
        for name in ("mscale", "mscale_all_dim"):
            value = getattr(self, name)
            require(
                value is None or (is_number(value) and 0 <= value <= _LONGEST),
                name,
                f"a finite number >= 0 and <= {_LONGEST}",
                "leave both None for YaRN's own temperature",
            )
        require(
            is_number(self.low_freq_factor) and self.low_freq_factor > 0,
            "low_freq_factor",
            "a finite number > 0",
            "Llama 3 uses 1",
        )
        require(
            is_number(self.high_freq_factor)
            and self.low_freq_factor <= self.high_freq_factor <= _LONGEST,
            "high_freq_factor",
            f"a finite number from low_freq_factor ({self.low_freq_factor!r}) to {_LONGEST}",
            "Llama 3 uses low_freq_factor=1 and high_freq_factor=4",
        )
        for name in ("resonance", "truncate"):
            require(isinstance(getattr(self, name), bool), name, "True or False", "it is a switch")

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
    def context(self) -> int:
        """`original_context` for the scalings that need one; raises ValueError where unset."""
        if self.original_context is None:
            raise ValueError(f"scaling={self.scaling!r} has no original_context; set it")
        return self.original_context

    def with_method(self, scaling: str, *, resonance: bool) -> "RopeSpec":
        """This spec under another scaling, with every field that it does not read at default.

        Lets one set of fields (a factor, a context, a ramp) describe all methods of a comparison.

        Raises:
          ValueError: the scaling is unknown, or needs a field that this spec leaves unset.
        """
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return spec_for_method(fields, scaling, resonance=resonance)


def spec_for_method(fields: dict[str, Any], scaling: str, *, resonance: bool) -> RopeSpec:
    """Builds the spec of one method from fields that describe several.

    Args:
      fields: RopeSpec fields; those that `scaling` does not read are left out.
      scaling: the method's scaling.
      resonance: the method's resonance.

    Raises:
      ValueError: the scaling is unknown, or a field it needs is missing or out of range.
    """
    reads = SCALINGS[scaling].reads if scaling in SCALINGS else SCALING_FIELDS
    kept = {name: value for name, value in fields.items() if name not in SCALING_FIELDS - reads}
    return RopeSpec(**{**kept, "scaling": scaling, "resonance": resonance})


SCALING_FIELDS = frozenset().union(*(row.reads for row in SCALINGS.values()))
