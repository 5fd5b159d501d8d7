"""Tiny checkpoints that differ from each other in every weight."""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from rrope_jax.io.conversion import Options, convert
from rrope_jax.io.description import Description
from rrope_jax.io.memory import DecoderSource
from rrope_jax.model import Decoder, ModelConfig
from rrope_jax.model.decoder import abstract_decoder
from rrope_jax.rope import RopeSpec, cos_sin

# grouped heads whose size is not d_model / num_heads, and no two axes of one size
MODEL = ModelConfig(
    vocab_size=40,
    d_model=32,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=12,
    d_ff=56,
    initializer_range=0.3,
)
CONTEXT = 64
TOKENS = np.random.default_rng(0).integers(0, MODEL.vocab_size, (1, 24), dtype=np.int32)


def decoder(rope: RopeSpec | None = None, **overrides: Any) -> Decoder:
    """A random model whose norms are not all ones."""
    config = dataclasses.replace(MODEL, **overrides)
    graph = nnx.graphdef(abstract_decoder(config, rope or RopeSpec(head_dim=config.head_size)))
    return nnx.merge(graph, _state(config))


@functools.cache
def _state(config: ModelConfig) -> Any:
    made = Decoder(config, RopeSpec(head_dim=config.head_size), rngs=nnx.Rngs(3))
    norms = (made.blocks.attention_norm, made.blocks.feed_forward_norm, made.final_norm)
    for seed, norm in enumerate(norms):
        shape = norm.scale[...].shape
        norm.scale[...] = 1 + 0.3 * jax.random.normal(jax.random.key(seed), shape)
    return nnx.state(made)


@functools.cache
def _forward(graph: Any) -> Any:
    return jax.jit(lambda state, rotation: nnx.merge(graph, state)(TOKENS, rotation=rotation))


def logits(made: Decoder) -> np.ndarray:
    """Of `TOKENS`, with one program for all embeddings."""
    plain = abstract_decoder(made.config, RopeSpec(head_dim=made.config.head_size))
    length = TOKENS.shape[1]
    rotation = cos_sin(made.rope, jnp.arange(length), seq_len=length)
    return np.asarray(_forward(nnx.graphdef(plain))(nnx.state(made), rotation))


def save(
    made: Decoder,
    target: Path,
    target_format: str,
    *,
    context: int = CONTEXT,
    options: Options | None = None,
    **described: Any,
) -> Path:
    """Writes a decoder, and returns where to."""
    description = Description(made.config, made.rope, context, **described)
    convert(DecoderSource(made, description), target, target_format, options=options)
    return target
