"""Losses of long rows, a chunk of tokens at a time.

A chunk sees the earlier ones through a cache, so activations exist for one chunk only. The cache
has the keys and values of all tokens, except in layers with a sliding window, which keep only
those of the window. This takes less memory than a whole pass if a token's keys and values over
all layers are smaller than its activations within one: with few key/value heads or many sliding
layers.
"""

from typing import Any

import jax
import numpy as np
from flax import nnx

from rrope_jax.evaluation.devices import Devices
from rrope_jax.evaluation.units import wait
from rrope_jax.model import Decoder, KVCache, init_cache
from rrope_jax.sharding import constrain
from rrope_jax.train.loss import next_token_losses


class ChunkedLosses:
    """The losses of a decoder on token sequences, like those of `perplexity.Losses`."""

    def __init__(self, decoder: Decoder, *, chunk: int, logits_chunk: int = 2048):
        """Compiles nothing yet.

        Args:
          decoder: the model.
          chunk: tokens of a row that go through the model at a time.
          logits_chunk: tokens whose logits exist at a time.
        """
        graph, state = nnx.split(decoder)
        self._devices, self._state = Devices.of(decoder).without_seq(state)
        self._chunk = chunk

        def empty(batch_size: int, capacity: int) -> KVCache:
            return init_cache(decoder.config, batch_size, capacity, decoder.rope)

        def run(
            state: Any, tokens_BC: jax.Array, targets_BC: jax.Array | None, cache: KVCache
        ) -> tuple[jax.Array | None, KVCache]:
            model = nnx.merge(graph, state)
            hidden_BCD, cache = model.decode_hidden(tokens_BC, cache)
            if targets_BC is None:
                return None, cache
            losses_BC = next_token_losses(model, hidden_BCD, targets_BC, chunk=logits_chunk)
            return constrain(losses_BC, (None, None)), cache

        self._empty = jax.jit(empty, static_argnames=("batch_size", "capacity"))
        self._run = jax.jit(run, donate_argnames="cache")

    def lower(self, state: Any, B: int, T: int) -> jax.stages.Lowered:
        """Lowers the program for the losses of a chunk, for planning; see `Losses.lower`."""
        cache = jax.eval_shape(lambda: self._empty(batch_size=B, capacity=T))
        tokens_BC = jax.ShapeDtypeStruct((B, min(self._chunk, T)), np.int32)
        return self._run.lower(state, tokens_BC, tokens_BC, cache)

    def __call__(self, tokens_BT: np.ndarray, at_S: np.ndarray | None = None) -> np.ndarray:
        """Negative log likelihood of every token but the first, in nats.

        Args:
          tokens_BT: int32[B, T].
          at_S: int[S], indices in [1, T) of the only tokens to predict; chunks without any have no
            logits.

        Returns:
          float32[B, T - 1], or float32[B, S] with `at_S`.
        """
        rows, T = tokens_BT.shape
        B = self._devices.rows(rows)
        tokens_BT = np.pad(tokens_BT.astype(np.int32), [(0, B - rows), (0, 0)])
        predicted_S = np.arange(1, T) if at_S is None else at_S
        # exactly T tokens: embeddings that depend on the length are those of a whole pass
        with self._devices.current():
            cache = self._empty(batch_size=B, capacity=T)
        targets_BT = np.roll(tokens_BT, -1, axis=1)
        losses_BT = np.zeros((B, T), np.float32)
        for start in range(0, T, self._chunk):
            cut = slice(start, min(start + self._chunk, T))
            has_targets = bool(((predicted_S > cut.start) & (predicted_S <= cut.stop)).any())
            with self._devices.current():
                losses_BC, cache = self._run(
                    self._state,
                    tokens_BT[:, cut],
                    targets_BT[:, cut] if has_targets else None,
                    cache,
                )
            wait((losses_BC, cache))
            if losses_BC is not None:
                losses_BT[:, cut] = losses_BC
        return losses_BT[:rows, predicted_S - 1]
