"""A tiny model, tokens for it, and a store that remembers what was put into it."""

import dataclasses
import functools
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


@functools.cache
def tiny_decoder(
    rope: RopeSpec | None = None, vocab_size: int = 64, sliding_window: int | None = None
) -> Decoder:
    """The tiny preset with weights large enough for clear preferences. Not to be changed."""
    preset = PRESETS["tiny"]
    config = dataclasses.replace(preset.model, vocab_size=vocab_size)
    if sliding_window is not None:
        layer_types = ("sliding_attention", "full_attention")
        config = dataclasses.replace(config, layer_types=layer_types, sliding_window=sliding_window)
    decoder = Decoder(config, rope or preset.rope, rngs=nnx.Rngs(0))
    nnx.update(decoder, jax.tree.map(lambda x: 8 * x, nnx.state(decoder, nnx.Param)))
    return decoder


def byte_decoder() -> Decoder:
    """One that reads the byte tokenizer's ids."""
    return tiny_decoder(vocab_size=258)


def random_tokens(seed: int, size: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 64, size).astype(np.int32)


@functools.partial(jax.jit, static_argnums=0)
def _logits(graph: nnx.GraphDef[Decoder], state: nnx.State, tokens_BT: jax.Array) -> jax.Array:
    return nnx.merge(graph, state)(tokens_BT)


def logits(decoder: Decoder, tokens_T: np.ndarray) -> np.ndarray:
    """float64[T, V] of one row, by the decoder's plain call on all of it."""
    return np.asarray(_logits(*nnx.split(decoder), tokens_T[None])[0], np.float64)


def log_probabilities(decoder: Decoder, tokens_T: np.ndarray) -> np.ndarray:
    """float64[T, V], from the definition."""
    logits_TV = logits(decoder, tokens_T)
    return logits_TV - np.log(np.exp(logits_TV).sum(-1, keepdims=True))
