"""A decoder in memory as something to convert from."""

import jax
import numpy as np
from flax import nnx

from rrope_jax.io.description import Description
from rrope_jax.io.weights import Array, Weight
from rrope_jax.model import Decoder


class DecoderSource:
    """The parameters of a decoder; see `weights.Source`."""

    def __init__(self, decoder: Decoder, description: Description) -> None:
        """Wraps a decoder.

        Raises:
          ValueError: the description is of another model.
        """
        if (decoder.config, decoder.rope) != (description.model, description.rope):
            raise ValueError(
                "the description is not the decoder's: take its config as model and its rope as "
                "rope"
            )
        self.description = description
        state = nnx.to_flat_state(nnx.state(decoder))
        self._parameters = {".".join(map(str, path)): leaf[...] for path, leaf in state}

    def check(self) -> None:
        """See `weights.Source`; a decoder has all its weights."""

    def matrix(self, weight: Weight, layer: int) -> Array:
        """One weight; see `weights.Source`."""
        parameter = self._parameters[weight.path]
        return weight.to_matrix(np.asarray(parameter[layer] if weight.stacked else parameter))

    def parameter(
        self, weight: Weight, shape: tuple[int, ...], sharding: jax.sharding.Sharding | None
    ) -> jax.Array:
        """One parameter; see `weights.Source`."""
        placed: jax.Array = jax.device_put(self._parameters[weight.path], sharding)
        return placed
