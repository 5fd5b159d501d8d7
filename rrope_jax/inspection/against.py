"""Compares the frequencies of another implementation with those of a checkpoint."""

import dataclasses
import math
import os
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rrope_jax.inspection.positions import Positions, unscaled
from rrope_jax.io.stores import is_store
from rrope_jax.rope import RopeSpec, frequencies

# Frequencies in float32, computed by a power in float32, are this near to exact ones.
_CLOSE = 1e-5


@dataclasses.dataclass(frozen=True)
class Comparison:
    """A vector of frequencies beside those of one layer type.

    Attributes:
      same: whether all are equal within 1e-5, the error of a computation in float32.
      largest_difference: the largest relative difference of a frequency.
      feature: the index of that frequency.
      angle: by how much the angle of a feature is off at most, in radians, at the last position of
        the context; None if the context is not known.
      is_also: what the vector is instead, if that was recognized.
    """

    same: bool
    largest_difference: float
    feature: int
    angle: float | None
    is_also: str | None


def load(path: str | os.PathLike[str]) -> NDArray[np.float64]:
    """Reads a vector of frequencies from an .npy file.

    A vector of twice the length, with the frequencies of both halves of a head, is cut.

    Raises:
      ValueError: the file is not one, or does not hold a vector of finite numbers >= 0.
    """
    here = os.fspath(path)
    if is_store(here):
        from rrope_jax.io.local_copies import file_here  # late, as it waits for Orbax

        here = file_here(here)
    try:
        array: Any = np.load(here, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        reason = getattr(error, "strerror", None) or str(error).split(";")[0]
        raise ValueError(f"{path} cannot be read as .npy: {reason}") from None
    if not isinstance(array, np.ndarray) or array.ndim != 1 or array.dtype.kind not in "fiu":
        what = f"{array.dtype}{list(array.shape)}" if isinstance(array, np.ndarray) else "several"
        raise ValueError(f"{path} holds {what}, and has to hold a vector of frequencies")
    vector: NDArray[np.float64] = array.astype(np.float64)
    if not (np.isfinite(vector).all() and (vector >= 0).all()):
        raise ValueError(f"{path} has numbers that are not frequencies (finite and >= 0)")
    half = vector.size // 2
    if vector.size % 2 == 0 and half and np.array_equal(vector[:half], vector[half:]):
        return vector[:half]
    return vector


def compare(
    vector: NDArray[np.float64], positions: Positions, layer_type: str
) -> Comparison | None:
    """Compares a vector of frequencies with the embedding of one layer type.

    Returns:
      The comparison; None if these layers do not rotate.

    Raises:
      ValueError: the vector does not have one frequency for each feature.
    """
    spec = positions.by_type[layer_type].rope
    if spec is None:
        return None
    ours = _frequencies(spec, positions.context)
    if vector.shape != ours.shape:
        raise ValueError(
            f"it has {vector.size} frequencies, and {layer_type} has {ours.size} features"
        )
    differences = _relative(vector, ours)
    feature = int(np.argmax(differences))
    same = bool(differences[feature] <= _CLOSE)
    angle = None
    if positions.context is not None:
        angle = float(np.max(np.abs(vector - ours)) * (positions.context - 1))
    return Comparison(
        same=same,
        largest_difference=float(differences[feature]),
        feature=feature,
        angle=angle,
        is_also=None if same else _recognize(vector, spec, positions, layer_type),
    )


def _frequencies(spec: RopeSpec, seq_len: int | None) -> NDArray[np.float64]:
    return frequencies(spec, seq_len).inv_freq


def _relative(theirs: NDArray[np.float64], ours: NDArray[np.float64]) -> NDArray[np.float64]:
    scale = np.where(ours == 0, 1.0, ours)
    return np.abs(theirs - ours) / scale


def _recognize(
    vector: NDArray[np.float64], spec: RopeSpec, positions: Positions, layer_type: str
) -> str | None:
    """Names what a vector is, among what runtimes are known to compute instead."""

    def is_near(ours: NDArray[np.float64]) -> bool:
        return ours.shape == vector.shape and bool(np.max(_relative(vector, ours)) <= _CLOSE)

    ours = _frequencies(spec, positions.context)
    if spec.scaling != "none" and is_near(_frequencies(unscaled(spec), None)):
        return "this embedding without its scaling"
    if is_near(_frequencies(spec, None)):
        return "the frequencies within the original context"
    if spec.resonance:
        exact = spec.with_method(spec.scaling, resonance=False)
        if is_near(_frequencies(exact, positions.context)):
            return "this embedding without Resonance"
    with np.errstate(divide="ignore"):
        if is_near(np.where(ours > 0, 2 * math.pi / ours, math.inf)):
            return "the wavelengths, not the frequencies"
    for name, part in positions.by_type.items():
        other = None if name == layer_type else part.rope
        if other is not None and is_near(_frequencies(other, positions.context)):
            return f"the embedding of {name}"
    ratios = vector[ours > 0] / ours[ours > 0]
    if ratios.size and ratios.min() > 0 and ratios.max() / ratios.min() - 1 <= _CLOSE:
        return f"this embedding with all frequencies times {ratios.mean():.6g}"
    return None
