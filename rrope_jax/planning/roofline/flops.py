"""Floating-point operations of a training step of `Decoder`, counted from its shapes.

A multiply-add is 2. Only matrix products count: norms, softmax, rotation and the optimizer are
left out, as usual. Two sums are told apart:

- *model FLOPs* are what the mathematics asks for, once: the forward pass and twice that for the
  gradients. A query of causal attention is multiplied with the keys that it may see, T (T+1) / 2
  pairs of a row of T tokens; where a row holds several documents, fewer would do, which is not
  known before the text is.
- *executed FLOPs* are what the compiled step does: also the products that rematerialization
  repeats, the pairs of whole blocks that attention does not skip, the products that its backward
  pass repeats, and logits computed again chunk by chunk.
"""

import dataclasses
import math
from collections.abc import Mapping
from types import MappingProxyType

from rrope_jax.model import ModelConfig
from rrope_jax.model.config import ACTIVATIONS


@dataclasses.dataclass(frozen=True, kw_only=True)
class AttentionCost:
    """What an implementation of attention computes.

    Attributes:
      backward: products per pair of tokens in the backward pass; the forward pass has two.
      block: pairs are skipped in blocks of so many queries and keys; None where all are computed.
    """

    backward: int
    block: int | None


ATTENTION: Mapping[str, AttentionCost] = MappingProxyType(
    {
        "xla": AttentionCost(backward=4, block=None),
        "chunked": AttentionCost(backward=5, block=1024),  # the weights once more
        "splash": AttentionCost(backward=7, block=512),  # and again, as dq has its own kernel
        "cudnn": AttentionCost(backward=5, block=128),
    }
)
"""Of `model.attention.IMPLEMENTATIONS`."""


@dataclasses.dataclass(frozen=True)
class Again:
    """What the backward pass of a block computes again.

    Attributes:
      matrices: 1 if products of its matrices; all but the last one, whose result no gradient needs.
      attention: 1 if attention's forward pass.
    """

    matrices: int
    attention: int


AGAIN: Mapping[str, Again] = MappingProxyType(
    {"none": Again(0, 0), "dots": Again(0, 1), "full": Again(1, 1)}
)
"""Of `model.config.REMAT_POLICIES`."""


@dataclasses.dataclass(frozen=True)
class Layer:
    """Products of one layer for one token, in FLOPs of the forward pass."""

    query: int
    key_value: int
    out: int
    up: int
    down: int

    @property
    def total(self) -> int:
        """All of them."""
        return self.query + self.key_value + self.out + self.up + self.down


def layer(model: ModelConfig) -> Layer:
    """The products of a block's matrices."""
    D, N, K, H, F = (
        model.d_model,
        model.num_heads,
        model.kv_heads,
        model.head_size,
        model.d_ff,
    )
    gates = 2 if ACTIVATIONS[model.activation].gated else 1
    return Layer(
        query=2 * D * N * H,
        key_value=4 * D * K * H,
        out=2 * N * H * D,
        up=2 * D * F * gates,
        down=2 * F * D,
    )


def model_flops(model: ModelConfig, rows: int, length: int) -> int:
    """Of a step on `rows` rows of `length` tokens, all of which are predicted."""
    tokens = rows * length
    matrices = tokens * (
        layer(model).total * model.num_layers + 2 * model.d_model * model.vocab_size
    )
    pairs = rows * length * (length + 1) // 2
    return 3 * (matrices + pairs * _per_pair(model) * 2 * model.num_layers)


def executed_flops(
    model: ModelConfig, rows: int, length: int, *, attention: str, chunked_logits: bool
) -> int:
    """What the step computes.

    Args:
      model: with its remat policy.
      rows, length: of a batch.
      attention: a key of `ATTENTION`.
      chunked_logits: whether the loss computes logits chunk by chunk, and so twice.
    """
    tokens = rows * length
    products, cost = layer(model), ATTENTION[attention]
    again = AGAIN[model.remat]
    matrices = 3 * products.total + again.matrices * (products.total - products.down)
    passes = 2 + cost.backward + 2 * again.attention
    pairs = rows * visible_pairs(length, cost.block)
    logits = (4 if chunked_logits else 3) * 2 * model.d_model * model.vocab_size
    per_layer = tokens * matrices + pairs * passes * _per_pair(model)
    return model.num_layers * per_layer + tokens * logits


def _per_pair(model: ModelConfig) -> int:
    """One product over the heads for one query and key."""
    return 2 * model.num_heads * model.head_size


def visible_pairs(length: int, block: int | None) -> int:
    """Pairs of tokens of a row that attention computes, in blocks of `block` or all of them."""
    if block is None:
        return length * length
    blocks = math.ceil(length / block)
    return blocks * (blocks + 1) // 2 * min(block, length) ** 2
