"""The rotation frequencies of a `RopeSpec`, in float64 on the host."""

import dataclasses
import functools
import math

from rrope_jax.rope import resonance
from rrope_jax.rope.scalings import SCALINGS, Float64Array
from rrope_jax.rope.spec import RopeSpec


@dataclasses.dataclass(frozen=True)
class Frequencies:
    """The frequencies of all features of a spec.

    Attributes:
      inv_freq: float64[d/2], radians per token; 0 for a feature that never turns.
      wavelengths: float64[d/2], tokens per full turn, 2 pi / inv_freq; integers under resonance,
        infinite for a feature that never turns.
      attention_factor: multiplied into cos and sin, so its square scales the attention logits.
    """

    inv_freq: Float64Array
    wavelengths: Float64Array
    attention_factor: float


@functools.lru_cache(maxsize=512)
def frequencies(spec: RopeSpec, seq_len: int | None = None) -> Frequencies:
    """Computes the frequencies of a spec; resonance comes after the scaling (Algorithm 1).

    Args:
      spec: the embedding.
      seq_len: the current length in tokens. Only `dynamic_ntk` (its stretch) and `longrope` (its
        choice of list) depend on it; None means the original context.

    Returns:
      Read-only float64 arrays; see `Frequencies`.
    """
    scaling = SCALINGS[spec.scaling]
    inv_freq = scaling.inv_freq(spec, seq_len)
    wavelengths = resonance.wavelengths_of(inv_freq)
    if spec.resonance:
        wavelengths = resonance.round_wavelengths(wavelengths)
        inv_freq = 2 * math.pi / wavelengths
    attention_factor = spec.attention_factor
    if attention_factor is None:
        attention_factor = scaling.temperature(spec)
    inv_freq.setflags(write=False)
    wavelengths.setflags(write=False)
    return Frequencies(inv_freq, wavelengths, float(attention_factor))
