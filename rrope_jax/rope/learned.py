"""Learned frequencies: a logarithm for each feature, added to those of a spec's table.

Training learns r, the logarithm of a feature's frequency over that of its spec. At r = 0 the
embedding is that of the spec, bit for bit. The angle of training is the exact phase of the spec
plus the float32 angle p f (exp(r) - 1) at position p and frequency f. So its error, 3e-7 of that
angle, comes only from how far the frequencies have moved, and its gradient is that of the
exponential. Below the training length this is far below the rounding of activations; beyond it,
and in every other runtime, the learned frequencies are a spec with one factor per feature, whose
phases are exact.

Letters: F features, d/2 of them.
"""

import dataclasses
import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from rrope_jax.rope.factor_lists import as_factor_lists
from rrope_jax.rope.frequencies import frequencies
from rrope_jax.rope.resonance import RULE_FIELDS
from rrope_jax.rope.rotary import PhaseTable, cos_sin_from_table
from rrope_jax.rope.scalings import SCALINGS
from rrope_jax.rope.spec import RopeSpec

# No frequency is learned above half a turn per token: a faster feature looks like a slower one.
_FASTEST = math.pi


def unrounded(spec: RopeSpec) -> RopeSpec:
    """The spec without a rule of resonance, whose table is where learning starts.

    Raises:
      ValueError: the frequencies change with every length, as those of `dynamic_ntk`, or far pairs
        have other positions.
    """
    if spec.far_positions != "none":
        raise ValueError(
            f"far_positions={spec.far_positions!r} goes with the frequencies that a model was "
            "trained with; learn them without it"
        )
    if (fixed := SCALINGS[spec.scaling].at_one_length) is not None:
        raise ValueError(
            f"scaling={spec.scaling!r} has other frequencies at every length, so they cannot be "
            f"learned; use scaling={fixed!r} with a fixed factor"
        )
    return spec.with_method(spec.scaling, resonance=False)


def learned_cos_sin(
    table: PhaseTable,
    log_ratio_F: ArrayLike,
    positions: ArrayLike,
    *,
    fraction: ArrayLike | None = None,
) -> tuple[jax.Array, jax.Array]:
    """`cos_sin_from_table` at learned frequencies, differentiable in their logarithms.

    Args:
      table: the table of the `unrounded` spec.
      log_ratio_F: float32[F], or longer: what no feature belongs to is ignored.
      positions, fraction: as for `cos_sin`.

    Returns:
      cos and sin, float32[..., F] each.
    """
    cos, sin = cos_sin_from_table(table, positions, fraction=fraction)
    inv_freq_F = 2 * math.pi * _turns_per_token(table)
    limit_F = jnp.maximum(jnp.log(_FASTEST / inv_freq_F), 0)
    ratio_F = jnp.minimum(jnp.asarray(log_ratio_F)[: inv_freq_F.size], limit_F)
    position = jnp.asarray(positions, jnp.float32)
    if fraction is not None:
        position = position + fraction
    angle = position[..., None] * (inv_freq_F * jnp.expm1(ratio_F))
    cos_moved, sin_moved = jnp.cos(angle), jnp.sin(angle)
    return cos * cos_moved - sin * sin_moved, sin * cos_moved + cos * sin_moved


def learned_spec(spec: RopeSpec, log_ratios: Mapping[str, ArrayLike], context: int) -> RopeSpec:
    """The embedding with learned frequencies, rounded by the spec's rule of resonance.

    The logarithms may have been learned with another spec, such as one that is not scaled: they
    move the frequencies of this one by the same ratios.

    Args:
      spec: the embedding to change.
      log_ratios: `full_attention` or `sliding_attention`, or both -> the logarithms of these
        layers, as for `learned_cos_sin`.
      context: the context length in tokens, for a spec that has none.

    Returns:
      A `longrope` spec, with the attention factor of `spec`. If there is one layer type, it
      describes nothing but these layers.

    Raises:
      ValueError: the frequencies change with every length, or the rule has no period for a feature.
    """
    by_type = {
        name: _learned_spec(spec.of(name), log_ratio_F, context)
        for name, log_ratio_F in log_ratios.items()
    }
    main = by_type.get("full_attention") or by_type["sliding_attention"]
    return dataclasses.replace(main, sliding_attention=by_type.get("sliding_attention"))


def _learned_spec(spec: RopeSpec, log_ratio_F: ArrayLike, context: int) -> RopeSpec:
    plain = as_factor_lists(unrounded(spec), context)
    theta_only = RopeSpec(head_dim=plain.rotary_dim, theta=plain.theta)
    inv_freq_F = frequencies(theta_only).inv_freq
    log_ratio_F = np.asarray(log_ratio_F, np.float64)[: inv_freq_F.size]

    def moved(factors: tuple[float, ...] | None) -> tuple[float, ...]:
        factor_F = np.asarray(factors, np.float64)
        limit_F = np.maximum(np.log(_FASTEST * factor_F / inv_freq_F), 0)
        moved_F: list[float] = (factor_F / np.exp(np.minimum(log_ratio_F, limit_F))).tolist()
        return tuple(moved_F)

    return dataclasses.replace(
        plain,
        short_factor=moved(plain.short_factor),
        long_factor=moved(plain.long_factor),
        **{name: getattr(spec, name) for name in ("resonance", *RULE_FIELDS)},
    )


def _turns_per_token(table: PhaseTable) -> jax.Array:
    """The frequencies of a table, float32[F]."""
    whole, high, low = (
        jnp.asarray(part).astype(jnp.float32) for part in (table.whole, table.high, table.low)
    )
    return whole + high * 2.0**-32 + low * 2.0**-64
