"""Bytes that a training step of `Decoder` moves between a device's memory and its cores.

The estimate uses shapes, not the compiled program. It assumes that every product reads its operands
and writes its result once, and that rotation, activation and residual sums are fused into products.
In blockwise attention, each block of queries reads the keys and values that it sees; otherwise
attention writes and reads the weights of all pairs. Real programs move more if a product's operands
do not fit on the chip, and less if results stay there.
"""

import functools
import math

import jax.numpy as jnp

from rrope_jax.model import ModelConfig
from rrope_jax.model.flops import (
    ATTENTION_COSTS,
    RECOMPUTED,
    computed_pairs,
    hidden_matrices,
    over_layer_types,
)
from rrope_jax.planning.workload import Demands, StepShape


def traffic_of_call(demands: Demands) -> dict[str, float]:
    """Bytes that a device moves in one call of a program, by cause."""
    moved = memory_traffic(demands.shape)
    if not demands.training:  # forward passes are a third and use no optimizer
        moved = {name: size / 3 for name, size in moved.items() if name != "optimizer"}
    return {name: size * demands.repeats for name, size in moved.items()} | dict(demands.traffic)


def memory_traffic(shape: StepShape) -> dict[str, float]:
    """Bytes that a device moves in a training step, by cause."""
    model, accumulation, parameters = shape.model, shape.accumulation, shape.parameters
    devices, tensor = math.prod(shape.mesh_shape.values()), shape.mesh_shape["tensor"]
    trained = parameters if shape.trained is None else shape.trained
    shard = trained / (devices / shape.mesh_shape["data"])
    tokens = shape.rows * shape.length / (devices / tensor)
    width = jnp.dtype(model.compute_dtype).itemsize
    again = RECOMPUTED[model.remat]
    passes = 3 + again.matrices
    vocabulary = 2 * model.vocab_size * model.d_model
    matrices = max(parameters - vocabulary, 0) / tensor
    # gathered weights are written, then read in each pass except for the weights' gradients
    gathered = 2 * (2 + again.matrices) * matrices * width * accumulation
    of_row = over_layer_types(model, functools.partial(_of_pairs, shape, width))
    attention_passes = 3 + again.attention
    heads = model.num_heads / tensor
    rows = shape.rows / (devices / tensor)
    update = 8 * 4 * shard if shape.update_bytes is None else shape.update_bytes
    return {
        "weights": gathered + vocabulary / tensor * width * 2 * accumulation,
        "activations": passes * tokens * model.num_layers * _activations(model, tensor) * width,
        "attention": attention_passes * rows * heads * of_row,
        "logits": (8 if shape.chunked_logits else 6) * tokens * model.vocab_size / tensor * 4,
        "optimizer": update + (2 * 4 * shard * accumulation if accumulation > 1 else 0),
    }


def _of_pairs(shape: StepShape, width: int, layer_type: str) -> float:
    """Bytes that attention moves for a row's pairs in a layer, per head and pass."""
    cost, window = ATTENTION_COSTS[shape.attention[layer_type]], shape.model.window_of(layer_type)
    block = cost.block_of(window)
    # without blocks: float32 logits and weights, each written once and read once
    per_pair = 4 * 4 if block is None else 2 * shape.model.head_size * width / block
    return computed_pairs(shape.length, cost, window) * per_pair


def saved_bytes(shape: StepShape) -> float:
    """Bytes that a device's layers save for the backward pass of a microbatch."""
    model, tensor = shape.model, shape.mesh_shape["tensor"]
    tokens = shape.rows // shape.accumulation * shape.length
    tokens_of_device = tokens / (math.prod(shape.mesh_shape.values()) / tensor)
    again = RECOMPUTED[model.remat]
    per_token: float = model.d_model  # the residual stream
    if not again.matrices:
        wide = hidden_matrices(model)
        N, K, H = model.num_heads, model.kv_heads, model.head_size
        per_token += model.d_model + ((N + 2 * K) * H + wide * model.d_ff) / tensor
        per_token += 0 if again.attention else N * H / tensor
    width = jnp.dtype(model.compute_dtype).itemsize
    return tokens_of_device * model.num_layers * per_token * width


def _activations(model: ModelConfig, tensor: int) -> float:
    """The number of values per token and layer that a pass over a block reads and writes."""
    D, H, F = model.d_model, model.head_size, model.d_ff
    N, K = model.num_heads, model.kv_heads
    wide = hidden_matrices(model)
    narrow_products = 4 + wide + 1  # products with D on one side
    split = 2 * N * H + 2 * K * H + (wide + 1) * F + (2 * N + 2 * K) * H
    norms = 4 if model.norm_placement == "both" else 2
    return narrow_products * D + split / tensor + norms * 2 * D
