"""The positions of a model: the rotary embedding, window and layers of each type of layer."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from rrope_jax.rope import RopeSpec

UNROTATED = "nope"
# Other names of `layer_types`, such as linear_attention, are of layers that have no such positions.
DESCRIBED = ("full_attention", "sliding_attention", "chunked_attention", UNROTATED)


@dataclasses.dataclass(frozen=True)
class LayerPositions:
    """What the layers of one type have.

    Attributes:
      rope: their rotary embedding; None for layers without one.
      window: the sliding window in tokens; None for attention to all tokens before.
      layers: the numbers of the layers, from 0; None if the checkpoint does not tell.
    """

    rope: RopeSpec | None
    window: int | None
    layers: tuple[int, ...] | None


@dataclasses.dataclass(frozen=True)
class Positions:
    """What a model has.

    Attributes:
      by_type: the layers of each type, by the type's name.
      context: the length in tokens that the model is meant for; None if the checkpoint does not
        say.
      original_context: the length before any extension; None if the checkpoint does not say.
      notes: what cannot be said, or only in words.
    """

    by_type: Mapping[str, LayerPositions]
    context: int | None
    original_context: int | None
    notes: tuple[str, ...] = ()

    def original_of(self, layer_type: str) -> int | None:
        """The original context of one type: that of its scaling, or else that of the model."""
        spec = self.by_type[layer_type].rope
        own = None if spec is None else spec.original_context
        return self.original_context if own is None else own

    def facts(self, layer_type: str) -> dict[str, Any]:
        """All that is known of one type of layer, by name, in values that compare with `==`."""
        part = self.by_type[layer_type]
        return {
            **({} if part.rope is None else part.rope.fields()),
            "original_context": self.original_of(layer_type),
            "context": self.context,
            "window": part.window,
            "layers": part.layers,
        }


def unscaled(spec: RopeSpec) -> RopeSpec:
    """Plain RoPE with the base and the rotated part of another embedding."""
    return RopeSpec(
        head_dim=spec.head_dim,
        theta=spec.theta,
        partial_rotary_factor=spec.partial_rotary_factor,
    )


def of_layers(
    rope: RopeSpec,
    layer_types: tuple[str, ...] | None,
    window: int | None,
    **described: Any,
) -> Positions:
    """Combines an embedding and a plan of layers.

    Args:
      rope: the embedding of all layers; its `sliding_attention` is that of sliding ones.
      layer_types: the type of each layer; None if not known.
      window: the window of sliding layers.
      **described: the other fields of `Positions`.
    """
    names = [name for name in dict.fromkeys(layer_types or ()) if name in DESCRIBED]
    return Positions(
        by_type={
            name: LayerPositions(
                rope=None if name == UNROTATED else rope.of(name),
                window=window if name == "sliding_attention" else None,
                layers=None if layer_types is None else _numbers(layer_types, name),
            )
            for name in names or ["full_attention"]
        },
        **described,
    )


def _numbers(layer_types: tuple[str, ...], name: str) -> tuple[int, ...]:
    return tuple(number for number, each in enumerate(layer_types) if each == name)
