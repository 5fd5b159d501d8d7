"""PosGen configs of the data and the optimization; the defaults are the paper's.

Axes: N rows, T tokens.
"""

import dataclasses
import math
from typing import Any, NamedTuple, Protocol

import jax

from rrope_jax.posgen.splits import SPLITS, Sizes, Splits
from rrope_jax.posgen.tasks import COMBINATIONS, TASKS, generate

Array = jax.Array

_ROWS = ("train_sequences", "validation_sequences", "test_sequences")


class Data(NamedTuple):
    """Token rows without the start token: int32[N, L] for training, int32[N, L'] otherwise."""

    train_NT: Array
    validation_NT: Array
    test_NT: Array


class SeedKeys(NamedTuple):
    """The random keys of a seed, for its data, initial parameters and training."""

    data: Array
    init: Array
    train: Array


def seed_keys(seed: int) -> SeedKeys:
    """Returns the random keys of a seed.

    They depend only on the seed, so methods share data, initial parameters and batches.
    """
    return SeedKeys(*jax.random.split(jax.random.key(seed), 3))


class ProgramTask(Protocol):
    """What a program needs to know of its task; `TaskConfig` is PosGen's."""

    @property
    def train_length(self) -> int:
        """Tokens per training sequence, without the start token."""

    @property
    def test_length(self) -> int:
        """Tokens per test sequence, without the start token."""

    @property
    def seed_length(self) -> int:
        """Number of tokens at the start of every sequence that are not predicted."""

    @property
    def start_token(self) -> int:
        """Id of the token before every sequence."""

    @property
    def vocab_size(self) -> int:
        """Number of tokens, with the start token."""

    def check(self, vocab_size: int, train: "PosgenTrainConfig") -> None:
        """Raises ValueError if a model or an optimization does not fit the data."""

    def data(self, task: str, key: Array) -> Any:
        """Makes the data of a seed: a tuple of three pytrees, for training, validation and test."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TaskConfig:
    """The data of a PosGen task (arXiv 2403.00071, section 6.1).

    Attributes:
      modulus, j, k: See `tasks.generate`.
      combination: The function h, a key of `COMBINATIONS`.
      splits: A key of `SPLITS`.
      train_length: L, tokens per training sequence, including the seed.
      test_length: L', tokens per validation and test sequence, including the seed.
      train_sequences, validation_sequences, test_sequences: Rows of the splits.

    Raises:
      ValueError: A field is out of range, or there are not enough seeds for the splits.
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
        jax.eval_shape(lambda: self.split(jax.random.key(0)))  # raises if there are too few seeds

    @property
    def seed_length(self) -> int:
        """Number of given (not generated) tokens per sequence, j + k."""
        return self.j + self.k

    @property
    def start_token(self) -> int:
        """Id of the token before every sequence; it follows the m tokens of the task."""
        return self.modulus

    @property
    def vocab_size(self) -> int:
        """Number of tokens of the task, plus one for the start token."""
        return self.modulus + 1

    def check(self, vocab_size: int, train: "PosgenTrainConfig") -> None:
        """Raises ValueError if a model or an optimization does not fit the data."""
        if vocab_size != self.vocab_size:
            raise ValueError(
                f"the model's vocab_size={vocab_size} must be modulus + 1 = {self.vocab_size}"
            )
        if train.batch_size > self.train_sequences:
            raise ValueError(
                f"batch_size={train.batch_size} exceeds train_sequences={self.train_sequences}"
            )
        for name in ("validation_sequences", "test_sequences"):
            if getattr(self, name) % train.eval_batch_size:
                raise ValueError(
                    f"eval_batch_size={train.eval_batch_size} must divide {name}="
                    f"{getattr(self, name)}"
                )

    def split(self, key: Array) -> Splits:
        """Draws the seed tokens of each split's rows."""
        sizes = Sizes(self.train_sequences, self.validation_sequences, self.test_sequences)
        return SPLITS[self.splits](key, sizes, modulus=self.modulus, seed_length=self.seed_length)

    def data(self, task: str, key: Array) -> Data:
        """Generates the rows of the three splits.

        Args:
          task: A key of `TASKS`; static under jit.
          key: The `data` key from `seed_keys`.
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
    """Optimization; the defaults are those of the paper (Appendix C.1) and its code.

    Attributes:
      steps: Optimizer steps; 150 epochs of 10,000 rows in batches of 128 are 11,700.
      batch_size: Rows per step; an incomplete batch at the end of an epoch is dropped.
      learning_rate: Peak of a one-cycle cosine schedule.
      warmup_fraction: Fraction of the steps before the peak.
      weight_decay: AdamW's decoupled decay, applied to all parameters as in the authors' code.
      b1, b2: AdamW's moment decays.
      gradient_clip: Maximum global norm of the gradients; None disables clipping.
      validate_every: Steps between validations; must divide `steps`.
      frequency_rate: Learning rate of learned frequencies (methods `learned_*`), as a multiple of
        `learning_rate`. It follows the same schedule, without weight decay and with a gradient norm
        of its own.
      steps_per_call: Steps between the host's checks for progress, checkpoints and stop requests;
        must divide `validate_every`, which is the default.
      eval_batch_size: Rows per forward pass in validation and test; must divide both splits.

    Raises:
      ValueError: A field is out of range or does not divide another.
    """

    steps: int = 11_700
    batch_size: int = 128
    learning_rate: float = 2e-4
    warmup_fraction: float = 0.1
    weight_decay: float = 1e-2
    b1: float = 0.9
    b2: float = 0.999
    gradient_clip: float | None = None
    frequency_rate: float = 1.0
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
        for name in ("learning_rate", "weight_decay", "frequency_rate"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) >= 0):
                raise ValueError(f"{name}={getattr(self, name)} must be a finite number >= 0")
        for name in ("b1", "b2", "warmup_fraction"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be in [0, 1)")
        if self.gradient_clip is not None and not self.gradient_clip > 0:
            raise ValueError(f"gradient_clip={self.gradient_clip} must be > 0, or None for none")

    def fields(self) -> dict[str, Any]:
        """All fields, without `frequency_rate` at its default, which older results lack."""
        fields = dataclasses.asdict(self)
        if self.frequency_rate == PosgenTrainConfig.frequency_rate:
            del fields["frequency_rate"]
        return fields

    @property
    def call_steps(self) -> int:
        """`steps_per_call` with its default resolved."""
        return self.validate_every if self.steps_per_call is None else self.steps_per_call


def check_tasks(tasks: tuple[str, ...]) -> None:
    """Raises ValueError if a task is unknown."""
    for task in tasks:
        if task not in TASKS:
            raise ValueError(f"tasks: {task!r} is unknown; choose from {', '.join(TASKS)}")
