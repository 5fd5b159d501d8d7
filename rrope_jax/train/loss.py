"""Next-token cross-entropy that never holds the logits of a whole batch.

Letters: B batch, T tokens, D d_model, V vocabulary, C tokens of a row per chunk.
"""

import jax
import jax.numpy as jnp

from rrope_jax.model import Decoder
from rrope_jax.sharding import parts


def next_token_losses(
    decoder: Decoder, hidden_BTD: jax.Array, targets_BT: jax.Array, *, chunk: int
) -> jax.Array:
    """Negative log likelihood of every target, in nats.

    The logits of a whole batch would be by far the largest array of a training step: 6 GB for one
    row of 32,768 tokens and a vocabulary of 49,152. Here they exist for one chunk at a time, in the
    forward and the backward pass, and are therefore computed twice. A batch that fits in one chunk
    keeps its logits.

    Args:
      decoder: computes the logits.
      hidden_BTD: [B, T, D], from `decoder.hidden`.
      targets_BT: int32[B, T] in [0, V); the caller must give padding targets weight 0.
      chunk: tokens whose logits exist at a time on a device, at least one per row. Static under
        jit.

    Returns:
      float32[B, T]; `chunk` changes only its rounding.

    Raises:
      ValueError: chunk is not positive.
    """
    if chunk < 1:
        raise ValueError(f"chunk={chunk} must be at least 1; a few thousand tokens suit most")
    B, T = targets_BT.shape
    chunks = count_chunks(B, T, chunk)

    def losses(hidden_BCD: jax.Array, targets_BC: jax.Array) -> jax.Array:
        logits_BCV = decoder.logits(hidden_BCD)
        # compare, since a gather does not work with a vocabulary split over devices
        vocabulary_V = jnp.arange(logits_BCV.shape[-1], dtype=targets_BC.dtype)
        chosen_BCV = targets_BC[..., None] == vocabulary_V
        target_logit_BC = jnp.sum(jnp.where(chosen_BCV, logits_BCV, 0.0), axis=-1)
        return jax.nn.logsumexp(logits_BCV, axis=-1) - target_logit_BC

    if chunks <= 1:
        return losses(hidden_BTD, targets_BT)
    C = -(-T // chunks)
    padding = C * chunks - T

    def split(x: jax.Array) -> jax.Array:
        """[B, T, ...] -> [chunks, B, C, ...], where a chunk takes tokens from all along the rows.

        Every device of a mesh that splits rows or the batch thus has its share of every chunk.
        """
        x = jnp.pad(x, [(0, 0), (0, padding)] + [(0, 0)] * (x.ndim - 2))
        return jnp.moveaxis(x.reshape(B, C, chunks, *x.shape[2:]), 2, 0)

    losses_by_chunk = jax.lax.map(
        lambda pair: jax.checkpoint(losses, prevent_cse=False)(*pair),
        (split(hidden_BTD), split(targets_BT)),
    )
    return jnp.moveaxis(losses_by_chunk, 0, 2).reshape(B, C * chunks)[:, :T]


def count_chunks(B: int, T: int, chunk: int) -> int:
    """The number of chunks in which `next_token_losses` computes logits on the current mesh."""
    rows, row_parts = B // parts("batch") or 1, parts("length")
    chunks = -(-(T // row_parts) // max(1, chunk // rows))
    if row_parts > 1:
        while (T // row_parts) % chunks:  # padding would move tokens between devices
            chunks += 1
    return chunks
