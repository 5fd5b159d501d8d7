"""A decoder in memory as the source of a conversion."""

import numpy as np
from flax import nnx

from rrope_jax.io.description import Description
from rrope_jax.io.source import Source
from rrope_jax.io.weights import Array, Part, Weight
from rrope_jax.model import Decoder


class DecoderSource(Source):
    """The parameters of a decoder."""

    def __init__(self, decoder: Decoder, description: Description) -> None:
        """Wraps a decoder.

        Raises:
          ValueError: the description is that of a different model, or the parameters are not
            float32.
        """
        if decoder.config.weight_dtype != "float32":
            raise ValueError(
                f"the decoder's parameters are rounded to {decoder.config.weight_dtype}; load it "
                "without weight_dtype to convert it"
            )
        if (decoder.config, decoder.rope) != (description.model, description.rope):
            raise ValueError(
                "the description is not the decoder's: take its config as model and its rope as "
                "rope"
            )
        self._description = description
        state = nnx.to_flat_state(nnx.state(decoder))
        self._parameters = {".".join(map(str, path)): leaf[...] for path, leaf in state}

    def _describe(self) -> Description:
        return self._description

    def _check(self) -> None:
        """Checks nothing: a decoder always has all its weights."""

    def matrix(self, weight: Weight, layer: int, part: Part | None = None) -> Array:
        """Returns one weight or a part of it; see `Source.matrix`."""
        parameter = self._parameters[weight.path]
        matrix = weight.to_matrix(np.asarray(parameter[layer] if weight.stacked else parameter))
        return matrix if part is None else matrix[np.ix_(*part)]
