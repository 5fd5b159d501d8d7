"""The length sweep of a task: what is drawn for training, validation and test."""

import dataclasses

import jax
import jax.numpy as jnp

from rrope_jax.algorithmic.sequences import TokenSequence, sequence
from rrope_jax.algorithmic.tasks import TASKS, AlgorithmicTask, generate
from rrope_jax.posgen.config import PosgenTrainConfig

Array = jax.Array


@dataclasses.dataclass(frozen=True, kw_only=True)
class SweepConfig:
    """Lengths of questions, in tokens; the defaults are those of arXiv 2305.16843.

    Attributes:
      train_length: Longest question in training, where lengths are uniform from the shortest one.
      test_length: Longest question in the test.
      test_step: The test has the multiples of this up to `test_length`, rounded down to lengths
        that the task can have.
      test_rows: Rows of each length in the test.
      validation_rows: Rows of each length in a validation, which has the test's lengths up to
        `train_length`.

    Raises:
      ValueError: A field is out of range.
    """

    train_length: int = 40
    test_length: int = 500
    test_step: int = 1
    test_rows: int = 512
    validation_rows: int = 64

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            if getattr(self, field.name) < 1:
                raise ValueError(f"{field.name}={getattr(self, field.name)} must be at least 1")
        if self.test_step > self.train_length:
            raise ValueError(
                f"test_step={self.test_step} must be at most train_length={self.train_length}: no "
                "length of the test would be in distribution"
            )
        if self.test_length < self.train_length + self.test_step:
            raise ValueError(
                f"test_length={self.test_length} must be at least train_length="
                f"{self.train_length} + test_step={self.test_step}: no length of the test would "
                "be beyond training"
            )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Draws:
    """Rows that a program draws when it reads them.

    Attributes:
      key_P: A random key for each length.
      length_P: Question lengths, int32[P].
      rows: Number of rows of each length; static.
      width: Question tokens to which rows are padded; static.
    """

    key_P: Array
    length_P: Array
    rows: int = dataclasses.field(metadata={"static": True})
    width: int = dataclasses.field(metadata={"static": True})


@dataclasses.dataclass(frozen=True)
class SweepTask:
    """A task with its lengths, as `posgen.config.ProgramTask` wants it.

    Attributes:
      name: A key of `TASKS`.
      sweep: The lengths.

    Raises:
      ValueError: The task has no question of a length that the sweep needs.
    """

    name: str
    sweep: SweepConfig

    def __post_init__(self) -> None:
        if not self.validation_lengths:
            raise ValueError(
                f"train_length={self.sweep.train_length} with test_step={self.sweep.test_step}: "
                f"the shortest {self.name} has {self.what.shortest} tokens, so no length of the "
                "test would be in distribution; raise train_length or change test_step"
            )

    @property
    def what(self) -> AlgorithmicTask:
        """The row of `TASKS`."""
        return TASKS[self.name]

    @property
    def separator(self) -> int:
        """Id of the token between question and answer."""
        return self.what.size

    @property
    def start_token(self) -> int:
        """Id of the token before every sequence."""
        return self.what.size + 1

    @property
    def vocab_size(self) -> int:
        """Number of tokens of the task, plus the separator and the start token."""
        return self.what.size + 2

    @property
    def seed_length(self) -> int:
        """Tokens before the earliest answer: those of the shortest question, and the separator."""
        return self.what.shortest + 1

    @property
    def train_length(self) -> int:
        """Tokens per training sequence, padding included."""
        return self.tokens(self.sweep.train_length)

    @property
    def test_length(self) -> int:
        """Tokens per test sequence, padding included."""
        return self.tokens(self.sweep.test_length)

    def tokens(self, width: int) -> int:
        """Returns the tokens of a sequence whose question has the given width."""
        return width + 1 + self.what.answer_length(width)

    @property
    def test_lengths(self) -> tuple[int, ...]:
        """Question lengths of the test, ascending."""
        steps = range(self.sweep.test_step, self.sweep.test_length + 1, self.sweep.test_step)
        possible = (length for length in steps if length >= self.what.shortest)
        return tuple(dict.fromkeys(map(self.what.nearest_length, possible)))

    @property
    def validation_lengths(self) -> tuple[int, ...]:
        """Those of the test that are in distribution."""
        return tuple(n for n in self.test_lengths if n <= self.sweep.train_length)

    def check(self, vocab_size: int, train: PosgenTrainConfig) -> None:
        """Raises ValueError if a model or an optimization does not fit the data."""
        if vocab_size != self.vocab_size:
            raise ValueError(
                f"the model's vocab_size={vocab_size} must be {self.vocab_size} for {self.name}: "
                "its tokens, a separator and a start token"
            )
        for name in ("validation_rows", "test_rows"):
            if getattr(self.sweep, name) % train.eval_batch_size:
                raise ValueError(
                    f"eval_batch_size={train.eval_batch_size} must divide {name}="
                    f"{getattr(self.sweep, name)}"
                )

    def data(self, task: str, key: Array) -> tuple[Array, Draws, Draws]:
        """Returns what the data of a seed is drawn from.

        Args:
          task: The name of this task.
          key: The `data` key of the seed.

        Returns:
          The key of the training rows, and what validation and test read.
        """
        del task
        train_key, validation_key, test_key = jax.random.split(key, 3)

        def draws(key: Array, lengths: tuple[int, ...], rows: int, width: int) -> Draws:
            keys_P = jax.random.split(key, len(lengths))
            return Draws(keys_P, jnp.array(lengths, jnp.int32), rows, width)

        sweep = self.sweep
        validation = draws(
            validation_key, self.validation_lengths, sweep.validation_rows, sweep.train_length
        )
        test = draws(test_key, self.test_lengths, sweep.test_rows, sweep.test_length)
        return train_key, validation, test

    def sequences(self, key_B: Array, length_B: Array, width: int) -> TokenSequence:
        """Draws a batch of rows.

        Args:
          key_B: A random key for each row.
          length_B: Question lengths, int32[B].
          width: Question tokens to which rows are padded; static.

        Returns:
          Sequences with a leading axis B.
        """

        def one(key: Array, length: Array) -> TokenSequence:
            return sequence(generate(self.name, key, length, width=width), self.separator)

        drawn: TokenSequence = jax.vmap(one)(key_B, length_B)
        return drawn

    def training_sequences(self, key: Array, rows_B: Array) -> TokenSequence:
        """Draws rows of an endless stream, each from its number alone.

        Args:
          key: The key of the training rows.
          rows_B: Their numbers, int32[B].
        """
        what, longest = self.what, self.sweep.train_length

        def keys(row: Array) -> Array:
            return jax.random.split(jax.random.fold_in(key, row))

        key_B2 = jax.vmap(keys)(rows_B)
        length_B = jax.vmap(lambda key: jax.random.randint(key, (), what.shortest, longest + 1))(
            key_B2[:, 0]
        )
        return self.sequences(key_B2[:, 1], length_B, longest)


def check_algorithmic_tasks(tasks: tuple[str, ...]) -> None:
    """Raises ValueError if a task is unknown."""
    for task in tasks:
        if task not in TASKS:
            raise ValueError(f"tasks: {task!r} is unknown; choose from {', '.join(TASKS)}")
