"""Factor lists: arbitrary frequencies as per-feature divisors of plain RoPE's."""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from rrope_jax.rope.frequencies import frequencies
from rrope_jax.rope.resonance import rule_of_list
from rrope_jax.rope.scalings import NEVER_TURNS, SCALINGS
from rrope_jax.rope.spec import RopeSpec
from rrope_jax.rope.temperature import counts_in_original_context

_TOLERANCE = 1e-5  # for factors stored as float32


def as_factor_lists(spec: RopeSpec, context: int) -> RopeSpec:
    """Rewrites a spec as an equivalent `longrope` spec, with one factor per feature.

    Args:
      spec: the embedding; a `longrope` spec keeps its own context and factor, and one with a
        temperature that grows with the position its context. That of layers with a sliding window
        stays as it is.
      context: the length in tokens beyond which `long_factor` applies.

    Raises:
      ValueError: the frequencies change with every length, as those of `dynamic_ntk`.
    """
    if (fixed := SCALINGS[spec.scaling].at_one_length) is not None:
        raise ValueError(
            f"scaling={spec.scaling!r} has other frequencies at every length, so there is no list "
            f"of them; convert with scaling={fixed!r} and a fixed factor"
        )
    factor: float | None = 1.0
    if spec.scaling == "longrope" and spec.original_context is not None:
        factor, context = spec.factor, spec.original_context
    if counts_in_original_context(spec) and spec.original_context is not None:
        context = spec.original_context  # both lists are the same
    plain = frequencies(RopeSpec(head_dim=spec.rotary_dim, theta=spec.theta)).inv_freq

    def factors(seq_len: int) -> tuple[float, ...]:
        inv_freq = frequencies(spec, seq_len).inv_freq
        return tuple(
            float(before / after) if after else NEVER_TURNS
            for before, after in zip(plain, inv_freq, strict=True)
        )

    rotates_all = SCALINGS[spec.scaling].rotates_all
    return RopeSpec(
        head_dim=spec.head_dim,
        theta=spec.theta,
        scaling="longrope",
        factor=factor,
        original_context=context,
        **rule_of_list(spec),
        partial_rotary_factor=1.0 if rotates_all else spec.partial_rotary_factor,
        attention_factor=frequencies(spec).attention_factor,
        short_factor=factors(context),
        long_factor=factors(context + 1),
        position_temperature=spec.position_temperature,
        llama_4_scaling_beta=spec.llama_4_scaling_beta,
        temperature_context=spec.temperature_context,
        sliding_attention=spec.sliding_attention,
    )


def counting_in_original_context(spec: RopeSpec) -> RopeSpec:
    """Rewrites a spec so that its position temperature counts in `original_context`.

    Other runtimes have no `temperature_context`. Where the scaling has another original context,
    the result is a `longrope` spec with two equal lists, of which this length chooses one.

    Args:
      spec: the embedding, with frequencies that do not depend on the length; a spec without a
        `temperature_context` is returned as it is.
    """
    context = spec.temperature_context
    if context is None:
        return spec
    if context != spec.original_context:
        listed = as_factor_lists(spec, context)
        spec = dataclasses.replace(listed, factor=1.0, original_context=context)
    return dataclasses.replace(spec, temperature_context=None)


def llama3_context(factors: Sequence[float], *, theta: float) -> int | None:
    """Recovers the original context of Llama 3.1's scaling from its list of factors.

    llama.cpp stores Llama 3's scaling as a list of factors without the original context. Any
    feature on the ramp, which spans 1 to 4 turns within that context, determines it.

    Args:
      factors: d/2 numbers by which the plain frequencies are divided.
      theta: the base of the plain frequencies.

    Returns:
      A length in tokens; None if the list is not from this scaling or has no feature on the ramp.
    """
    divided = np.asarray(factors, np.float64)
    factor = float(divided.max())
    ramp = (divided > 1 + 1e-4) & (divided < factor * (1 - 1e-4))
    if not (1 < factor < 1e6 and ramp.any() and divided.min() > 1 - _TOLERANCE):
        return None
    head_dim = 2 * divided.size
    plain = frequencies(RopeSpec(head_dim=head_dim, theta=theta)).inv_freq
    keep = (1 / divided[ramp] - 1 / factor) / (1 - 1 / factor)
    turns = 1 + keep * 3
    context = round(float(np.median(turns * 2 * math.pi / plain[ramp])))
    if not 1 <= context < 2**31:
        return None
    llama3 = RopeSpec(
        head_dim=head_dim,
        theta=theta,
        scaling="llama3",
        factor=factor,
        original_context=context,
    )
    same = np.allclose(plain / frequencies(llama3).inv_freq, divided, rtol=_TOLERANCE, atol=0)
    return context if same else None
