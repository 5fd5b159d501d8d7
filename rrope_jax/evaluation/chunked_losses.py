"""Losses of long rows, a chunk of tokens at a time.

A chunk sees the earlier ones through a cache, so activations exist for one chunk only. The cache
has the keys and values of all tokens, except in layers with a sliding window, which keep only
those of the window. This takes less memory than a whole pass if a token's keys and values over
all layers are smaller than its activations within one: with few key/value heads or many sliding
layers.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from rrope_jax.evaluation.units import wait
from rrope_jax.model import Decoder, KVCache, init_cache
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
        graph, self._state = nnx.split(decoder)
        self._decoder, self._chunk = decoder, chunk

        def run(
            state: Any, tokens_BC: jax.Array, targets_BC: jax.Array | None, cache: KVCache
        ) -> tuple[jax.Array | None, KVCache]:
            model = nnx.merge(graph, state)
            hidden_BCD, cache = model.decode_hidden(tokens_BC, cache)
            if targets_BC is None:
                return None, cache
            return next_token_losses(model, hidden_BCD, targets_BC, chunk=logits_chunk), cache

        self._run = jax.jit(run, donate_argnames="cache")

    def lower(self, state: Any, B: int, T: int) -> jax.stages.Lowered:
        """Lowers the program for the losses of a chunk, for planning; see `Losses.lower`."""
        config, rope = self._decoder.config, self._decoder.rope
        cache = jax.eval_shape(lambda: init_cache(config, B, T, rope))
        tokens_BC = jax.ShapeDtypeStruct((B, min(self._chunk, T)), jnp.int32)
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
        B, T = tokens_BT.shape
        predicted_S = np.arange(1, T) if at_S is None else at_S
        # exactly T tokens: embeddings that depend on the length are those of a whole pass
        cache = init_cache(self._decoder.config, B, T, self._decoder.rope)
        targets_BT = np.roll(tokens_BT, -1, axis=1)
        losses_BT = np.zeros((B, T), np.float32)
        for start in range(0, T, self._chunk):
            cut = slice(start, min(start + self._chunk, T))
            has_targets = bool(((predicted_S > cut.start) & (predicted_S <= cut.stop)).any())
            losses_BC, cache = self._run(
                self._state,
                jnp.asarray(tokens_BT[:, cut], jnp.int32),
                jnp.asarray(targets_BT[:, cut], jnp.int32) if has_targets else None,
                cache,
            )
            wait((losses_BC, cache))
            if losses_BC is not None:
                losses_BT[:, cut] = losses_BC
        return losses_BT[:, predicted_S - 1]
