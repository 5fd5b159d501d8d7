"""An adapter in memory, and the model that it makes of its base.

Letters: I inputs and O outputs of a matrix as other formats store it, [O, I]; R rank.
"""

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from rrope_jax.io.description import Description
from rrope_jax.io.orbax import checksums
from rrope_jax.io.portable import FoldedSource, Temperatures
from rrope_jax.io.source import Source, read_parameter
from rrope_jax.io.weights import Array, Part, Weight, matrix_shapes

Float = NDArray[np.float32]


class Factors(NamedTuple):
    """The update of one matrix, `scaling * b_OR a_RI`.

    Attributes:
      a_RI, b_OR: float32.
      scaling: the factor.
    """

    a_RI: Float
    b_OR: Float
    scaling: float

    def update(self, part: Part | None) -> Float:
        """The update, or a part of it: float32[O, I]."""
        rows, columns = (slice(None),) * 2 if part is None else map(_slice, part)
        update: Float = np.float32(self.scaling) * (self.b_OR[rows] @ self.a_RI[:, columns])
        return update


@dataclasses.dataclass(frozen=True)
class Base:
    """The model that an adapter was trained on.

    Attributes:
      path: its checkpoint.
      dtype: the dtype that matrices were rounded to.
      checksums: of each frozen parameter in that dtype, by its path.
    """

    path: str
    dtype: str
    checksums: Mapping[str, str]


@dataclasses.dataclass(frozen=True)
class Adapter:
    """Updates of a base's weights.

    Attributes:
      path: the file or folder it is from.
      factors: (weight, layer) -> its update.
      replaced: (weight, layer) -> the weight itself, where it was trained in full: [O, I] or [O].
      rslora: whether scaling is alpha / sqrt(rank), rather than alpha / rank.
      base: the model it was trained on; None if that is not known.
    """

    path: Path
    factors: Mapping[tuple[Weight, int], Factors]
    replaced: Mapping[tuple[Weight, int], Array]
    rslora: bool = False
    base: Base | None = None

    def check(self, description: Description) -> None:
        """Raises ValueError if the adapter does not fit a model."""
        shapes = matrix_shapes(description.model)
        sizes = {
            key: (len(each.b_OR), each.a_RI.shape[1]) for key, each in self.factors.items()
        } | {key: matrix.shape for key, matrix in self.replaced.items()}
        for (weight, layer), size in sizes.items():
            expected = shapes.get((weight, layer))
            if size != expected:
                there = "has none" if expected is None else f"has {list(expected)}"
                raise ValueError(
                    f"{self.path} is not of this base: it adapts layer {layer}'s {weight.path} of "
                    f"shape {list(size)}, of which the base {there}"
                )


class AdaptedSource(Source):
    """A base with an adapter merged into its weights."""

    def __init__(self, base: Source, adapter: Adapter, description: Description) -> None:
        """Wraps a base.

        Args:
          base: the source of the base's weights.
          adapter: the updates.
          description: the merged model.
        """
        self.path = adapter.path
        self.base = base
        self.adapter = adapter
        self._merged = description

    def _describe(self) -> Description:
        return self._merged

    def _check(self) -> None:
        self.base.check()
        self.adapter.check(self.base.description)

    def matrix(self, weight: Weight, layer: int, part: Part | None = None) -> Array:
        """Returns one weight or a part of it; see `Source.matrix`."""
        if (replaced := self.adapter.replaced.get((weight, layer))) is not None:
            return replaced if part is None else replaced[tuple(map(_slice, part))]
        if self.adapter.base is None:
            matrix = self.base.matrix(weight, layer, part)
        else:
            kernel = self._checked_kernel(weight)
            matrix = weight.to_matrix(kernel[layer] if weight.stacked else kernel)
            matrix = matrix if part is None else matrix[tuple(map(_slice, part))]
        factors = self.adapter.factors.get((weight, layer))
        return matrix if factors is None else matrix.astype(np.float32) + factors.update(part)

    @functools.lru_cache(maxsize=1)  # noqa: B019  a source is used for one conversion only
    def _checked_kernel(self, weight: Weight) -> Array:
        """A whole parameter of the base as it was trained on.

        Raises:
          ValueError: it is another one; the message says what to do.
        """
        trained_on = self.adapter.base
        assert trained_on is not None
        kernel: Array = read_parameter(self.base, weight)
        if weight.is_kernel or weight.is_embedding:
            kernel = kernel.astype(trained_on.dtype)
        if trained_on.checksums.get(weight.path) != checksums.of_array(kernel):
            raise ValueError(
                f"{self.base.path} is another model than the one that {self.adapter.path} was "
                f"trained on, which was at {trained_on.path}: {weight.path} differs; bring that "
                "back, or name where it is now as --checkpoint=BASE --adapter=FOLDER"
            )
        return kernel.astype(np.float32)


class _Rows(Source):
    """What has the rows of an adapter's weights: B of an update, and weights trained in full."""

    def __init__(self, adapter: Adapter, description: Description) -> None:
        self._rows = {key: each.b_OR for key, each in adapter.factors.items()}
        self._rows |= adapter.replaced
        self._described = description

    def _describe(self) -> Description:
        return self._described

    def _check(self) -> None:
        """An adapter is checked as a whole."""

    def matrix(self, weight: Weight, layer: int, part: Part | None = None) -> Array:
        assert part is None
        return self._rows[weight, layer]


def folded(adapter: Adapter, description: Description, temperatures: Temperatures) -> Adapter:
    """The adapter of a base into whose queries and keys temperatures are folded.

    Args:
      adapter: the adapter of the base without.
      description: the model.
      temperatures: the factor of each layer type.
    """
    source = FoldedSource(_Rows(adapter, description), description, temperatures)
    factors = {
        key: each._replace(b_OR=source.matrix(*key)) for key, each in adapter.factors.items()
    }
    replaced = {key: source.matrix(*key) for key in adapter.replaced}
    return dataclasses.replace(adapter, factors=factors, replaced=replaced)


def _slice(axis: range) -> slice:
    return slice(axis.start, axis.stop)
