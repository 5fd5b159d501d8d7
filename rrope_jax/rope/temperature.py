"""The temperature that grows with a query's position, as in Llama 4 and Ministral 3."""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from rrope_jax.rope.spec import RopeSpec


def query_temperature(spec: RopeSpec, positions: ArrayLike) -> jax.Array | None:
    """The factor on queries, 1 + beta * ln(1 + floor(p / L)), as transformers computes it.

    Here beta is `llama_4_scaling_beta` and L is `original_context`. Unlike the attention factor,
    it applies to all of head_dim, rotated or not, and to queries only.

    Args:
      spec: the embedding.
      positions: int[...], positions of queries, not negative.

    Returns:
      float32[...], or None if the embedding has no such temperature.
    """
    if not spec.llama_4_scaling_beta or spec.original_context is None:
        return None
    contexts = jnp.asarray(positions) // spec.original_context
    return 1 + spec.llama_4_scaling_beta * jnp.log1p(contexts.astype(jnp.float32))
