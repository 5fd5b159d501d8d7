"""What a PosGen config says of the data and the optimization, with the paper's defaults.

N rows of T tokens.
"""

import dataclasses
import math
from typing import NamedTuple

import jax

from rrope_jax.posgen.splits import SPLITS, Sizes, Splits
from rrope_jax.posgen.tasks import COMBINATIONS, TASKS, generate

Array = jax.Array

_ROWS = ("train_sequences", "validation_sequences", "test_sequences")


class Data(NamedTuple):
    """Token rows without the start token: int32[N, L] to train, int32[N, L'] to evaluate."""

    train_NT: Array
    validation_NT: Array
    test_NT: Array


class SeedKeys(NamedTuple):
    """The random keys of one seed: of its data, its initial parameters and its training."""

    data: Array
    init: Array
    train: Array


def seed_keys(seed: int) -> SeedKeys:
    """The keys that everything random of a seed is drawn from.

    They depend on the seed alone, so data, initial parameters and batches of methods are paired.
    """
    return SeedKeys(*jax.random.split(jax.random.key(seed), 3))


@dataclasses.dataclass(frozen=True, kw_only=True)
class TaskConfig:
    """The data of a PosGen task (arXiv 2403.00071, section 6.1).

    Attributes:
      modulus, j, k: see `tasks.generate`.
      combination: h, a key of `COMBINATIONS`.
      splits: a key of `SPLITS`.
      train_length: L, tokens of a training sequence, its seed included.
      test_length: L', tokens of validation and test sequences.
      train_sequences, validation_sequences, test_sequences: rows of the splits.

    Raises:
      ValueError: a field is out of range, or the splits do not fit the number of seeds.
    """

    modulus: int = 17
    j: int = 1
    k: int = 3
    combination: str = "modular_sum"
    splits: str = "disjoint"
    train_length: int = 64
    test_length: int = 256
    train_sequences: int = 10_000
    validation_sequences: int = 1_000
    test_sequences: int = 1_000

    def __post_init__(self) -> None:
        for name, least in (("modulus", 2), ("j", 1), ("k", 1), *((n, 1) for n in _ROWS)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}={getattr(self, name)} must be at least {least}")
        if self.train_length <= self.seed_length:
            raise ValueError(
                f"train_length={self.train_length} must exceed j+k={self.seed_length}: nothing "
                "would be generated"
            )
        if self.test_length <= self.train_length:
            raise ValueError(
                f"test_length={self.test_length} must exceed train_length={self.train_length}: "
                "there would be no unseen positions to test"
            )
        for name, table in (("combination", COMBINATIONS), ("splits", SPLITS)):
            if getattr(self, name) not in table:
                raise ValueError(
                    f"{name}={getattr(self, name)!r} is unknown; choose one of {', '.join(table)}"
                )
        jax.eval_shape(lambda: self.split(jax.random.key(0)))  # raises where seeds are too few

    @property
    def seed_length(self) -> int:
        """Tokens that are given rather than generated."""
        return self.j + self.k

    @property
    def start_token(self) -> int:
        """The token before every sequence, after the m tokens of the task."""
        return self.modulus

    @property
    def vocab_size(self) -> int:
        """The task's tokens and the start token."""
        return self.modulus + 1

    def split(self, key: Array) -> Splits:
        """The first tokens of the rows of each split."""
        sizes = Sizes(self.train_sequences, self.validation_sequences, self.test_sequences)
        return SPLITS[self.splits](key, sizes, modulus=self.modulus, seed_length=self.seed_length)

    def data(self, task: str, key: Array) -> Data:
        """Generates the rows of the three splits.

        Args:
          task: a key of `TASKS`; static under jit.
          key: from `seed_keys`.
        """
        seeds = self.split(key)

        def rows(seeds_NS: Array, length: int) -> Array:
            return generate(
                task,
                seeds_NS,
                length,
                modulus=self.modulus,
                j=self.j,
                k=self.k,
                combine=COMBINATIONS[self.combination],
            )

        return Data(
            rows(seeds.train, self.train_length),
            rows(seeds.validation, self.test_length),
            rows(seeds.test, self.test_length),
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class PosgenTrainConfig:
    """Optimization; the defaults are the paper's (Appendix C.1) and its code's.

    Attributes:
      steps: optimizer steps; 150 epochs of 10,000 rows in batches of 128 are 11,700.
      batch_size: rows per step; an incomplete batch at the end of an epoch is dropped.
      learning_rate: peak of a one-cycle cosine schedule.
      warmup_fraction: share of the steps before the peak.
      weight_decay: AdamW's decoupled decay, on all parameters as in the authors' code.
      b1, b2: AdamW's moment decays.
      gradient_clip: bound on the global norm; None for none.
      validate_every: steps between validations, a divisor of steps.
      steps_per_call: steps between the host's checks of progress, checkpoint time and requests to
        stop; a divisor of validate_every. None means validate_every.
      eval_batch_size: rows per forward pass of validation and test, a divisor of both splits.

    Raises:
      ValueError: a field is out of range or does not divide another.
    """

    steps: int = 11_700
    batch_size: int = 128
    learning_rate: float = 2e-4
    warmup_fraction: float = 0.1
    weight_decay: float = 1e-2
    b1: float = 0.9
    b2: float = 0.999
    gradient_clip: float | None = None
    validate_every: int = 78
    steps_per_call: int | None = None
    eval_batch_size: int = 100

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "validate_every", "eval_batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        if self.steps_per_call is not None and self.steps_per_call < 1:
            raise ValueError(
                f"steps_per_call={self.steps_per_call} must be at least 1, or None for "
                "validate_every"
            )
        if self.steps % self.validate_every:
            fitting = math.ceil(self.steps / self.validate_every) * self.validate_every
            raise ValueError(
                f"validate_every={self.validate_every} must divide steps={self.steps}; for "
                f"instance steps={fitting}"
            )
        if self.validate_every % self.call_steps:
            raise ValueError(
                f"steps_per_call={self.steps_per_call} must divide validate_every="
                f"{self.validate_every}; 1 always does"
            )
        for name in ("learning_rate", "weight_decay"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) >= 0):
                raise ValueError(f"{name}={getattr(self, name)} must be a finite number >= 0")
        for name in ("b1", "b2", "warmup_fraction"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be in [0, 1)")
        if self.gradient_clip is not None and not self.gradient_clip > 0:
            raise ValueError(f"gradient_clip={self.gradient_clip} must be > 0, or None for none")

    @property
    def call_steps(self) -> int:
        """`steps_per_call` with its default resolved."""
        return self.validate_every if self.steps_per_call is None else self.steps_per_call


def check_tasks(tasks: tuple[str, ...]) -> None:
    """Raises ValueError for a task that does not exist."""
    for task in tasks:
        if task not in TASKS:
            raise ValueError(f"tasks: {task!r} is unknown; choose from {', '.join(TASKS)}")
