"""Floating-point operations of `Decoder`, counted from its shapes.

Every FLOP count in the project comes from here. A multiply-add counts as 2. Only matrix products
count; norms, softmax, rotation and the optimizer are left out, as usual. A training step has two
counts:

- *model FLOPs* are what the mathematics requires: the forward pass, and twice that for the
  gradients. In causal attention a query is multiplied with the keys that it may see, T (T+1) / 2
  pairs for a row of T tokens, fewer in layers with a sliding window. Rows with several documents
  need fewer, too, depending on the text, but are counted the same.
- *executed FLOPs* are what the compiled step computes. They include products repeated by
  rematerialization and by attention's backward pass, masked pairs inside the blocks that attention
  does not skip, and logits computed a second time chunk by chunk.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TypeVar

from rrope_jax.model.attention.mask import block_for_window
from rrope_jax.model.config import ACTIVATIONS, ModelConfig

_Number = TypeVar("_Number", int, float)


@dataclasses.dataclass(frozen=True, kw_only=True)
class AttentionCost:
    """The products that an implementation of attention computes.

    Attributes:
      backward: number of products per pair of tokens in the backward pass; the forward pass has 2.
      block: side, in tokens, of the blocks of pairs that are skipped if fully masked; None if all
        pairs are computed.
      fits_window: whether smaller blocks are used for a small sliding window.
    """

    backward: int
    block: int | None
    fits_window: bool = False

    def block_of(self, window: int | None) -> int | None:
        """`block` in layers with a sliding window, or with none."""
        if self.block is None or not self.fits_window:
            return self.block
        return block_for_window(self.block, window)


ATTENTION_COSTS: Mapping[str, AttentionCost] = MappingProxyType(
    {
        "xla": AttentionCost(backward=4, block=None),
        # recomputes the weights
        "chunked": AttentionCost(backward=5, block=1024, fits_window=True),
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
      pairs: number of query-key pairs that attention multiplies per head, over all layers.
      predictions: number of tokens whose logits are computed.
    """
    matrices = model.num_layers * block_weights(model)
    logits = 2 * predictions * model.d_model * model.vocab_size
    return 2 * tokens * matrices + 2 * pairs * _flops_per_pair(model) + logits


def causal_flops(model: ModelConfig, start: int, stop: int, *, logits: bool) -> int:
    """FLOPs of a forward pass over tokens [start, stop) of a row, with the earlier ones cached.

    Args:
      model: the decoder.
      start: number of cached tokens, and index of the first new one.
      stop: end of the new tokens, exclusive.
      logits: whether the logits of the new tokens are computed.
    """
    tokens = stop - start
    pairs = over_layers(
        model, lambda window: _visible_before(stop, window) - _visible_before(start, window)
    )
    return forward_flops(model, tokens=tokens, pairs=pairs, predictions=tokens if logits else 0)


def over_layers(model: ModelConfig, of_layer: Callable[[int | None], _Number]) -> _Number:
    """The sum over all layers of what a layer with a sliding window, or with none, has."""
    return over_layer_types(model, lambda name: of_layer(model.window_of(name)))


def over_layer_types(model: ModelConfig, of_layer: Callable[[str], _Number]) -> _Number:
    """The sum over all layers of what a layer of a type has."""
    return sum(map(of_layer, model.layer_types_of_all), start=0)


def _visible_before(stop: int, window: int | None) -> int:
    """The number of pairs of a visible key and one of the first `stop` queries of a row."""
    growing = stop if window is None else min(stop, window)
    return growing * (growing + 1) // 2 + (stop - growing) * growing


def model_flops(model: ModelConfig, rows: int, length: int, *, adapters: int | None = None) -> int:
    """Model FLOPs of a training step.

    Args:
      model: the decoder.
      rows, length: size of a batch, in rows and tokens per row; all tokens are predicted.
      adapters: entries of the low-rank factors that are trained in place of matrices, which then
        need no gradients; None if the matrices are trained.
    """
    forward = rows * causal_flops(model, 0, length, logits=True)
    return 3 * forward + _of_adapters(model, rows * length, adapters)


def _of_adapters(model: ModelConfig, tokens: int, adapters: int | None) -> int:
    """What a step's products change by if factors are trained in place of matrices."""
    if adapters is None:
        return 0
    matrices = model.num_layers * block_weights(model) + model.d_model * model.vocab_size
    return 2 * tokens * (3 * adapters - matrices)


def executed_flops(
    model: ModelConfig,
    rows: int,
    length: int,
    *,
    attention: str | Mapping[str, str],
    chunked_logits: bool,
    adapters: int | None = None,
) -> int:
    """Executed FLOPs of a training step.

    Args:
      model: the decoder, with its remat policy.
      rows, length: size of a batch, in rows and tokens per row.
      attention: a key of `ATTENTION_COSTS` for all layers, or layer type -> such a key.
      chunked_logits: whether the loss computes logits chunk by chunk, and therefore twice.
      adapters: as for `model_flops`.
    """
    tokens, recomputed = rows * length, RECOMPUTED[model.remat]

    def cost_of(name: str) -> AttentionCost:
        return ATTENTION_COSTS[attention if isinstance(attention, str) else attention[name]]

    def pairs_of(name: str) -> int:
        return rows * computed_pairs(length, cost_of(name), model.window_of(name))

    def products_again(name: str) -> int:
        return (cost_of(name).backward - 4 + 2 * recomputed.attention) * pairs_of(name)

    pairs = over_layer_types(model, pairs_of)
    forward = forward_flops(model, tokens=tokens, pairs=pairs, predictions=tokens)
    # backward: two products for each one of the forward pass, plus what is recomputed
    down = model.d_model * model.d_ff
    matrices = recomputed.matrices * 2 * tokens * (block_weights(model) - down)
    products = over_layer_types(model, products_again)
    again = model.num_layers * matrices + products * _flops_per_pair(model)
    logits = 2 * tokens * model.d_model * model.vocab_size if chunked_logits else 0
    return 3 * forward + again + logits + _of_adapters(model, tokens, adapters)


def computed_pairs(length: int, cost: AttentionCost, window: int | None) -> int:
    """The number of query-key pairs of a row that attention computes in one layer.

    Args:
      length: tokens of the row.
      cost: of the implementation.
      window: the layer's sliding window; None for none.
    """
    block = cost.block_of(window)
    if block is None:
        return length * length
    blocks = math.ceil(length / block)
    # a block of queries sees that many blocks of keys, its own included
    reach = blocks if window is None else min(blocks, math.ceil((window - 1) / block) + 1)
    return _visible_before(blocks, reach) * min(block, length) ** 2


def _flops_per_pair(model: ModelConfig) -> int:
    """FLOPs of one product of a query-key pair, over all heads."""
    return 2 * model.num_heads * model.head_size
