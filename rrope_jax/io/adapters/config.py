"""`LoraConfig`: which weights have a low-rank update, frozen and hashable."""

import dataclasses
import math
from collections.abc import Collection, Mapping
from types import MappingProxyType

from rrope_jax.io.weights import EMBEDDING, WEIGHTS, Weight

_PROJECTION = "_proj.weight"
TARGETS: Mapping[str, Weight] = MappingProxyType(
    {
        weight.huggingface.split(".")[-2]: weight
        for weight in WEIGHTS
        if weight.huggingface.endswith(_PROJECTION)
    }
)
"""LLaMA's name of a layer's matrix -> the matrix, in any family: `q_proj` to `down_proj`."""

TRAINED_IN_FULL: Mapping[str, Collection[str]] = MappingProxyType(
    {
        "norm": frozenset(weight.path for weight in WEIGHTS if weight.is_norm),
        "embed": frozenset({EMBEDDING.path}),
    }
)
"""A word of `LoraConfig.train_also` -> the paths of parameters, as LongLoRA names them."""

A, B = "lora_a", "lora_b"
"""The keys of the factors in place of a kernel: float32[L, *I, R] and float32[L, R, *O].

L are the layers, I and O the input and output axes of the kernel, R the rank.
"""

BASE_DTYPES = ("float32", "bfloat16")


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """LoRA: kernels get an update of low rank and are frozen themselves (arXiv 2106.09685).

    A kernel W of a target becomes `W + scaling * A B`. A starts random, B at zero. Only A, B and
    the parameters of `train_also` are trained and have moments.

    Attributes:
      rank: columns of A and rows of B; 0 trains all parameters, without adapters.
      alpha: scaling is `alpha / rank`.
      rslora: scaling is `alpha / sqrt(rank)` instead (arXiv 2312.03732).
      targets: keys of `TARGETS`. In families that fuse these matrices, each has its own update.
      dropout: dropout rate of the inputs of A.
      train_also: keys of `TRAINED_IN_FULL`; LongLoRA (arXiv 2309.12307) trains both.
      base_dtype: dtype of the frozen matrices in memory: float32 or bfloat16. Norms and biases stay
        float32.

    Raises:
      ValueError: a field is out of range.
    """

    rank: int = 0
    alpha: float = 16.0
    rslora: bool = False
    targets: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj")
    dropout: float = 0.0
    train_also: tuple[str, ...] = ()
    base_dtype: str = "float32"

    def __post_init__(self) -> None:
        if self.rank < 0:
            raise ValueError(f"rank={self.rank} must be at least 0; 0 turns LoRA off")
        if not (math.isfinite(self.alpha) and self.alpha > 0):
            raise ValueError(f"alpha={self.alpha} must be a finite number > 0")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout={self.dropout} must be in [0, 1)")
        for name, allowed in (("targets", TARGETS), ("train_also", TRAINED_IN_FULL)):
            words = getattr(self, name)
            if unknown := [word for word in words if word not in allowed]:
                raise ValueError(f"{name} has {unknown[0]!r}; choose from {', '.join(allowed)}")
            if len(set(words)) < len(words):
                raise ValueError(f"{name}={words} names one of them twice")
        if self.rank and not self.targets:
            raise ValueError("targets is empty; name matrices to adapt, or set rank=0")
        if self.base_dtype not in BASE_DTYPES:
            raise ValueError(
                f"base_dtype={self.base_dtype!r} is unknown; choose one of {', '.join(BASE_DTYPES)}"
            )

    @property
    def scaling(self) -> float:
        """The factor of the update."""
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)

    @property
    def adapted(self) -> tuple[str, ...]:
        """The dotted paths of the kernels with an update; empty without LoRA."""
        return tuple(TARGETS[name].path for name in self.targets) if self.rank else ()

    @property
    def trained_in_full(self) -> frozenset[str]:
        """The dotted paths of parameters that are trained beside the adapters."""
        return frozenset(path for word in self.train_also for path in TRAINED_IN_FULL[word])
