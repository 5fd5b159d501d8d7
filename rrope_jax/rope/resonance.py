"""Resonance: every wavelength becomes a whole number of tokens (arXiv 2403.00071, Algorithm 1)."""

import math

import numpy as np
from numpy.typing import NDArray


def wavelengths_of(inv_freq: NDArray[np.float64]) -> NDArray[np.float64]:
    """Tokens per full turn, 2 pi / inv_freq; infinite for a feature that never turns."""
    with np.errstate(divide="ignore"):
        return 2 * math.pi / inv_freq


def round_wavelengths(wavelengths: NDArray[np.float64]) -> NDArray[np.float64]:
    """Rounds wavelengths to the nearest whole number of tokens.

    Rounding in float32 can pick the wrong integer for wavelengths above about 131,000 tokens, where
    neighboring float32 numbers are at least 1/64 apart. Hence the float64.

    Args:
      wavelengths: float64[d/2], tokens; infinite for features that never turn.

    Returns:
      float64[d/2], integers; infinite entries stay infinite.

    Raises:
      ValueError: a wavelength rounds to less than 2 tokens. A wavelength of 1 would make the
        feature constant, and 0 is not a rotation.
    """
    rounded = np.rint(wavelengths)
    if np.any(rounded < 2):
        index = int(np.argmin(rounded))
        raise ValueError(
            f"resonance=True rounds the wavelength of feature {index}, {wavelengths[index]:.4g} "
            f"tokens, to {int(rounded[index])}; it must stay at least 2 tokens. Use larger scaling "
            "factors for this feature or set resonance=False."
        )
    return rounded
