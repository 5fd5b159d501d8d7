"""What a list of factors on plain RoPE's frequencies says of where it comes from."""

import math
from collections.abc import Sequence

import numpy as np

from rrope_jax.rope.frequencies import frequencies
from rrope_jax.rope.spec import RopeSpec

_TOLERANCE = 1e-5  # of factors that were stored as float32


def llama3_context(factors: Sequence[float], *, theta: float) -> int | None:
    """The original context of Llama 3.1's scaling, if that is what a list of factors is.

    llama.cpp stores Llama 3's scaling as such a list and drops the context that it was made for,
    but a feature on its ramp, from 1 to 4 turns within that context, tells it.

    Args:
      factors: d/2 numbers by which the plain frequencies are divided.
      theta: the base of the plain frequencies.

    Returns:
      A length in tokens; None where the list is another, or has no feature on the ramp.
    """
    divided = np.asarray(factors, np.float64)
    factor = float(divided.max())
    ramp = (divided > 1 + 1e-4) & (divided < factor * (1 - 1e-4))
    if not (1 < factor < 1e6 and ramp.any() and divided.min() > 1 - _TOLERANCE):
        return None
    head_dim = 2 * divided.size
    plain = frequencies(RopeSpec(head_dim=head_dim, theta=theta)).inv_freq
    kept = (1 / divided[ramp] - 1 / factor) / (1 - 1 / factor)
    turns = 1 + kept * 3
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
