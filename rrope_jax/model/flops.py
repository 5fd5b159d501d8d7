"""Floating-point operations of `Decoder`, counted from its shapes.

Every FLOP count in the project comes from here. A multiply-add counts as 2. Only matrix products
count; norms, softmax, rotation and the optimizer are left out, as usual. A training step has two
counts:

- *model FLOPs* are what the mathematics requires: the forward pass, and twice that for the
  gradients. In causal attention a query is multiplied with the keys that it may see, T (T+1) / 2
  pairs for a row of T tokens. Rows with several documents need fewer, depending on the text, but
  are counted the same.
- *executed FLOPs* are what the compiled step computes. They include products repeated by
  rematerialization and by attention's backward pass, masked pairs inside the blocks that attention
  does not skip, and logits computed a second time chunk by chunk.
"""

import dataclasses
import math
from collections.abc import Mapping
from types import MappingProxyType

from rrope_jax.model.config import ACTIVATIONS, ModelConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class AttentionCost:
    """The products that an implementation of attention computes.

    Attributes:
      backward: number of products per pair of tokens in the backward pass; the forward pass has 2.
      block: side, in tokens, of the blocks of pairs that are skipped if fully masked; None if all
        pairs are computed.
    """

    backward: int
    block: int | None


ATTENTION_COSTS: Mapping[str, AttentionCost] = MappingProxyType(
    {
        "xla": AttentionCost(backward=4, block=None),
        "chunked": AttentionCost(backward=5, block=1024),  # recomputes the weights
        "splash": AttentionCost(backward=7, block=512),  # twice, since dq has its own kernel
        "cudnn": AttentionCost(backward=5, block=128),
    }
)
"""Implementation, a key of `model.attention.choice.IMPLEMENTATIONS` -> its cost."""


@dataclasses.dataclass(frozen=True)
class Recomputation:
    """What the backward pass of a block recomputes.

    Attributes:
      matrices: 1 if it recomputes the products with weight matrices (except the last, whose result
        no gradient needs), otherwise 0.
      attention: 1 if it recomputes attention's forward pass, otherwise 0.
    """

    matrices: int
    attention: int


RECOMPUTED: Mapping[str, Recomputation] = MappingProxyType(
    {"none": Recomputation(0, 0), "dots": Recomputation(0, 1), "full": Recomputation(1, 1)}
)
"""Remat policy, a key of `model.config.REMAT_POLICIES` -> what it recomputes."""


def block_weights(model: ModelConfig) -> int:
    """The number of matrix entries in one block."""
    D, H = model.d_model, model.head_size
    attention = 2 * D * H * (model.num_heads + model.kv_heads)
    return attention + (hidden_matrices(model) + 1) * D * model.d_ff


def hidden_matrices(model: ModelConfig) -> int:
    """The number of input matrices of a feed-forward layer: 2 with a gate, otherwise 1."""
    return 2 if ACTIVATIONS[model.activation].gated else 1


def forward_flops(model: ModelConfig, *, tokens: int, pairs: int, predictions: int) -> int:
    """FLOPs of a forward pass.

    Args:
      model: the decoder.
      tokens: number of tokens that pass through the blocks.
      pairs: number of query-key pairs that attention multiplies per layer and head.
      predictions: number of tokens whose logits are computed.
    """
    per_layer = 2 * tokens * block_weights(model) + 2 * pairs * _flops_per_pair(model)
    return model.num_layers * per_layer + 2 * predictions * model.d_model * model.vocab_size


def causal_flops(model: ModelConfig, start: int, stop: int, *, logits: bool) -> int:
    """FLOPs of a forward pass over tokens [start, stop) of a row, with the earlier ones cached.

    Args:
      model: the decoder.
      start: number of cached tokens, and index of the first new one.
      stop: end of the new tokens, exclusive.
      logits: whether the logits of the new tokens are computed.
    """
    tokens = stop - start
    pairs = (stop * (stop + 1) - start * (start + 1)) // 2
    return forward_flops(model, tokens=tokens, pairs=pairs, predictions=tokens if logits else 0)


def model_flops(model: ModelConfig, rows: int, length: int) -> int:
    """Model FLOPs of a step on `rows` rows of `length` tokens, all of which are predicted."""
    return 3 * rows * causal_flops(model, 0, length, logits=True)


def executed_flops(
    model: ModelConfig, rows: int, length: int, *, attention: str, chunked_logits: bool
) -> int:
    """Executed FLOPs of a training step.

    Args:
      model: the decoder, with its remat policy.
      rows, length: size of a batch, in rows and tokens per row.
      attention: a key of `ATTENTION_COSTS`.
      chunked_logits: whether the loss computes logits chunk by chunk, and therefore twice.
    """
    tokens, pairs = rows * length, rows * visible_pairs(length, ATTENTION_COSTS[attention].block)
    forward = forward_flops(model, tokens=tokens, pairs=pairs, predictions=tokens)
    # backward: two products for each one of the forward pass, plus what is recomputed
    recomputed = RECOMPUTED[model.remat]
    down = model.d_model * model.d_ff
    matrices = recomputed.matrices * 2 * tokens * (block_weights(model) - down)
    products = ATTENTION_COSTS[attention].backward - 4 + 2 * recomputed.attention
    per_layer = matrices + products * pairs * _flops_per_pair(model)
    logits = 2 * tokens * model.d_model * model.vocab_size if chunked_logits else 0
    return 3 * forward + model.num_layers * per_layer + logits


def visible_pairs(length: int, block: int | None) -> int:
    """The number of query-key pairs of a row that attention computes; all if block is None."""
    if block is None:
        return length * length
    blocks = math.ceil(length / block)
    return blocks * (blocks + 1) // 2 * min(block, length) ** 2


def _flops_per_pair(model: ModelConfig) -> int:
    """FLOPs of one product of a query-key pair, over all heads."""
    return 2 * model.num_heads * model.head_size
