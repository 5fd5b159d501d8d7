"""Expresses any rotary embedding in a form that other runtimes understand.

The frequencies become one list of factors relative to plain RoPE, and the temperature is folded
into the weights: scaling queries and keys by t before the rotation is the same as scaling cos and
sin by t. Where queries and keys are normalized, which would undo that, the scales of these norms
take it. Layers of different types may have different embeddings, and so different temperatures.
"""

import dataclasses
from collections.abc import Collection, Mapping

import numpy as np

from rrope_jax.io.description import FOLDED_TEMPERATURE, Description
from rrope_jax.io.source import Source
from rrope_jax.io.weights import Array, Part, Weight
from rrope_jax.rope import RopeSpec, frequencies
from rrope_jax.rope.factor_lists import as_factor_lists, counting_in_original_context
from rrope_jax.rope.temperature import counted_in, temperature_name

Temperatures = Mapping[str, float]
"""The factor on the queries and keys of each layer type that is rotated."""

ROTATED = ("full_attention", "sliding_attention")
"""The layer types that are rotated."""
NO_TEMPERATURES: Temperatures = dict.fromkeys(ROTATED, 1.0)


def rope_of_rotated(description: Description) -> RopeSpec:
    """The embedding of a model without those of layer types that it does not have."""
    types, spec = set(description.model.layer_types), description.rope
    if not types.isdisjoint(ROTATED) and not types.issuperset(ROTATED):
        return spec.of(next(name for name in ROTATED if name in types))
    return spec


def factor_lists(
    description: Description, names: Collection[str] = ROTATED
) -> tuple[Description, Temperatures]:
    """Rewrites embeddings as `longrope` specs with two equal lists and no temperature.

    Args:
      description: a model.
      names: the layer types whose embeddings are rewritten; the others stay as they are.

    Returns:
      The description with these specs, and the temperatures to fold into the weights.

    Raises:
      ValueError: the frequencies depend on the sequence length, so one list cannot express them.
    """
    spec, context = description.rope, description.context
    listed = {name: spec.of(name) for name in ROTATED}
    temperatures = dict(NO_TEMPERATURES)
    for name in names:
        listed[name] = _listed(spec.of(name), context)
        temperatures[name] = frequencies(spec.of(name)).attention_factor
    extras = dict(description.extras)
    if folded := [temperature for temperature in temperatures.values() if temperature != 1]:
        extras[FOLDED_TEMPERATURE] = folded[0] * extras.get(FOLDED_TEMPERATURE, 1.0)
    original = description.original_context
    if original is None and spec.scaling != "longrope":
        original = spec.original_context
    rope = dataclasses.replace(
        listed["full_attention"], sliding_attention=listed["sliding_attention"]
    )
    listed_description = dataclasses.replace(
        description, rope=rope, extras=extras, original_context=original
    )
    return listed_description, temperatures


def _listed(spec: RopeSpec, context: int) -> RopeSpec:
    """One embedding as lists of factors."""
    if spec.short_factor != spec.long_factor:
        raise ValueError(
            "scaling='longrope' with a short_factor and a long_factor that differ has no single "
            "list of frequencies; convert with one of them as both"
        )
    listed = as_factor_lists(counting_in_original_context(spec), context)
    if temperature_name(listed) != "none":
        context = counted_in(listed)
    return dataclasses.replace(listed, factor=1.0, original_context=context, attention_factor=1.0)


class FoldedSource(Source):
    """A source with another rotary embedding, its temperature folded into queries and keys."""

    def __init__(
        self, source: Source, description: Description, temperatures: Temperatures
    ) -> None:
        """Wraps a source.

        Args:
          source: the source of the weights.
          description: the model as it is to be written; its weights must have the same shapes.
          temperatures: factors for the rotated dimensions of queries and keys.
        """
        self._source = source
        self._description = description
        types = description.model.layer_types_of_all
        self._factors = [np.float32(temperatures.get(name, 1.0)) for name in types]
        self._rotary_dims = [description.rope.of(name).rotary_dim for name in types]
        self._in_norms = description.model.qk_norm != "none"

    def _describe(self) -> Description:
        return self._description

    def _check(self) -> None:
        self._source.check()

    def matrix(self, weight: Weight, layer: int, part: Part | None = None) -> Array:
        """Returns one weight or a part of it; see `Source.matrix`."""
        matrix = self._source.matrix(weight, layer, part)
        factor = self._factors[layer]
        if not weight.rotated or weight.is_norm != self._in_norms or factor == 1:
            return matrix
        model = self.description.model
        offset = np.float32(weight.is_norm and model.norm_offset)
        folded = np.array(matrix, np.float32).reshape(-1, model.head_size, *matrix.shape[1:])
        rotated = folded[:, : self._rotary_dims[layer]]
        rotated[...] = (rotated + offset) * factor - offset
        return folded.reshape(matrix.shape)
