"""Trains and tests a PosGen model, as pure functions of arrays.

Nothing here branches on the RoPE method, which is passed as `Tables`. One compiled program
therefore trains any method and seed, sequentially or side by side under `jax.vmap`.

Axes: N rows, B batch, T tokens, E embeddings tested.
"""

import contextlib
import dataclasses
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
import optax
from flax import nnx

from rrope_jax.model import Decoder, ModelConfig
from rrope_jax.model.decoder import Rotations
from rrope_jax.model.flops import forward_flops
from rrope_jax.model.layer_types import LAYER_TYPES
from rrope_jax.model.layers import FarRotation, Rotation
from rrope_jax.posgen.config import PosgenTrainConfig, ProgramTask
from rrope_jax.posgen.results import Cell
from rrope_jax.rope import (
    PhaseTable,
    RopeSpec,
    cos_sin_from_table,
    phase_table,
    query_temperature_from_table,
    query_temperature_table,
)
from rrope_jax.rope.far_positions import FarPositions, far_positions_of
from rrope_jax.rope.learned import learned_cos_sin
from rrope_jax.rope.positions import Positions, PositionSampling, sample

Array = jax.Array


class LayerTables(NamedTuple):
    """The embedding of the layers of one type, as arrays.

    Attributes:
      phases: The table of its frequencies.
      far: The positions of far pairs, int32 scalars; None in programs without such methods.
    """

    phases: PhaseTable
    far: FarPositions | None = None


Tables = Mapping[str, LayerTables]
"""Layer type -> the tables of its embedding; types whose layers do not rotate have none."""

MATMUL_PRECISIONS = ("bfloat16", "tensorfloat32", "float32")
"""Choices for the minimum precision of float32 matmuls, by JAX's names."""


class PosgenState(NamedTuple):
    """The state of a training: parameters, optimizer state, and step (an int32 scalar)."""

    params: Any
    opt_state: Any
    step: Array


class LearnedParams(NamedTuple):
    """The parameters of a training that learns its frequencies.

    Attributes:
      decoder: Those of the model.
      log_ratios: Layer type -> the logarithms of `rope.learned`, float32[head_dim / 2].
    """

    decoder: Any
    log_ratios: Mapping[str, Array]


class PositionMeans(NamedTuple):
    """Teacher-forced means over rows for each generated position, float32[E, L' - (j+k)]."""

    accuracy: Array
    loss: Array


@dataclasses.dataclass(frozen=True)
class PosgenProgram:
    """The functions of a PosGen setting. All methods are pure and may be jitted or vmapped.

    Programs of other tasks differ in what `_batch_rows`, `_batch`, `_loss`, `_training_positions`,
    `evaluate` and `cell` do with the data of `task.data`.

    Attributes:
      task, model, train: The setting.
      positions: How training positions are sampled; in validation and test, they start from 0.
      matmul_precision: Precision of float32 matmuls, one of `MATMUL_PRECISIONS`. None leaves it to
        JAX, which uses TF32 on NVIDIA GPUs and single-pass bfloat16 on TPUs. CPUs always use
        float32.
      position_temperatures: Whether tables contain factors on queries by their position, 1 for an
        embedding without. If not, no embedding has such a factor.
      far_pairs: Whether some methods have other positions for far pairs. The program then computes
        both attentions for all methods.
      learned: Whether the frequencies are learned, starting from those of the tables. If so, the
        parameters of a state are `LearnedParams`.

    Raises:
      ValueError: The precision is unknown, or parts of the setting do not fit together.
    """

    task: ProgramTask
    model: ModelConfig
    train: PosgenTrainConfig
    positions: PositionSampling = PositionSampling()
    matmul_precision: str | None = None
    position_temperatures: bool = False
    far_pairs: bool = False
    learned: bool = False

    def __post_init__(self) -> None:
        if self.matmul_precision not in (None, *MATMUL_PRECISIONS):
            raise ValueError(
                f"matmul_precision={self.matmul_precision!r} is unknown; choose one of "
                f"{', '.join(MATMUL_PRECISIONS)}, or None for JAX's own choice"
            )
        self.model.check_trainable()
        self.task.check(self.model.vocab_size, self.train)
        jax.eval_shape(  # raises if the sampling does not fit the training length
            lambda: sample(self.positions, jax.random.key(0), 1, self.task.train_length)
        )

    def tables(self, spec: RopeSpec, seq_len: int | None = None) -> Tables:
        """Returns the tables of an embedding for the model's layers, as NumPy arrays.

        Models of one setting have tables of the same layer types, full attention among them.

        Args:
          spec: The embedding.
          seq_len: The current length, for the scalings that depend on it.
        """
        return {name: self._table(spec.of(name), seq_len) for name in self._layers_with_tables}

    def _table(self, spec: RopeSpec, seq_len: int | None) -> LayerTables:
        phases = phase_table(spec, seq_len)
        if self.position_temperatures:
            phases = phases._replace(temperature=query_temperature_table(spec))
        far = jax.tree.map(np.int32, far_positions_of(spec, seq_len)) if self.far_pairs else None
        return LayerTables(phases, far)

    def forward_flops(self, length: int) -> float:
        """Returns the FLOPs of a forward pass of one row, by `model.flops`.

        Attention counts all pairs of tokens, although half of them are masked.

        Args:
          length: Tokens in the row.
        """
        predictions = length - self.task.seed_length
        pairs = self.model.num_layers * length**2
        return float(forward_flops(self.model, tokens=length, pairs=pairs, predictions=predictions))

    def measured_rows(self, rows_SNT: Any) -> tuple[int, int]:
        """Returns how many rows `evaluate` reads for a lane, and the tokens of each.

        Args:
          rows_SNT: What it reads, with a leading lane axis; shapes suffice.
        """
        return rows_SNT.shape[1], self.task.test_length

    def init(self, key: Array) -> PosgenState:
        """Initializes parameters and optimizer state."""
        params: Any = nnx.split(self._decoder(key))[1]
        if self.learned:
            log_ratio_F = jnp.zeros(self.model.head_size // 2)
            params = LearnedParams(params, dict.fromkeys(self._layers_with_tables, log_ratio_F))
        return PosgenState(params, self.optimizer().init(params), jnp.zeros((), jnp.int32))

    def optimizer(self) -> optax.GradientTransformation:
        """Returns AdamW with a one-cycle schedule; learned frequencies have one of their own."""
        config = self.train
        decoder = self._adamw(config.learning_rate, config.weight_decay)
        if not self.learned:
            return decoder
        frequencies = self._adamw(config.learning_rate * config.frequency_rate, 0.0)
        kinds = LearnedParams("decoder", "frequencies")  # type: ignore[arg-type]  # a prefix
        return optax.partition({"decoder": decoder, "frequencies": frequencies}, kinds)

    def _adamw(self, learning_rate: float, weight_decay: float) -> optax.GradientTransformation:
        config = self.train
        schedule = optax.cosine_onecycle_schedule(
            config.steps, learning_rate, pct_start=config.warmup_fraction
        )
        adamw = optax.adamw(schedule, b1=config.b1, b2=config.b2, weight_decay=weight_decay)
        if config.gradient_clip is None:
            return adamw
        return optax.chain(optax.clip_by_global_norm(config.gradient_clip), adamw)

    def train_steps(
        self, state: PosgenState, train_NT: Any, tables: Tables, key: Array, *, steps: int
    ) -> tuple[PosgenState, Array]:
        """Runs `steps` optimizer steps in one scan.

        The batch, positions and dropout of a step depend only on `key` and the step number, so an
        interrupted run gives the same results as an uninterrupted one.

        Returns:
          The new state and the training losses, float32[steps].
        """
        batch_key, dropout_key, position_key = jax.random.split(key, 3)
        rows_SB = self._batch_rows(batch_key, train_NT, state.step, steps)
        optimizer = self.optimizer()

        def step(state: PosgenState, rows_B: Array) -> tuple[PosgenState, Array]:
            step_position_key = jax.random.fold_in(position_key, state.step)
            batch = self._batch(train_NT, rows_B)
            positions = self._training_positions(step_position_key, batch)
            step_key = jax.random.fold_in(dropout_key, state.step) if self.model.dropout else None

            def objective(params: Any) -> Array:
                log_ratios = params.log_ratios if self.learned else None
                rotation = self._rotations(tables, positions, log_ratios)
                return self._loss(params, batch, rotation, step_key)

            loss, gradients = jax.value_and_grad(objective)(state.params)
            updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
            params = optax.apply_updates(state.params, updates)
            return PosgenState(params, opt_state, state.step + 1), loss

        with self._products():  # includes the backward pass and optax's schedule
            return jax.lax.scan(step, state, rows_SB)

    def evaluate(self, params: Any, rows_NT: Any, tables: Tables) -> PositionMeans:
        """Computes teacher-forced accuracy and loss under each of E stacked tables."""
        batches = rows_NT.reshape(-1, self.train.eval_batch_size, rows_NT.shape[1])

        def under_tables(tables: Tables) -> PositionMeans:
            rotation = self._rotations(tables, Positions(jnp.arange(rows_NT.shape[1])))

            def batch(rows_BT: Array) -> PositionMeans:
                nll_BT, hit_BT = self._predict(params, rows_BT, rotation, None)
                return PositionMeans(jnp.mean(hit_BT, axis=0), jnp.mean(nll_BT, axis=0))

            by_batch: PositionMeans = jax.lax.map(batch, batches)
            return PositionMeans(*(jnp.mean(measure, axis=0) for measure in by_batch))

        with self._products():
            by_tables: PositionMeans = jax.lax.map(under_tables, tables)
        return by_tables

    def cell(self, accuracy_P: npt.NDArray[Any], loss_P: npt.NDArray[Any], **fields: Any) -> Cell:
        """Makes the results of a test.

        Args:
          accuracy_P: From `evaluate`, under the tables of the test.
          loss_P: The same.
          **fields: The other fields of the cell.
        """
        known = self.task.seed_length
        in_distribution = self.task.train_length - known
        return Cell(
            id_accuracy=float(accuracy_P[:in_distribution].mean()),
            ood_accuracy=float(accuracy_P[in_distribution:].mean()),
            id_loss=float(loss_P[:in_distribution].mean()),
            ood_loss=float(loss_P[in_distribution:].mean()),
            accuracy_by_position=(math.nan,) * known + tuple(accuracy_P.tolist()),
            **fields,
        )

    def _products(self) -> contextlib.AbstractContextManager[Any]:
        """Returns a context in which traced matmuls have `matmul_precision`."""
        if self.matmul_precision is None:
            return contextlib.nullcontext()
        products: contextlib.AbstractContextManager[Any]
        products = jax.default_matmul_precision(self.matmul_precision)
        return products

    def _decoder(self, key: Array) -> Decoder:
        # Only the head size matters, as tables are always passed as arguments.
        spec = RopeSpec(head_dim=self.model.head_size)
        return Decoder(self.model, spec, rngs=nnx.Rngs(params=key))

    def _predict(
        self, params: Any, rows_BT: Array, rotation: Rotations, dropout_key: Array | None
    ) -> tuple[Array, Array]:
        """Returns negative log likelihood and hit (0 or 1) of generated tokens, float32[B, T]."""
        graph = nnx.split(nnx.eval_shape(lambda: self._decoder(jax.random.key(0))))[0]
        decoder = nnx.merge(graph, params.decoder if self.learned else params)
        start_B1 = jnp.full_like(rows_BT[:, :1], self.task.start_token)
        inputs_BT = jnp.concatenate([start_B1, rows_BT[:, :-1]], axis=1)
        hidden_BTD = decoder.hidden(inputs_BT, rotation=rotation, dropout_key=dropout_key)
        first = self.task.seed_length
        logits_BTV = decoder.logits(hidden_BTD[:, first:])
        target_BT = rows_BT[:, first:]
        nll_BT = optax.softmax_cross_entropy_with_integer_labels(logits_BTV, target_BT)
        hit_BT = (jnp.argmax(logits_BTV, axis=-1) == target_BT).astype(jnp.float32)
        return nll_BT, hit_BT

    @property
    def _layers_with_tables(self) -> tuple[str, ...]:
        windowed = "sliding_attention" in self.model.layer_types
        return ("full_attention", *(("sliding_attention",) if windowed else ()))

    def _batch(self, train_NT: Any, rows_B: Array) -> Any:
        """Returns the training data of the rows with the given indices."""
        return train_NT[rows_B]

    def _loss(
        self, params: Any, batch: Any, rotation: Rotations, dropout_key: Array | None
    ) -> Array:
        """Returns the training loss on what `_batch` returned."""
        nll_BT, _ = self._predict(params, batch, rotation, dropout_key)
        return jnp.mean(nll_BT)

    def _training_positions(self, key: Array, batch: Any) -> Positions:
        """Returns the positions for what `_batch` returned."""
        length = self.task.train_length
        if self.positions.sampler == "contiguous":  # one row for all sequences
            return Positions(jnp.arange(length))
        return sample(self.positions, key, batch.shape[0], length)

    def _rotations(
        self, tables: Tables, positions: Positions, log_ratios: Mapping[str, Array] | None = None
    ) -> Rotations:
        """Returns the rotation of each layer type of the model."""
        whole, fraction = positions

        def of_layers(name: str) -> Rotation:
            phases, far = tables[name]

            def cos_sin(whole: Array, fraction: Array | None = None) -> tuple[Array, Array]:
                if log_ratios is None:
                    return cos_sin_from_table(phases, whole, fraction=fraction)
                return learned_cos_sin(phases, log_ratios[name], whole, fraction=fraction)

            temperature = of_far = None
            cos, sin = cos_sin(whole, fraction)
            if phases.temperature is not None:
                temperature = query_temperature_from_table(phases.temperature, whole)
            if far is not None:
                of_queries, of_keys = (cos_sin(f(whole)) for f in (far.of_queries, far.of_keys))
                of_far = FarRotation(*of_queries, *of_keys, far.window)
            return Rotation(cos, sin, temperature, of_far)

        return {
            name: of_layers(name) if LAYER_TYPES[name].rotates else None
            for name in self.model.layer_types
        }

    def _batch_rows(self, key: Array, train_NT: Any, first_step: Array, steps: int) -> Array:
        """Returns row indices, int32[steps, B], with a new permutation in every epoch."""
        rows, batch = train_NT.shape[0], self.train.batch_size
        per_epoch = rows // batch
        first_epoch = first_step // per_epoch
        epochs = first_epoch + jnp.arange((steps - 1) // per_epoch + 2)

        def epoch_rows(epoch: Array) -> Array:
            order = jax.random.permutation(jax.random.fold_in(key, epoch), rows)
            return order[: per_epoch * batch].reshape(per_epoch, batch)

        order = jax.vmap(epoch_rows)(epochs).reshape(-1, batch)
        return jax.lax.dynamic_slice_in_dim(order, first_step - first_epoch * per_epoch, steps)
