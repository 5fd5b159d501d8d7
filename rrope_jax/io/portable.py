"""Expresses any rotary embedding in a form that other runtimes understand.

The frequencies become one list of factors relative to plain RoPE, and the temperature is folded
into the weights: scaling queries and keys by t before the rotation is the same as scaling cos and
sin by t.
"""

import dataclasses

import numpy as np

from rrope_jax.io.description import FOLDED_TEMPERATURE, Description
from rrope_jax.io.source import Part, Source
from rrope_jax.io.weights import Array, Weight
from rrope_jax.rope import frequencies
from rrope_jax.rope.factor_lists import as_factor_lists


def factor_lists(description: Description) -> tuple[Description, float]:
    """Rewrites an embedding as a `longrope` spec with two equal lists and no temperature.

    Returns:
      The description with that spec, and the temperature to fold into the weights.

    Raises:
      ValueError: the frequencies depend on the sequence length, so one list cannot express them.
    """
    spec, context = description.rope, description.context
    if spec.short_factor != spec.long_factor:
        raise ValueError(
            "scaling='longrope' with a short_factor and a long_factor that differ has no single "
            "list of frequencies; convert with one of them as both"
        )
    listed = as_factor_lists(spec, context)
    temperature = frequencies(spec).attention_factor
    listed = dataclasses.replace(listed, factor=1.0, original_context=context, attention_factor=1.0)
    extras = dict(description.extras)
    if temperature != 1:
        extras[FOLDED_TEMPERATURE] = temperature * extras.get(FOLDED_TEMPERATURE, 1.0)
    original = description.original_context
    if original is None and spec.scaling != "longrope":
        original = spec.original_context
    listed_description = dataclasses.replace(
        description, rope=listed, extras=extras, original_context=original
    )
    return listed_description, temperature


class FoldedSource(Source):
    """A source with another rotary embedding, its temperature folded into queries and keys."""

    def __init__(self, source: Source, description: Description, temperature: float) -> None:
        """Wraps a source.

        Args:
          source: the source of the weights.
          description: the model as it is to be written; its weights must have the same shapes.
          temperature: factor for the rotated dimensions of queries and keys.
        """
        self._source = source
        self._temperature = np.float32(temperature)
        self._description = description

    def _describe(self) -> Description:
        return self._description

    def _check(self) -> None:
        self._source.check()

    def matrix(self, weight: Weight, layer: int, part: Part | None = None) -> Array:
        """Returns one weight or a part of it; see `Source.matrix`."""
        matrix = self._source.matrix(weight, layer, part)
        if weight.heads is None or self._temperature == 1:
            return matrix
        head_size = self.description.model.head_size
        folded = np.array(matrix, np.float32).reshape(-1, head_size, matrix.shape[1])
        folded[:, : self.description.rope.rotary_dim] *= self._temperature
        return folded.reshape(matrix.shape)
