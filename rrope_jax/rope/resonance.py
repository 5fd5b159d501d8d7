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

    The rounding is done in float64: in float32 it picks another integer for wavelengths above
    about 131,000 tokens, because neighboring float32 numbers there are at least 1/64 apart and
    the wavelength itself is already off by that.

    Args:
      wavelengths: float64[d/2], tokens; infinite entries (features that never turn) stay so.

    Returns:
      float64[d/2], whole numbers.

    Raises:
      ValueError: a wavelength rounds to less than 2 tokens. One token per turn would make the
        feature constant, and no token per turn is not a rotation.
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
