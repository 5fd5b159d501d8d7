"""Training and testing one PosGen model as pure functions of arrays.

Nothing here branches on the RoPE method: it enters as a `PhaseTable`, so one compiled program
trains every method and seed, one after another or side by side under `jax.vmap`.

N rows, B batch, T tokens, E embeddings under test.
"""

import contextlib
import dataclasses
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from rrope_jax.model import Decoder, ModelConfig
from rrope_jax.model.config import ACTIVATIONS
from rrope_jax.posgen.splits import SPLITS, Sizes
from rrope_jax.posgen.tasks import COMBINATIONS, TASKS, generate
from rrope_jax.rope import PhaseTable, RopeSpec, cos_sin_from_table
from rrope_jax.rope.positions import PositionSampling, sample

Array = jax.Array

MATMUL_PRECISIONS = ("bfloat16", "tensorfloat32", "float32")
"""What float32 matrix products may be asked to be at least, by JAX's names."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TaskConfig:
    """The data of a PosGen task; fields as in `tasks.generate` and `splits`.

    Attributes:
      modulus, j, k: see `tasks.generate`.
      train_length: L, tokens of a training sequence, its seed included.
      test_length: L', tokens of validation and test sequences.
      combination: h, a key of `COMBINATIONS`.
      splits: a key of `SPLITS`.
      train_sequences, validation_sequences, test_sequences: rows of the splits.

    Raises:
      ValueError: a field is out of range, or the splits do not fit the number of seeds.
    """

    modulus: int = 17
    j: int = 1
    k: int = 3
    train_length: int = 64
    test_length: int = 256
    combination: str = "modular_sum"
    splits: str = "disjoint"
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

    def split(self, key: Array) -> Any:
        """The `Splits` of this config for a key."""
        sizes = Sizes(self.train_sequences, self.validation_sequences, self.test_sequences)
        return SPLITS[self.splits](key, sizes, modulus=self.modulus, seed_length=self.seed_length)


_ROWS = ("train_sequences", "validation_sequences", "test_sequences")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Optimization; the defaults are the paper's (Appendix C.1) and its code's.

    Attributes:
      steps: optimizer steps; 150 epochs of 10,000 rows in batches of 128 are 11,700.
      batch_size: rows per step; the rest of an epoch that fills no batch is dropped.
      learning_rate: peak of a one-cycle cosine schedule.
      warmup_fraction: share of the steps before the peak.
      weight_decay: AdamW's decoupled decay, on all parameters as in the authors' code.
      b1, b2: AdamW's moment decays.
      gradient_clip: bound on the global norm; None for none.
      validate_every: steps between validations, a divisor of steps.
      steps_per_call: steps that the device runs before the host looks at progress, the time of the
        next checkpoint and a wish to stop; a divisor of validate_every. None means validate_every.
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


class Data(NamedTuple):
    """Token rows without the start token: int32[N, L] to train, int32[N, L'] to evaluate."""

    train_NT: Array
    validation_NT: Array
    test_NT: Array


class State(NamedTuple):
    """Everything that training changes."""

    params: Any
    opt_state: Any
    step: Array


class Measures(NamedTuple):
    """Teacher-forced means over rows, float32[E, L' - (j+k)]: one entry per generated position."""

    accuracy: Array
    loss: Array


@dataclasses.dataclass(frozen=True)
class Program:
    """The functions of one PosGen setting. All methods are pure and may be jitted or vmapped.

    Attributes:
      task, model, train: the setting.
      positions: how training positions are drawn; validation and test count from 0.
      matmul_precision: of float32 matrix products, one of `MATMUL_PRECISIONS`; None leaves it to
        JAX, which takes TF32 on NVIDIA GPUs and one pass of bfloat16 on TPUs. CPUs have float32
        products only.

    Raises:
      ValueError: the precision is unknown, or two parts do not fit together.
    """

    task: TaskConfig
    model: ModelConfig
    train: TrainConfig
    positions: PositionSampling = PositionSampling()
    matmul_precision: str | None = None

    def __post_init__(self) -> None:
        if self.matmul_precision not in (None, *MATMUL_PRECISIONS):
            raise ValueError(
                f"matmul_precision={self.matmul_precision!r} is unknown; choose one of "
                f"{', '.join(MATMUL_PRECISIONS)}, or None for JAX's own choice"
            )
        if self.model.vocab_size != self.task.vocab_size:
            raise ValueError(
                f"the model's vocab_size={self.model.vocab_size} must be modulus + 1 = "
                f"{self.task.vocab_size}"
            )
        if self.train.batch_size > self.task.train_sequences:
            raise ValueError(
                f"batch_size={self.train.batch_size} exceeds train_sequences="
                f"{self.task.train_sequences}"
            )
        jax.eval_shape(  # raises where the sampling does not fit the training length
            lambda: sample(self.positions, jax.random.key(0), 1, self.task.train_length)
        )
        for name in ("validation_sequences", "test_sequences"):
            if getattr(self.task, name) % self.train.eval_batch_size:
                raise ValueError(
                    f"eval_batch_size={self.train.eval_batch_size} must divide {name}="
                    f"{getattr(self.task, name)}"
                )

    def forward_flops(self, length: int) -> float:
        """Floating point operations in the matrix products of a forward pass of one row.

        2 per multiply-add. Attention counts all pairs of tokens, although half of them are masked;
        norms, softmax, rotation and dropout count as nothing.

        Args:
          length: tokens of the row.
        """
        model, D = self.model, self.model.d_model
        inner, kv = model.num_heads * model.head_size, model.kv_heads * model.head_size
        feed_forward = (2 + ACTIVATIONS[model.activation].gated) * D * model.d_ff
        layer = length * (2 * D * inner + 2 * D * kv + feed_forward) + 2 * length**2 * inner
        logits = (length - self.task.seed_length) * D * model.vocab_size
        return 2.0 * (model.num_layers * layer + logits)

    def data(self, task: str, key: Array) -> Data:
        """Generates the rows of the three splits; `task` is a key of `TASKS`, static."""
        config = self.task
        splits = config.split(key)

        def rows(seeds: Array, length: int) -> Array:
            return generate(
                task,
                seeds,
                length,
                modulus=config.modulus,
                j=config.j,
                k=config.k,
                combine=COMBINATIONS[config.combination],
            )

        return Data(
            rows(splits.train, config.train_length),
            rows(splits.validation, config.test_length),
            rows(splits.test, config.test_length),
        )

    def init(self, key: Array) -> State:
        """Fresh parameters and optimizer state."""
        params = nnx.split(self._decoder(key))[1]
        return State(params, self.optimizer().init(params), jnp.zeros((), jnp.int32))

    def optimizer(self) -> optax.GradientTransformation:
        """AdamW on a one-cycle schedule."""
        config = self.train
        schedule = optax.cosine_onecycle_schedule(
            config.steps, config.learning_rate, pct_start=config.warmup_fraction
        )
        adamw = optax.adamw(schedule, b1=config.b1, b2=config.b2, weight_decay=config.weight_decay)
        if config.gradient_clip is None:
            return adamw
        return optax.chain(optax.clip_by_global_norm(config.gradient_clip), adamw)

    def train_steps(
        self, state: State, train_NT: Array, table: PhaseTable, key: Array, *, steps: int
    ) -> tuple[State, Array]:
        """Runs `steps` steps in one scan.

        Batch, positions and dropout of a step depend on `key` and the step's number alone, so a
        run cut into pieces equals an unbroken one.

        Returns:
          The new state and the training losses, float32[steps].
        """
        batch_key, dropout_key, position_key = jax.random.split(key, 3)
        rows_SB = self._batch_rows(batch_key, state.step, steps)
        optimizer = self.optimizer()

        def step(state: State, rows_B: Array) -> tuple[State, Array]:
            step_position_key = jax.random.fold_in(position_key, state.step)
            rotation = self._training_rotation(table, step_position_key, rows_B.size)
            step_key = jax.random.fold_in(dropout_key, state.step) if self.model.dropout else None

            def objective(params: Any) -> Array:
                nll_BT, _ = self._predict(params, train_NT[rows_B], rotation, step_key)
                return jnp.mean(nll_BT)

            loss, gradients = jax.value_and_grad(objective)(state.params)
            updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
            params = optax.apply_updates(state.params, updates)
            return State(params, opt_state, state.step + 1), loss

        with self._products():  # the backward pass has them too, and so has optax's schedule
            return jax.lax.scan(step, state, rows_SB)

    def evaluate(self, params: Any, rows_NT: Array, tables: PhaseTable) -> Measures:
        """Teacher-forced accuracy and loss of one model under each of E stacked tables."""
        batches = rows_NT.reshape(-1, self.train.eval_batch_size, rows_NT.shape[1])

        def under_table(table: PhaseTable) -> Measures:
            rotation = cos_sin_from_table(table, jnp.arange(rows_NT.shape[1]))

            def batch(rows_BT: Array) -> Measures:
                nll_BT, hit_BT = self._predict(params, rows_BT, rotation, None)
                return Measures(jnp.mean(hit_BT, axis=0), jnp.mean(nll_BT, axis=0))

            by_batch: Measures = jax.lax.map(batch, batches)
            return Measures(*(jnp.mean(measure, axis=0) for measure in by_batch))

        with self._products():
            by_table: Measures = jax.lax.map(under_table, tables)
        return by_table

    def _products(self) -> contextlib.AbstractContextManager[Any]:
        """Where what is traced has products of the precision asked for."""
        if self.matmul_precision is None:
            return contextlib.nullcontext()
        products: contextlib.AbstractContextManager[Any]
        products = jax.default_matmul_precision(self.matmul_precision)
        return products

    def _decoder(self, key: Array) -> Decoder:
        # the spec only names the head size: tables always come as arguments
        spec = RopeSpec(head_dim=self.model.head_size)
        return Decoder(self.model, spec, rngs=nnx.Rngs(params=key))

    def _predict(
        self, params: Any, rows_BT: Array, rotation: tuple[Array, Array], dropout_key: Array | None
    ) -> tuple[Array, Array]:
        """Negative log likelihood and hit (float32) of every generated token."""
        graph = nnx.split(nnx.eval_shape(lambda: self._decoder(jax.random.key(0))))[0]
        decoder = nnx.merge(graph, params)
        start_B1 = jnp.full_like(rows_BT[:, :1], self.task.start_token)
        inputs_BT = jnp.concatenate([start_B1, rows_BT[:, :-1]], axis=1)
        hidden_BTD = decoder.hidden(inputs_BT, rotation=rotation, dropout_key=dropout_key)
        given = self.task.seed_length
        logits_BTV = decoder.logits(hidden_BTD[:, given:])
        target_BT = rows_BT[:, given:]
        nll_BT = optax.softmax_cross_entropy_with_integer_labels(logits_BTV, target_BT)
        hit_BT = (jnp.argmax(logits_BTV, axis=-1) == target_BT).astype(jnp.float32)
        return nll_BT, hit_BT

    def _training_rotation(self, table: PhaseTable, key: Array, batch: int) -> tuple[Array, Array]:
        length = self.task.train_length
        if self.positions.sampler == "contiguous":  # one row serves all, so no table per sequence
            return cos_sin_from_table(table, jnp.arange(length))
        whole_BT, fraction_BT = sample(self.positions, key, batch, length)
        return cos_sin_from_table(table, whole_BT, fraction=fraction_BT)

    def _batch_rows(self, key: Array, first_step: Array, steps: int) -> Array:
        """int32[steps, B]: row numbers, every epoch a new permutation."""
        rows, batch = self.task.train_sequences, self.train.batch_size
        per_epoch = rows // batch
        first_epoch = first_step // per_epoch
        epochs = first_epoch + jnp.arange((steps - 1) // per_epoch + 2)

        def epoch_rows(epoch: Array) -> Array:
            order = jax.random.permutation(jax.random.fold_in(key, epoch), rows)
            return order[: per_epoch * batch].reshape(per_epoch, batch)

        order = jax.vmap(epoch_rows)(epochs).reshape(-1, batch)
        return jax.lax.dynamic_slice_in_dim(order, first_step - first_epoch * per_epoch, steps)


def check_tasks(tasks: tuple[str, ...]) -> None:
    """Raises ValueError for a task that does not exist."""
    for task in tasks:
        if task not in TASKS:
            raise ValueError(f"tasks: {task!r} is unknown; choose from {', '.join(TASKS)}")
