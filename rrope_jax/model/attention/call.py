"""The interface of attention implementations: a call, its shape, an implementation."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import AbstractMesh
from jax.typing import ArrayLike

from rrope_jax.model.attention.mask import CausalMask
from rrope_jax.model.platform import operations as platform


@dataclasses.dataclass(frozen=True, kw_only=True)
class CallShape:
    """The properties of a call that decide which implementation can compute it.

    Attributes:
      B, T, S, N, K, H: numbers of rows, queries, keys, query heads and key/value heads; head_dim.
      dtype: the dtype of queries, keys and values.
      segmented: whether rows hold several segments.
      continued: whether queries continue a cached sequence.
      dropout: whether the attention weights have dropout.
      arranged: whether tokens are in the order of `context_parallel.arrange`.
      window: the sliding window, as in `CausalMask`.
      far: whether far pairs have other queries and keys.
    """

    B: int
    T: int
    S: int
    N: int
    K: int
    H: int
    dtype: np.dtype[Any]
    segmented: bool = False
    continued: bool = False
    dropout: bool = False
    arranged: bool = False
    window: int | None = None
    far: bool = False


class FarPairs(NamedTuple):
    """Queries and keys for pairs that are far apart, in place of the others; the values are shared.

    Attributes:
      q_BTNH, k_BSKH: like those of `Call`, rotated to the positions of far pairs.
      window: a pair is far if its query comes at least so many tokens after its key; an int or
        int32[].
    """

    q_BTNH: jax.Array
    k_BSKH: jax.Array
    window: ArrayLike


@dataclasses.dataclass(frozen=True)
class Call:
    """The arguments of `attention`, or of one device's part of it on a mesh.

    Attributes:
      q_BTNH, k_BSKH, v_BSKH: scaled and rotated queries, rotated keys, and values.
      mask: which keys each query may see.
      dropout: applied to the softmax weights, float32[B, K, G, T, S].
      far: what far pairs have instead of `q_BTNH` and `k_BSKH`; None if all pairs have these.
      prepared: the device's part of the result of `Implementation.prepare`.
    """

    q_BTNH: jax.Array
    k_BSKH: jax.Array
    v_BSKH: jax.Array
    mask: CausalMask
    dropout: Callable[[jax.Array], jax.Array] | None = None
    far: FarPairs | None = None
    prepared: Any = None

    @property
    def shape(self) -> CallShape:
        """The shape of the call."""
        B, T, N, H = self.q_BTNH.shape
        S, K = self.k_BSKH.shape[1:3]
        return CallShape(
            B=B,
            T=T,
            S=S,
            N=N,
            K=K,
            H=H,
            dtype=self.q_BTNH.dtype,
            segmented=self.mask.segment_ids_BT is not None,
            continued=self.mask.start_B is not None,
            dropout=self.dropout is not None,
            arranged=self.mask.arranged,
            window=self.mask.window,
            far=self.far is not None,
        )


@dataclasses.dataclass(frozen=True)
class Implementation:
    """One way to compute attention.

    Attributes:
      run: computes a call: float[B, T, N, H] in the dtype of q.
      obstacle: why `run` cannot compute calls of a shape, as the end of a sentence, or None.
      auto_pairs: the least T * S for which `auto` considers it.
      prepare: set by implementations that handle all parts of a row themselves; maps the shape of a
        device's piece to what `run` needs and how to split that over the mesh. Other
        implementations receive one consecutive piece of a row at a time.
    """

    run: Callable[[Call], jax.Array]
    obstacle: Callable[[CallShape], str | None]
    auto_pairs: int = 0
    prepare: Callable[[CallShape, AbstractMesh], tuple[Any, Any]] | None = None


def first_obstacle(*obstacles: tuple[bool, str]) -> str | None:
    """The reason given by the first obstacle that is present, or None."""
    return next((reason for present, reason in obstacles if present), None)


def dropout_obstacle(shape: CallShape) -> str | None:
    """The obstacle shared by implementations that never hold the attention weights."""
    return "it has no dropout on the attention weights" if shape.dropout else None


def fused_obstacle(shape: CallShape, platform_name: str) -> str | None:
    """The obstacles shared by fused kernels, which run on one platform only."""
    here = platform.backend_platform()
    if here != platform_name:
        return f"it needs a {platform_name.upper()}, not a {here.upper()}"
    return dropout_obstacle(shape) or first_obstacle(
        (shape.continued, "it has no mask for decoding with a cache"),
        (shape.far, "it has one rotation for all pairs, and far_positions gives far ones another"),
    )
