"""`TrainConfig`: optimization, rows and positions of a training run, frozen and hashable."""

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from rrope_jax.rope.positions import PositionSampling
from rrope_jax.train.optimizers import OPTIMIZERS
from rrope_jax.train.rounding import DTYPES

SCHEDULES: dict[str, Callable[[jax.Array], jax.Array]] = {
    "constant": jnp.ones_like,
    "linear": lambda progress: 1 - progress,
    "cosine": lambda progress: (1 + jnp.cos(jnp.pi * progress)) / 2,
}
"""Schedule -> remaining share of the learning rate as a function of progress from 0 to 1."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How a decoder is trained.

    Attributes:
      steps: optimizer steps.
      batch_size: rows per step, over all devices and microbatches.
      length: tokens per row.
      accumulation: microbatches per step, a divisor of batch_size. More of them need less memory
        and change only rounding and dropout masks.
      learning_rate: the peak of the schedule.
      schedule: a key of `SCHEDULES`: how the rate decays after the warm-up.
      warmup_fraction: share of the steps spent on warm-up, rounded up to whole steps.
      final_fraction: the rate after the last step, as a share of the peak.
      optimizer: a key of `OPTIMIZERS`.
      param_dtype: the dtype of the decoder's matrices and of their gradients, one of `DTYPES`. In
        bfloat16 there is no other copy of them: updates are rounded stochastically. Scales and
        biases are float32.
      moment_dtype: the dtype of the optimizer's state, one of `DTYPES`; bfloat16 is rounded
        stochastically.
      weight_decay: decoupled decay, on matrices only.
      b1, b2, eps: the optimizer's parameters: decay of the first and second moment, and what is
        added to the divisor.
      gradient_clip: upper bound on the gradient's global norm; None for no clipping.
      frequency_rate: the learning rate of learned frequencies (`rope.learned`), as a multiple of
        learning_rate, without decay and clipped by a norm of their own; None if they are not
        learned.
      loss_chunk: tokens of a microbatch whose logits exist at a time; see `next_token_losses`.
      positions: how rotary positions are drawn.
      seed: seed of the parameters of a new model, of sampled positions and of dropout.

    Raises:
      ValueError: a field is out of range, or two fields conflict.
    """

    steps: int
    batch_size: int
    length: int
    accumulation: int = 1
    learning_rate: float = 3e-4
    schedule: str = "cosine"
    warmup_fraction: float = 0.05
    final_fraction: float = 0.0
    optimizer: str = "adamw"
    param_dtype: str = "float32"
    moment_dtype: str = "float32"
    weight_decay: float = 0.01
    b1: float = 0.9
    b2: float = 0.95
    eps: float = 1e-8
    gradient_clip: float | None = None
    frequency_rate: float | None = None
    loss_chunk: int = 2048
    positions: PositionSampling = PositionSampling()
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "length", "accumulation", "loss_chunk"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        if self.batch_size % self.accumulation:
            raise ValueError(
                f"accumulation={self.accumulation} must divide batch_size={self.batch_size}: it is "
                "the number of equal parts of a batch"
            )
        if self.schedule not in SCHEDULES:
            raise ValueError(
                f"schedule={self.schedule!r} is unknown; choose one of {', '.join(SCHEDULES)}"
            )
        for name, allowed in (
            ("optimizer", OPTIMIZERS),
            ("param_dtype", DTYPES),
            ("moment_dtype", DTYPES),
        ):
            if getattr(self, name) not in allowed:
                raise ValueError(
                    f"{name}={getattr(self, name)!r} is unknown; choose one of {', '.join(allowed)}"
                )
        for name in ("learning_rate", "weight_decay"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) >= 0):
                raise ValueError(f"{name}={getattr(self, name)} must be a finite number >= 0")
        for name in ("warmup_fraction", "final_fraction"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}={getattr(self, name)} must be in [0, 1]")
        for name in ("b1", "b2"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be in [0, 1)")
        if not self.eps > 0:
            raise ValueError(f"eps={self.eps} must be greater than 0; 1e-8 is usual")
        if self.gradient_clip is not None and not self.gradient_clip > 0:
            raise ValueError(f"gradient_clip={self.gradient_clip} must be > 0, or None for none")
        rate = self.frequency_rate
        if rate is not None and not (math.isfinite(rate) and rate >= 0):
            raise ValueError(
                f"frequency_rate={rate} must be a finite number >= 0, or None if frequencies are "
                "not learned"
            )
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"seed={self.seed} must be from 0 to 2^32 - 1")

    @property
    def warmup_steps(self) -> int:
        """The number of steps in which the learning rate rises."""
        return math.ceil(round(self.warmup_fraction * self.steps, 9))

    @property
    def reach(self) -> int:
        """The exclusive upper bound of the positions that training can draw, in tokens."""
        return max(self.length, self.positions.target_length or 0)
