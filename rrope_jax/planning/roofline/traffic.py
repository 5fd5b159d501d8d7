"""Bytes that a training step of `Decoder` moves between a device's memory and its cores.

An estimate from shapes, not from the compiled program: every product reads its operands and writes
its result once, and what lies between products (rotation, activation, residual sums) is fused into
them. Attention's blocks of queries each read the keys and values that they see anew; attention
without blocks writes and reads the weights of all pairs. Real programs move more where a product's
operands do not fit on the chip, and less where results stay there.
"""

import math
from collections.abc import Mapping

import jax.numpy as jnp

from rrope_jax.model import ModelConfig
from rrope_jax.model.flops import ATTENTION_COSTS, RECOMPUTED, hidden_matrices, visible_pairs


def memory_traffic(
    model: ModelConfig,
    *,
    rows: int,
    length: int,
    accumulation: int,
    parameters: int,
    mesh_shape: Mapping[str, int],
    attention: str,
    chunked_logits: bool,
) -> dict[str, float]:
    """Bytes per device and step, by what moves them.

    Args:
      model, rows, length: of a batch over all devices.
      accumulation: parts that a batch is computed in.
      parameters: of the whole model, in number.
      mesh_shape: axis of the mesh -> devices.
      attention: a key of `model.flops.ATTENTION_COSTS`.
      chunked_logits: whether logits are computed twice.
    """
    devices, tensor = math.prod(mesh_shape.values()), mesh_shape["tensor"]
    own = parameters / (devices / mesh_shape["data"])
    tokens = rows * length / (devices / tensor)
    width = jnp.dtype(model.compute_dtype).itemsize
    again = RECOMPUTED[model.remat]
    passes = 3 + again.matrices
    vocabulary = 2 * model.vocab_size * model.d_model
    matrices = max(parameters - vocabulary, 0) / tensor
    # gathered weights are written, and read by the product of each pass but the weights' gradient
    gathered = 2 * (2 + again.matrices) * matrices * width * accumulation
    block = ATTENTION_COSTS[attention].block
    # without blocks float32 logits and weights, each written and read again
    per_pair = 4 * 4 if block is None else 2 * model.head_size * width / block
    of_pairs = visible_pairs(length, block) * per_pair
    attention_passes = 3 + again.attention
    heads = model.num_heads / tensor
    share = rows / (devices / tensor)
    return {
        "weights": gathered + vocabulary / tensor * width * 2 * accumulation,
        "activations": passes * tokens * model.num_layers * _activations(model, tensor) * width,
        "attention": attention_passes * share * heads * of_pairs * model.num_layers,
        "logits": (8 if chunked_logits else 6) * tokens * model.vocab_size / tensor * 4,
        "optimizer": 8 * 4 * own + (2 * 4 * own * accumulation if accumulation > 1 else 0),
    }


def saved_bytes(model: ModelConfig, tokens: int, mesh_shape: Mapping[str, int]) -> float:
    """What the layers of a device keep of `tokens`, of all devices, for the backward pass."""
    tensor = mesh_shape["tensor"]
    own = tokens / (math.prod(mesh_shape.values()) / tensor)
    again = RECOMPUTED[model.remat]
    kept: float = model.d_model  # the residual stream
    if not again.matrices:
        wide = hidden_matrices(model)
        N, K, H = model.num_heads, model.kv_heads, model.head_size
        kept += model.d_model + ((N + 2 * K) * H + wide * model.d_ff) / tensor
        kept += 0 if again.attention else N * H / tensor
    return own * model.num_layers * kept * jnp.dtype(model.compute_dtype).itemsize


def _activations(model: ModelConfig, tensor: int) -> float:
    """Numbers per token and layer that a pass over a block reads and writes."""
    D, H, F = model.d_model, model.head_size, model.d_ff
    N, K = model.num_heads, model.kv_heads
    wide = hidden_matrices(model)
    narrow_products = 4 + wide + 1  # with D on one side
    split = 2 * N * H + 2 * K * H + (wide + 1) * F + (2 * N + 2 * K) * H
    return narrow_products * D + split / tensor + 4 * D  # and two norms
