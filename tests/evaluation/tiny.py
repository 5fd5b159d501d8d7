"""A tiny model, tokens for it, and a store that remembers what was put into it."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from flax import nnx

from rrope_jax.model import Decoder
from rrope_jax.model.presets import PRESETS
from rrope_jax.rope import RopeSpec


class Memory:
    """A store in memory, with the names in the order in which they came."""

    def __init__(self) -> None:
        self.kept: dict[str, dict[str, Any]] = {}

    def get(self, name: str) -> dict[str, Any] | None:
        return self.kept.get(name)

    def put(self, name: str, result: Mapping[str, Any]) -> None:
        assert name not in self.kept
        self.kept[name] = dict(result)


def tiny_decoder(rope: RopeSpec | None = None) -> Decoder:
    """The tiny preset with weights large enough for clear preferences."""
    preset = PRESETS["tiny"]
    decoder = Decoder(preset.model, rope or preset.rope, rngs=nnx.Rngs(0))
    nnx.update(decoder, jax.tree.map(lambda x: 8 * x, nnx.state(decoder, nnx.Param)))
    return decoder


def random_tokens(seed: int, size: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 64, size).astype(np.int32)
