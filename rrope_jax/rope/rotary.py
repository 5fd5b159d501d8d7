"""Exact rotary phases and the rotation itself.

A float32 product position * inv_freq loses the phase as positions grow (the error of the cosine
is 2e-4 at 4K tokens and 0.06 at 1M). Here a phase is an integer: the frequency in turns per token
is a 64-bit binary fraction computed on the host, and position times frequency modulo one turn is
what 32-bit unsigned multiplication leaves. This is exact to 2^-32 turns at every int32 position,
costs a few integer operations per table entry, needs no 64-bit types on the device, and gives the
same bits on every backend up to the final cosine.
"""

import functools
import math
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from rrope_jax.rope.frequencies import frequencies

if TYPE_CHECKING:
    from jax.typing import ArrayLike

    from rrope_jax.rope.spec import RopeSpec

_INT32_MAX = 2**31 - 1


@functools.lru_cache(maxsize=512)
def _turns_per_token(
    spec: "RopeSpec", seq_len: int | None
) -> tuple[NDArray[np.uint32], NDArray[np.uint32], NDArray[np.int32]]:
    """High and low words of the 64-bit fraction of a turn per token, and the integer periods.

    A period of 0 marks a feature that no int32 position wraps around exactly: one that is not
    resonant, or whose wavelength exceeds the int32 range.
    """
    table = frequencies(spec, seq_len)
    fractions, periods = [], []
    for inv_freq, wavelength in zip(table.inv_freq, table.wavelengths, strict=True):
        if spec.resonance and math.isfinite(wavelength):
            period = int(wavelength)
            fractions.append(((1 << 65) // period + 1) // 2 % (1 << 64))
            periods.append(period if period <= _INT32_MAX else 0)
        else:
            # float64 times a power of two is exact, and so is the conversion to int
            fractions.append(int(float(inv_freq) / (2 * math.pi) * 2.0**64) % (1 << 64))
            periods.append(0)
    high = np.array([fraction >> 32 for fraction in fractions], np.uint32)
    low = np.array([fraction & 0xFFFFFFFF for fraction in fractions], np.uint32)
    return high, low, np.array(periods, np.int32)


def _multiply_high(a: jax.Array, b: jax.Array) -> jax.Array:
    """The upper 32 bits of the 64-bit product of two uint32 arrays, in 16-bit pieces."""
    a_low, a_high = a & 0xFFFF, a >> 16
    b_low, b_high = b & 0xFFFF, b >> 16
    middle = a_high * b_low + (a_low * b_low >> 16)
    carry = a_low * b_high + (middle & 0xFFFF)
    return a_high * b_high + (middle >> 16) + (carry >> 16)


def _cos_sin_of_turns(turns: jax.Array) -> tuple[jax.Array, jax.Array]:
    """cos and sin, float32, of an angle given as int32 in units of 2^-32 turns.

    The nearest quarter turn is taken out in integers first, so the float32 angle is at most pi/4
    and its rounding error at most 2^-25.
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
    spec: "RopeSpec",
    positions: "ArrayLike",
    *,
    fraction: "ArrayLike | None" = None,
    seq_len: int | None = None,
) -> tuple[jax.Array, jax.Array]:
    """The rotation tables at any positions, with the attention factor multiplied in.

    The error against exact arithmetic is below 3e-7 times the attention factor at every int32
    position. Under resonance, positions that differ by a multiple of a feature's wavelength give
    that feature the same bits.

    Args:
      spec: the embedding; static under jit.
      positions: int[...], whole positions in the int32 range; may be traced, unordered, repeated
        or negative (packed segments, decode steps, sampled positions).
      fraction: float[...] in [0, 1), broadcastable to positions: added to them, for position
        sampling with fractional steps.
      seq_len: the current length, for the scalings that depend on it (see `frequencies`).

    Returns:
      cos and sin, float32[..., d/2] each, where d is `spec.rotary_dim`.

    Raises:
      TypeError: positions are not integers.
    """
    positions = jnp.asarray(positions)
    if not jnp.issubdtype(positions.dtype, jnp.integer):
        raise TypeError(
            f"positions have dtype {positions.dtype}; they must be integers (pass the part after "
            "the point as fraction=)"
        )
    position = positions.astype(jnp.int32)[..., None]
    high, low, period = _turns_per_token(spec, seq_len)
    if np.any(period):
        wrapped = jnp.mod(position, np.where(period == 0, _INT32_MAX, period))
        position = wrapped if np.all(period) else jnp.where(period == 0, position, wrapped)
    magnitude = jnp.abs(position).astype(jnp.uint32)
    product = magnitude * high + _multiply_high(magnitude, jnp.asarray(low))
    turns = jax.lax.bitcast_convert_type(product, jnp.int32)
    turns = jnp.where(position < 0, -turns, turns)
    if fraction is not None:
        step = np.asarray(high, np.float64) / 2**32
        # split off the sign bit: a step of up to half a turn fills the whole int32 range
        part = jnp.asarray(fraction, jnp.float32)[..., None] * step.astype(np.float32)
        turns = turns + jnp.round(part * 2.0**31).astype(jnp.int32) * 2
    cos, sin = _cos_sin_of_turns(turns)
    factor = frequencies(spec, seq_len).attention_factor
    return cos * jnp.float32(factor), sin * jnp.float32(factor)


def rotate(x_BTHD: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """Rotates the pairs (i, i + d/2) of every head (the half-split layout of LLaMA in HF).

    Args:
      x_BTHD: float[..., T, H, D], queries or keys.
      cos, sin: float32[..., T, d/2] from `cos_sin`; leading axes broadcast against x's. With
        d < D (partial rotary) the last D - d dimensions pass unchanged.

    Returns:
      Like x_BTHD, in its dtype; computed in float32, rounded once at the end.

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
    rotated = [first * cos - second * sin, second * cos + first * sin]
    parts = [part.astype(x_BTHD.dtype) for part in rotated]
    if 2 * half < head_dim:
        parts.append(x_BTHD[..., 2 * half :])
    return jnp.concatenate(parts, axis=-1)
