"""`RopeSpec`: everything that determines a rotary embedding, frozen and hashable.

A spec is static under jit and travels as checkpoint metadata; nothing derived from it is a
parameter or a checkpointed array.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from rrope_jax.rope import resonance
from rrope_jax.rope.far_positions import FAR_POSITIONS, unread_by_far
from rrope_jax.rope.fields import INT32_MAX, check_fields, check_method, is_number
from rrope_jax.rope.ranges import check_ranges
from rrope_jax.rope.resonance import unread_by_rule
from rrope_jax.rope.scalings import SCALINGS, unread_fields
from rrope_jax.rope.temperature import POSITION_TEMPERATURES, name_by_beta


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class RopeSpec:
    """A rotary position embedding.

    Fields have the same names as in this project's configs and, mostly, in Hugging Face's. A field
    that the chosen scaling does not read must keep its default: `factor=4` without a scaling is an
    error, not a no-op.

    Attributes:
      head_dim: dimensions of one attention head.
      theta: the base b of the geometric frequencies.
      scaling: a key of `rrope_jax.rope.scalings.SCALINGS`.
      factor: the context extension s; for `ntk`, the stretch of the slowest feature. Scalings that
        require it accept 1.
      original_context: the context length L before extension, in tokens.
      resonance: the rule by which features repeat exactly after whole tokens, after the scaling; a
        key of `rrope_jax.rope.resonance.RULES`. True is `nearest`, which rounds every wavelength
        (arXiv 2403.00071), and False is `none`; the two are kept as True and False.
      resonance_limit: features of a wavelength above it, in tokens, stay as they are under
        `nearest` and `coprime`; None for no limit.
      resonance_period: the largest period in tokens under `rational` and `designed`, which leave
        features of a longer wavelength as they are.
      resonance_length, resonance_near, resonance_tolerance: `designed` keeps far distances, from
        resonance_period to resonance_length, apart from the resonance_near nearest ones, changing
        wavelengths by at most this share.
      partial_rotary_factor: share of head_dim that is rotated; the rest passes through unchanged.
      attention_factor: multiplied into cos and sin; None uses the scaling's own value.
      beta_fast, beta_slow: ends of the `yarn` and `ntk_by_parts` ramp, in turns within L. Features
        above beta_fast are kept, those below beta_slow are interpolated.
      truncate: whether `yarn` rounds the ends of its ramp outward to whole feature indices.
      mscale, mscale_all_dim: DeepSeek's form of the `yarn` temperature; set both or neither.
      low_freq_factor, high_freq_factor: ends of the `llama3` ramp, in turns within L.
      short_factor, long_factor: `longrope` divisors, one per feature, for lengths up to L and
        beyond L.
      abf_theta: the larger base of `abf`; with it, theta has no effect.
      clipped_features: how many features, the slowest ones, `cope` slows down and `hardclip` stops.
      shortest_wavelength: of the fastest feature under `rope_id`, in tokens.
      position_temperature: the factor on queries that grows with their position, a key of
        `rrope_jax.rope.temperature.POSITION_TEMPERATURES`. None is `llama4` where
        llama_4_scaling_beta is set and `none` elsewhere; the two are kept as None.
      llama_4_scaling_beta: under `llama4`, queries at position p are multiplied by
        1 + llama_4_scaling_beta * ln(1 + floor(p / L)), see `query_temperature`.
      temperature_context: the L of the position temperature, in tokens; None is original_context.
      far_positions: the method by which tokens that are far apart get other positions for each
        other; a key of `rrope_jax.rope.far_positions.FAR_POSITIONS`.
      far_window: pairs of tokens at least this far apart are far.
      far_group: the tokens that share a far position under `self_extend`.
      far_context: the context w, in tokens, into which `jet_long` squeezes far positions: that of
        training.
      sliding_attention: the embedding of layers with a sliding window if they have another one, as
        in Gemma 3; a spec, or the `fields` of one. None if all layers have the same.

    Raises:
      ValueError: a field is out of range, missing, or not read by the scaling.
    """

    head_dim: int
    theta: float = 10000.0
    scaling: str = "none"
    factor: float | None = None
    original_context: int | None = None
    resonance: bool | str = False
    resonance_limit: int | None = None
    resonance_period: int | None = None
    resonance_length: int | None = None
    resonance_near: int = 1
    resonance_tolerance: float = 0.15
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
    abf_theta: float | None = None
    clipped_features: int | None = None
    shortest_wavelength: float = 32.0
    position_temperature: str | None = None
    llama_4_scaling_beta: float = 0.0
    temperature_context: int | None = None
    far_positions: str = "none"
    far_window: int | None = None
    far_group: int | None = None
    far_context: int | None = None
    sliding_attention: "RopeSpec | None" = None

    def __post_init__(self) -> None:
        for name in ("short_factor", "long_factor"):
            if isinstance(value := getattr(self, name), list):
                object.__setattr__(self, name, tuple(value))  # hashable
        check_method(self, "scaling", SCALINGS)
        if is_number(self.factor) and self.factor == 1 and "factor" in unread_fields(self.scaling):
            object.__setattr__(self, "factor", None)  # older files store 1
        check_fields(self, "scaling", SCALINGS)
        self._resolve_resonance()
        if self.position_temperature is None:
            object.__setattr__(self, "position_temperature", name_by_beta(self))
        check_method(self, "position_temperature", POSITION_TEMPERATURES)
        check_fields(self, "position_temperature", POSITION_TEMPERATURES)
        check_method(self, "far_positions", FAR_POSITIONS)
        check_fields(self, "far_positions", FAR_POSITIONS)
        check_ranges(self)
        if self.position_temperature == name_by_beta(self):  # as older files have it
            object.__setattr__(self, "position_temperature", None)
        if self.resonance:  # raises if a feature has no period
            for seq_len in (None, INT32_MAX):
                inv_freq = SCALINGS[self.scaling].inv_freq(self, seq_len)
                resonance.periods_of(self, resonance.wavelengths_of(inv_freq))
        self._resolve_sliding_attention()

    def _resolve_resonance(self) -> None:
        if not isinstance(self.resonance, bool | str):
            raise ValueError(
                f"resonance={self.resonance!r} must be True, False or the name of a rule: "
                f"{', '.join(resonance.RULES)}"
            )
        rule = resonance.rule_name(self.resonance)
        if rule not in resonance.RULES:
            raise ValueError(
                f"resonance={self.resonance!r} is unknown; choose one of "
                f"{', '.join(resonance.RULES)}, where True is nearest and False is none"
            )
        object.__setattr__(self, "resonance", rule)
        check_fields(self, "resonance", resonance.RULES)
        kept: dict[str, bool | str] = {"nearest": True, "none": False}  # as older files have it
        object.__setattr__(self, "resonance", kept.get(rule, rule))

    def _resolve_sliding_attention(self) -> None:
        other: Any = self.sliding_attention
        if isinstance(other, Mapping):
            other = RopeSpec(**other)
        if other is None:
            return
        if not isinstance(other, RopeSpec):
            raise ValueError(
                f"sliding_attention={other!r} must be a RopeSpec or the fields of one; leave it "
                "None if all layers have the same embedding"
            )
        if other.sliding_attention is not None or other.head_dim != self.head_dim:
            raise ValueError(
                f"sliding_attention must have head_dim={self.head_dim}, not {other.head_dim}, and "
                "no sliding_attention of its own: it is the embedding of other layers of the same "
                "model"
            )
        same = other == self.of("full_attention")
        object.__setattr__(self, "sliding_attention", None if same else other)

    def of(self, layer_type: str) -> "RopeSpec":
        """The embedding of the layers of one type, which describes nothing but these.

        Args:
          layer_type: `sliding_attention` or `full_attention`.
        """
        if layer_type == "sliding_attention" and self.sliding_attention is not None:
            return self.sliding_attention
        if self.sliding_attention is None:
            return self
        return dataclasses.replace(self, sliding_attention=None)

    def fields(self) -> dict[str, Any]:
        """The fields that determine the embedding, as JSON-ready values.

        Fields that the scaling does not read are left out, and so are those of other layers, of
        the position temperature and of far pairs if there are none; `factor` is resolved (see
        `extension`). `RopeSpec(**spec.fields())` equals `spec`.
        """
        unread = unread_by_method(self.scaling, self.resonance, self.far_positions)
        fields = {name: value for name, value in vars(self).items() if name not in unread}
        if fields.get("resonance_limit", 0) is None:  # older files do not have it
            del fields["resonance_limit"]
        if "factor" in fields:
            fields["factor"] = self.extension
        if not self.llama_4_scaling_beta:
            del fields["llama_4_scaling_beta"]
        for name in ("position_temperature", "temperature_context"):  # nor these
            if fields[name] is None:
                del fields[name]
        if self.far_positions == "none":
            del fields["far_positions"]
        other = fields.pop("sliding_attention")
        return fields if other is None else fields | {"sliding_attention": other.fields()}

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, RopeSpec):
            return NotImplemented
        return self.fields() == other.fields()

    def __hash__(self) -> int:
        return hash((*self.of("full_attention").fields().items(), self.sliding_attention))

    @property
    def rotary_dim(self) -> int:
        """The number of rotated dimensions per head, d."""
        if SCALINGS[self.scaling].rotates_all:
            return self.head_dim
        return int(self.head_dim * self.partial_rotary_factor)

    @property
    def extension(self) -> float:
        """`factor`, or 1 if it is not set."""
        return 1.0 if self.factor is None else self.factor

    def with_method(
        self, scaling: str, *, resonance: bool | str, far_positions: str = "none"
    ) -> "RopeSpec":
        """Returns this spec with another method, resetting the fields that it does not read.

        One set of fields (a factor, a context, a ramp) can thus describe all methods of a
        comparison.

        Raises:
          ValueError: the scaling is unknown, or needs a field that this spec leaves unset.
        """
        return spec_for_method(
            vars(self), scaling, resonance=resonance, far_positions=far_positions
        )


def unread_by_method(scaling: str, resonance: bool | str, far_positions: str) -> frozenset[str]:
    """The fields that a method does not read."""
    return unread_fields(scaling) | unread_by_rule(resonance) | unread_by_far(far_positions)


def spec_for_method(
    fields: Mapping[str, Any],
    scaling: str,
    *,
    resonance: bool | str,
    far_positions: str = "none",
) -> RopeSpec:
    """Builds the spec of one method from fields shared by several methods.

    Args:
      fields: RopeSpec fields; those that the method does not read are ignored.
      scaling, resonance, far_positions: the method.

    Raises:
      ValueError: the scaling is unknown, or a field it needs is missing or out of range.
    """
    unread = unread_by_method(scaling, resonance, far_positions)
    read = {name: fields[name] for name in fields.keys() - unread}
    method = {"scaling": scaling, "resonance": resonance, "far_positions": far_positions}
    return RopeSpec(**{**read, **method})
