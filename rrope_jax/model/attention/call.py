"""A call of attention, its shape, and what an implementation is."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import AbstractMesh

from rrope_jax.model.attention.mask import CausalMask
from rrope_jax.model.platform import operations as platform


@dataclasses.dataclass(frozen=True, kw_only=True)
class CallShape:
    """Everything about a call that decides which implementation can compute it.

    Attributes:
      B, T, S, N, K, H: rows, queries, keys, query heads, key/value heads and head_dim.
      dtype: of queries, keys and values.
      segmented: whether rows hold several segments.
      continued: whether queries continue a cached sequence.
      dropout: whether the attention weights have dropout.
      arranged: whether tokens are in the order of `context_parallel.arrange`.
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


@dataclasses.dataclass(frozen=True)
class Call:
    """The arguments of `attention`, of a device's part where it runs on a mesh.

    Attributes:
      q_BTNH, k_BSKH, v_BSKH: scaled, rotated queries, rotated keys and values.
      mask: who sees whom.
      dropout: applied to the softmax weights, float32[B, K, G, T, S].
      prepared: a device's part of the result of `Implementation.prepare`.
    """

    q_BTNH: jax.Array
    k_BSKH: jax.Array
    v_BSKH: jax.Array
    mask: CausalMask
    dropout: Callable[[jax.Array], jax.Array] | None = None
    prepared: Any = None

    @property
    def shape(self) -> CallShape:
        """Its shape."""
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
        )


@dataclasses.dataclass(frozen=True)
class Implementation:
    """One way to compute attention.

    Attributes:
      run: computes a call: float[B, T, N, H] in the dtype of q.
      obstacle: why `run` cannot compute a call of a shape, as the end of a sentence, or None.
      auto_pairs: the number of queries times keys from which `auto` considers it.
      prepare: for an implementation that handles all parts of a row itself. From the shape of a
        device's piece, it makes what `run` needs, and says how that is split over the mesh. Other
        implementations get one consecutive piece of a row at a time.
    """

    run: Callable[[Call], jax.Array]
    obstacle: Callable[[CallShape], str | None]
    auto_pairs: int = 0
    prepare: Callable[[CallShape, AbstractMesh], tuple[Any, Any]] | None = None


def first_obstacle(*obstacles: tuple[bool, str]) -> str | None:
    """The reason of the first obstacle that is present."""
    return next((reason for present, reason in obstacles if present), None)


def dropout_obstacle(shape: CallShape) -> str | None:
    """The one of every implementation that never holds the attention weights."""
    return "it has no dropout on the attention weights" if shape.dropout else None


def fused_obstacle(shape: CallShape, platform_name: str) -> str | None:
    """Those of the fused kernels of a platform."""
    here = platform.backend_platform()
    if here != platform_name:
        return f"it needs a {platform_name.upper()}, not a {here.upper()}"
    return dropout_obstacle(shape) or first_obstacle(
        (shape.continued, "it has no mask for decoding with a cache")
    )
