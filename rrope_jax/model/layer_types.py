"""Layer types, and plans that give one to each layer of a model."""

from collections.abc import Sequence
from typing import NamedTuple


class LayerType(NamedTuple):
    """What attention does in the layers of one type.

    Attributes:
      rotates: whether queries and keys are rotated.
      windowed: whether a query sees only the last `sliding_window` keys.
    """

    rotates: bool
    windowed: bool


# The names are those of transformers' `layer_types`, but for `nope` (arXiv 2501.18795, SmolLM3),
# which transformers states in `no_rope_layers`.
LAYER_TYPES: dict[str, LayerType] = {
    "full_attention": LayerType(rotates=True, windowed=False),
    "sliding_attention": LayerType(rotates=True, windowed=True),
    "nope": LayerType(rotates=False, windowed=False),
}


def repeat(pattern: Sequence[str], num_layers: int) -> tuple[str, ...]:
    """The types of all layers, from a pattern that repeats and is cut at the end."""
    return tuple(pattern[layer % len(pattern)] for layer in range(num_layers))


def shortest_pattern(pattern: Sequence[str], num_layers: int) -> tuple[str, ...]:
    """The shortest pattern that `repeat` extends to the same layers."""
    layers = repeat(pattern, min(num_layers, 2 * len(pattern)))  # num_layers may be huge
    lengths = range(1, len(layers) + 1)
    return next(layers[:n] for n in lengths if repeat(layers[:n], len(layers)) == layers)
