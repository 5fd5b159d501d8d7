"""The rotation frequencies of a `RopeSpec`, in float64 on the host."""

import dataclasses
import functools
import math

import numpy as np
from numpy.typing import NDArray

from rrope_jax.rope import resonance
from rrope_jax.rope.geometric import Float64Array
from rrope_jax.rope.scalings import SCALINGS
from rrope_jax.rope.spec import RopeSpec

Int64Array = NDArray[np.int64]


@dataclasses.dataclass(frozen=True)
class Frequencies:
    """The frequencies of all features of a spec.

    Attributes:
      inv_freq: float64[d/2], radians per token; 0 for a feature that never turns.
      wavelengths: float64[d/2], tokens per full turn, 2 pi / inv_freq; infinite for a feature that
        never turns.
      periods: int64[d/2], the number of tokens after which a feature repeats exactly, by the rule
        of resonance; 0 for a feature that does not.
      turns: int64[d/2], how often it turns within them, so that wavelengths = periods / turns; 0
        for a feature that does not repeat.
      attention_factor: multiplied into cos and sin, so its square scales the attention logits.
    """

    inv_freq: Float64Array
    wavelengths: Float64Array
    periods: Int64Array
    turns: Int64Array
    attention_factor: float


@functools.lru_cache(maxsize=512)
def frequencies(spec: RopeSpec, seq_len: int | None = None) -> Frequencies:
    """Computes the frequencies of a spec; resonance comes after the scaling (Algorithm 1).

    Args:
      spec: the embedding.
      seq_len: the current length in tokens. Only `dynamic_ntk` (its stretch), `dynamic_yarn` (its
        factor and temperature) and `longrope` (its choice of list) depend on it; None means the
        original context.

    Returns:
      Read-only arrays; see `Frequencies`.
    """
    scaling = SCALINGS[spec.scaling]
    inv_freq = scaling.inv_freq(spec, seq_len)
    wavelengths = resonance.wavelengths_of(inv_freq)
    found = resonance.periods_of(spec, wavelengths)
    periods, turns = np.array(found, np.int64).reshape(-1, 2).T.copy()
    repeats = periods > 0
    wavelengths[repeats] = periods[repeats] / turns[repeats]
    inv_freq = np.array(inv_freq)
    inv_freq[repeats] = 2 * math.pi * turns[repeats] / periods[repeats]
    attention_factor = spec.attention_factor
    if attention_factor is None:
        attention_factor = scaling.temperature(spec, seq_len)
    for array in (inv_freq, wavelengths, periods, turns):
        array.setflags(write=False)
    return Frequencies(inv_freq, wavelengths, periods, turns, float(attention_factor))
