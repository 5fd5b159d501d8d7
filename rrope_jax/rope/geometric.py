"""Plain RoPE's frequencies, and the tables that change its base or take slow features out of it.

The functions are rows of `rrope_jax.rope.scalings.SCALINGS`, whose docstring defines the symbols.
None of them depends on the current length.
"""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

Float64Array = NDArray[np.float64]


def geometric(theta: float, dim: int) -> Float64Array:
    """b^(-2i/d) for i < d/2: Su et al., arXiv 2104.09864, section 3.2.2."""
    return 1.0 / theta ** (np.arange(0, dim, 2, dtype=np.float64) / dim)


def plain(spec: Any) -> Float64Array:
    """The frequencies of plain RoPE."""
    return geometric(spec.theta, spec.rotary_dim)


def none(spec: Any, seq_len: int | None) -> Float64Array:
    """Plain RoPE."""
    return plain(spec)


def nope(spec: Any, seq_len: int | None) -> Float64Array:
    """No position embedding: no feature turns (Kazemnejad et al., arXiv 2305.19466)."""
    return np.zeros(spec.rotary_dim // 2)


def abf(spec: Any, seq_len: int | None) -> Float64Array:
    """Adjusted base frequency, a larger base: Xiong et al., arXiv 2309.16039, section 2.1."""
    return geometric(spec.abf_theta, spec.rotary_dim)


def hardclip(spec: Any, seq_len: int | None) -> Float64Array:
    """The `clipped_features` slowest features do not turn: the baseline of arXiv 2602.05258."""
    inv_freq = plain(spec)
    inv_freq[-spec.clipped_features :] = 0.0
    return inv_freq


def cope(spec: Any, seq_len: int | None) -> Float64Array:
    """CoPE: the slowest features times a falling half-cosine, as in hrlics/CoPE.

    Li et al., arXiv 2602.05258. Of the n = `clipped_features` slowest features, the fastest keeps
    its frequency and the slowest does not turn; the k-th gets (1 + cos(pi k / (n - 1))) / 2 of it.
    """
    inv_freq = plain(spec)
    angles = np.linspace(0.0, math.pi, spec.clipped_features)
    inv_freq[-spec.clipped_features :] *= (1 + np.cos(angles)) / 2
    return inv_freq


def rope_id(spec: Any, seq_len: int | None) -> Float64Array:
    """RoPE-ID: half of the features turn, all of them at least twice within L; the others do not.

    Wertheimer et al., arXiv 2603.18017: in the half-split layout, the first and third quarters of a
    head turn, between one turn in `shortest_wavelength` tokens (32 in the paper) and two in L.
    Wavelengths in between are geometric here. The temperature by length that the paper adds is not
    part of this table.
    """
    inv_freq = np.zeros(spec.rotary_dim // 2)
    turning = inv_freq.size // 2
    wavelengths = np.geomspace(spec.shortest_wavelength, spec.original_context / 2, turning)
    inv_freq[:turning] = 2 * math.pi / wavelengths
    return inv_freq
