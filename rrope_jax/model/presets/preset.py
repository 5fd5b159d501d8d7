"""`Preset`: a known model with its embedding."""

import dataclasses

from rrope_jax.model.config import ModelConfig
from rrope_jax.rope import RopeSpec


@dataclasses.dataclass(frozen=True)
class Preset:
    """A model and the rotary embedding that it was trained with.

    Attributes:
      model: the decoder.
      rope: its embedding; `rope.with_method` returns a scaled or resonant one.
      context: the training length in tokens.
    """

    model: ModelConfig
    rope: RopeSpec
    context: int
