"""The transfers that the sharding rules imply for a step, without compiling anything.

They serve to rank many meshes, and replace the compiled program if its text is not available. The
compiler may merge, split and duplicate transfers, so the bytes differ somewhat from those of
`collectives.read`.
"""

import itertools
import math
from collections.abc import Mapping, Sequence

import jax.numpy as jnp
import numpy as np

from rrope_jax.model.attention.choice import IMPLEMENTATIONS
from rrope_jax.model.attention.context_parallel import tokens_before
from rrope_jax.model.flops import RECOMPUTED, block_weights, over_layer_types
from rrope_jax.planning.roofline.collectives import Collective
from rrope_jax.planning.workload import StepShape


def expected(shape: StepShape) -> tuple[Collective, ...]:
    """The collectives of a training step over its mesh.

    Parameters are gathered over `fsdp` and `seq` for the forward and the backward pass. Their
    gradients are summed and scattered over the same axes, and summed over `data`. Keys and values
    are gathered over `seq`, and their gradients scattered; with small sliding windows, devices only
    exchange the ends of pieces. Results split over `tensor` are summed after the output projection
    and the feed-forward layer, as are the gradients of their inputs.
    """
    model, mesh_shape, parts = shape.model, shape.mesh_shape, shape.accumulation
    width, again = jnp.dtype(model.compute_dtype).itemsize, RECOMPUTED[model.remat]
    tensor, layers = mesh_shape["tensor"], model.num_layers
    rows = shape.rows // parts / (mesh_shape["data"] * mesh_shape["fsdp"])
    tokens = rows * shape.length / mesh_shape["seq"]
    of_layer = block_weights(model) * width / tensor
    of_ends = 2 * model.vocab_size * model.d_model * width / tensor
    of_token = 2 * rows * model.kv_heads / tensor * model.head_size * width
    before, near = _near_layers(shape)
    keys, ends = of_token * shape.length, of_token * 2 * before  # of both pieces of a device
    stream = tokens * model.d_model * width
    transfers = [
        ("all-gather", ("fsdp", "seq"), of_layer, 2 * layers * parts),
        ("all-gather", ("fsdp", "seq"), of_ends, parts),
        ("reduce-scatter", ("fsdp", "seq"), of_layer, layers * parts),
        ("reduce-scatter", ("fsdp", "seq"), of_ends, parts),
        ("all-reduce", ("data",), _of_data(of_layer, mesh_shape), layers * parts),
        ("all-reduce", ("data",), _of_data(of_ends, mesh_shape), parts),
        ("all-gather", ("seq",), keys, (2 + again.attention) * (layers - near) * parts),
        ("reduce-scatter", ("seq",), keys, (layers - near) * parts),
        ("collective-permute", ("seq",), ends, (3 + again.attention) * near * parts),
        ("all-reduce", ("tensor",), stream, (4 + again.matrices) * layers * parts),
    ]
    return tuple(
        Collective(kind, int(size), _devices(kind, axes, mesh_shape), times)
        for kind, axes, size, times in transfers
        if times and math.prod(mesh_shape[axis] for axis in axes) > 1
    )


def _near_layers(shape: StepShape) -> tuple[int, int]:
    """How many tokens before a piece it receives, and how many layers do so instead of gathering.

    See `context_parallel`.
    """
    piece = shape.length // (2 * shape.mesh_shape["seq"])
    before = tokens_before(shape.model.sliding_window, piece)
    if before is None:
        return 0, 0

    def is_near(name: str) -> int:
        gathers = IMPLEMENTATIONS[shape.attention[name]].prepare is not None
        return int(shape.model.window_of(name) is not None and not gathers)

    near = over_layer_types(shape.model, is_near)
    return (before, near) if near else (0, 0)


def _of_data(size: float, mesh_shape: Mapping[str, int]) -> float:
    """Bytes that remain to be summed over `data` after scattering."""
    return size / (mesh_shape["fsdp"] * mesh_shape["seq"])


def _devices(
    kind: str, axes: Sequence[str], mesh_shape: Mapping[str, int]
) -> tuple[tuple[int, ...], ...]:
    """Groups of devices that differ along these axes; for a permute, pairs of neighbors."""
    groups = _groups(axes, mesh_shape)
    if kind != "collective-permute":
        return groups
    return tuple(pair for group in groups for pair in itertools.pairwise(group))


def _groups(axes: Sequence[str], mesh_shape: Mapping[str, int]) -> tuple[tuple[int, ...], ...]:
    """Groups of devices that differ only along these axes, as flat indices in the mesh."""
    names = list(mesh_shape)
    ids = np.arange(math.prod(mesh_shape.values())).reshape(tuple(mesh_shape.values()))
    others = [i for i, name in enumerate(names) if name not in axes]
    inner = [names.index(axis) for axis in axes]
    grouped = ids.transpose(*others, *inner).reshape(
        -1, math.prod(mesh_shape[axis] for axis in axes)
    )
    return tuple(map(tuple, grouped.tolist()))
