"""The layers of a model in which pairs of tokens that are far apart have other positions."""

from collections.abc import Mapping

from rrope_jax.model.config import ModelConfig
from rrope_jax.model.layer_types import LAYER_TYPES
from rrope_jax.rope import RopeSpec
from rrope_jax.rope.far_positions import FarPositions, far_positions_within


def far_positions_by_type(
    config: ModelConfig, rope: RopeSpec, seq_len: int | None
) -> Mapping[str, FarPositions]:
    """The positions of far pairs by layer type, where they differ from those of other pairs.

    Layers without rotation have none, and neither have those whose sliding window holds no far
    pair, nor any layer in rows of at most `far_window` tokens.

    Args:
      config: the model.
      rope: its embedding.
      seq_len: the current length, which bounds the distances; None if it is not known.
    """
    by_type = {
        name: far_positions_within(rope.of(name), seq_len, config.window_of(name))
        for name in config.layer_types
        if LAYER_TYPES[name].rotates
    }
    return {name: far for name, far in by_type.items() if far is not None}
