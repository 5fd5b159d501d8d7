"""Exact rotary phases and the rotation itself.

A float32 product position * inv_freq loses the phase as positions grow (the error of the cosine
is 2e-4 at 4K tokens and 0.06 at 1M). Here a phase is an integer: the frequency in turns per token
is a 64-bit binary fraction computed on the host, and 32-bit unsigned multiplication yields position
times frequency modulo one turn. The result is within 2^-31 turns of the float64 frequency's phase
at every int32 position, costs a few integer operations per table entry, needs no 64-bit types on
the device, and is bit-identical on every backend up to the final cosine.
"""

import functools
import math
from fractions import Fraction
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from rrope_jax.rope.fields import INT32_MAX
from rrope_jax.rope.frequencies import frequencies
from rrope_jax.rope.spec import RopeSpec
from rrope_jax.rope.temperature import QueryTemperature

_TURN = Fraction("6.283185307179586476925286766559005768394")  # 2 pi, finer than a float64


class PhaseTable(NamedTuple):
    """A spec as arrays: everything that a program needs to compute cos and sin.

    Embeddings with equal rotary_dim have tables of equal shape. A compiled program can therefore
    take a table as an argument, or several of them stacked under `jax.vmap`.

    Attributes:
      whole: uint32[d/2], whole turns per token; nonzero only for wavelengths of one token or less.
      high: uint32[d/2], the first 32 fractional bits of the turns per token.
      low: uint32[d/2], the next 32 fractional bits.
      period: int32[d/2], the tokens after which the feature repeats; 0 if it does not, or not
        within the int32 range.
      attention_factor: float32[], multiplied into cos and sin.
      temperature: the factor on queries by their position, which cos and sin do not contain; None
        where it is not asked for.
    """

    whole: ArrayLike
    high: ArrayLike
    low: ArrayLike
    period: ArrayLike
    attention_factor: ArrayLike
    temperature: QueryTemperature | None = None


@functools.lru_cache(maxsize=512)
def phase_table(spec: RopeSpec, seq_len: int | None = None) -> PhaseTable:
    """Computes the `PhaseTable` of a spec on the host, as NumPy arrays.

    Args:
      spec: the embedding.
      seq_len: the current length, for the scalings that depend on it (see `frequencies`).
    """
    table = frequencies(spec, seq_len)
    turns, periods = [], []  # turns per token in units of 2^-64
    features = zip(table.inv_freq, table.periods.tolist(), table.turns.tolist(), strict=True)
    for inv_freq, period, whole_turns in features:
        if period:
            turns.append(round(Fraction(whole_turns << 64, period)))
            periods.append(period if period <= INT32_MAX else 0)
        else:
            turns.append(round(Fraction(float(inv_freq)) / _TURN * (1 << 64)))
            periods.append(0)
    whole, high, low = (
        np.array([value >> shift & 0xFFFFFFFF for value in turns], np.uint32)
        for shift in (64, 32, 0)
    )
    return PhaseTable(
        whole, high, low, np.array(periods, np.int32), np.float32(table.attention_factor)
    )


def _multiply_high(a: jax.Array, b: jax.Array) -> jax.Array:
    """The upper 32 bits of the 64-bit product of two uint32 arrays, in 16-bit pieces."""
    a_low, a_high = a & 0xFFFF, a >> 16
    b_low, b_high = b & 0xFFFF, b >> 16
    middle = a_high * b_low + (a_low * b_low >> 16)
    carry = a_low * b_high + (middle & 0xFFFF)
    return a_high * b_high + (middle >> 16) + (carry >> 16)


def _cos_sin_of_turns(turns: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Cosine and sine, float32, of an angle given as int32 in units of 2^-32 turns.

    The nearest quarter turn is first removed in integers, so the float32 angle is at most pi/4 and
    its rounding error at most 2^-25.
    """
    quarter = turns + (1 << 29) >> 30
    rest = turns - (quarter << 30)
    angle = rest.astype(jnp.float32) * jnp.float32(2 * math.pi / 2**32)
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    swap = (quarter & 1) == 1
    cos, sin = jnp.where(swap, sin, cos), jnp.where(swap, cos, sin)
    # quarters 0..3 of the circle have (cos, sin) signs ++, -+, --, +-
    cos = jnp.where(((quarter + 1) & 2) == 2, -cos, cos)
    sin = jnp.where((quarter & 2) == 2, -sin, sin)
    return cos, sin


def cos_sin(
    spec: RopeSpec,
    positions: ArrayLike,
    *,
    fraction: ArrayLike | None = None,
    seq_len: int | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Computes cos and sin at arbitrary positions, including the attention factor.

    The error against exact arithmetic on the float64 frequencies is below 2e-7 times the attention
    factor at every int32 position, with or without a fraction. Under resonance, positions that
    differ by a multiple of a feature's period give bit-identical values for that feature.

    Args:
      spec: the embedding; static under jit.
      positions: int[...], whole positions in the int32 range; may be traced, unordered, repeated
        or negative (packed segments, decode steps, sampled positions).
      fraction: float[...] in [0, 1), broadcastable to positions and added to them, for position
        sampling with fractional steps.
      seq_len: the current length, for the scalings that depend on it (see `frequencies`).

    Returns:
      cos and sin, float32[..., d/2] each, where d is `spec.rotary_dim`.

    Raises:
      TypeError: positions are not integers.
    """
    return cos_sin_from_table(phase_table(spec, seq_len), positions, fraction=fraction)


def cos_sin_from_table(
    table: PhaseTable, positions: ArrayLike, *, fraction: ArrayLike | None = None
) -> tuple[jax.Array, jax.Array]:
    """`cos_sin` from a `PhaseTable`, whose arrays may be traced."""
    positions = jnp.asarray(positions)
    if not jnp.issubdtype(positions.dtype, jnp.integer):
        raise TypeError(
            f"positions have dtype {positions.dtype}; they must be integers (pass the part after "
            "the point as fraction=)"
        )
    position = positions.astype(jnp.int32)[..., None]
    period, high = jnp.asarray(table.period), jnp.asarray(table.high)
    wrapped = jnp.mod(position, jnp.where(period == 0, INT32_MAX, period))
    position = jnp.where(period == 0, position, wrapped)
    magnitude = jnp.abs(position).astype(jnp.uint32)
    product = magnitude * high + _multiply_high(magnitude, jnp.asarray(table.low))
    turns = jax.lax.bitcast_convert_type(product, jnp.int32)
    turns = jnp.where(position < 0, -turns, turns)
    if fraction is not None:
        # via int32, since not every backend converts floats of 2^31 or more to uint32
        part = (jnp.asarray(fraction, jnp.float32)[..., None] * 2.0**31).astype(jnp.int32)
        part = part.astype(jnp.uint32) << 1  # in units of 2^-32 tokens
        product = part * jnp.asarray(table.whole) + _multiply_high(part, high)
        turns = turns + jax.lax.bitcast_convert_type(product, jnp.int32)
    cos, sin = _cos_sin_of_turns(turns)
    return cos * table.attention_factor, sin * table.attention_factor


def rotate(
    x_BTHD: jax.Array, cos: jax.Array, sin: jax.Array, *, scale: float | jax.Array = 1.0
) -> jax.Array:
    """Rotates the pairs (i, i + d/2) of every head (the half-split layout of LLaMA in HF).

    Args:
      x_BTHD: float[..., T, H, D], queries or keys.
      cos: float32[..., T, d/2] from `cos_sin`; leading axes broadcast against x's. With d < D
        (partial rotary) the last D - d dimensions are not rotated.
      sin: like cos.
      scale: factor on all D dimensions, such as the attention scale for queries; a float, or
        float32 that broadcasts against x.

    Returns:
      An array of the shape and dtype of x_BTHD, computed in float32 and rounded once at the end.

    Raises:
      ValueError: the tables are wider than a head.
    """
    half = cos.shape[-1]
    head_dim = x_BTHD.shape[-1]
    if 2 * half > head_dim:
        raise ValueError(
            f"the tables rotate {2 * half} dimensions but heads have {head_dim}; build them from "
            "a spec with this head_dim"
        )
    cos, sin = cos[..., None, :], sin[..., None, :]
    first = x_BTHD[..., :half].astype(jnp.float32)
    second = x_BTHD[..., half : 2 * half].astype(jnp.float32)
    parts = [first * cos - second * sin, second * cos + first * sin]
    if 2 * half < head_dim:
        parts.append(x_BTHD[..., 2 * half :].astype(jnp.float32))
    rotated_BTHD = jnp.concatenate(parts, axis=-1)
    if isinstance(scale, jax.Array) or scale != 1:
        rotated_BTHD = rotated_BTHD * scale
    return rotated_BTHD.astype(x_BTHD.dtype)
