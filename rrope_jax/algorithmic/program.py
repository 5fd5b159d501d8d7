"""Trains and tests a decoder on an algorithmic task, as pure functions of arrays.

The machinery is PosGen's (`rrope_jax.posgen.training`). What differs: rows are drawn afresh in
every step, have mixed lengths, and only answers count.

Axes: P question lengths, B rows, T tokens, E embeddings tested.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy.typing as npt

from rrope_jax.algorithmic.config import Draws, SweepTask
from rrope_jax.algorithmic.results import LengthCell
from rrope_jax.algorithmic.sequences import TokenSequence
from rrope_jax.model.decoder import Rotations
from rrope_jax.posgen.training import PosgenProgram, PositionMeans, Tables
from rrope_jax.rope.positions import SAMPLERS, Positions, sample

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class AlgorithmicProgram(PosgenProgram):
    """The functions of a sweep over the lengths of one task.

    Attributes:
      task: The task and its lengths.
      positions: How training positions are sampled, and those of the test if the sampler's source
        does so (`rope.positions.Sampler.at_test`); otherwise test positions start from 0.

    Raises:
      ValueError: As for `PosgenProgram`; or the sampling does not fit the test length.
    """

    task: SweepTask

    def __post_init__(self) -> None:
        super().__post_init__()
        if self._samples_at_test:  # raises if the sampling does not fit
            jax.eval_shape(
                lambda: sample(self.positions, jax.random.key(0), 1, self.task.test_length)
            )

    def evaluate(self, params: Any, rows_NT: Draws, tables: Tables) -> PositionMeans:
        """Computes teacher-forced accuracy and loss by length under each of E stacked tables.

        Both are means over the answer tokens of all rows of a length.

        Args:
          params: The parameters.
          rows_NT: What the rows are drawn from.
          tables: The tables.

        Returns:
          float32[E, P] each.
        """
        draws, batch = rows_NT, self.train.eval_batch_size
        batches = draws.rows // batch

        def of_batch(at: tuple[Array, Array]) -> tuple[Array, Array, Array]:
            row_key, position_key = jax.random.split(at[0])
            rows = self.task.sequences(
                jax.random.split(row_key, batch), jnp.full(batch, at[1]), draws.width
            )
            positions = self._positions(position_key, rows, self._samples_at_test)

            def under_tables(tables: Tables) -> tuple[Array, Array, Array]:
                rotation = self._rotations(tables, positions)
                return self._answer_sums(params, rows, rotation, None)

            sums: tuple[Array, Array, Array] = jax.lax.map(under_tables, tables)
            return sums

        key_PN = jax.vmap(lambda key: jax.random.split(key, batches))(draws.key_P)
        at = key_PN.reshape(-1), jnp.repeat(draws.length_P, batches)
        with self._products():
            by_batch = jax.lax.map(of_batch, at)
        nll_EP, hits_EP, tokens_EP = (
            jnp.sum(measure.reshape(-1, batches, measure.shape[1]), axis=1).T
            for measure in by_batch
        )
        return PositionMeans(hits_EP / tokens_EP, nll_EP / tokens_EP)

    def measured_rows(self, rows_SNT: Draws) -> tuple[int, int]:
        """Returns how many rows `evaluate` reads, of all lengths, and the tokens of each."""
        draws = rows_SNT
        return draws.rows * draws.length_P.shape[1], self.task.tokens(draws.width)

    def cell(
        self, accuracy_P: npt.NDArray[Any], loss_P: npt.NDArray[Any], **fields: Any
    ) -> LengthCell:
        """Makes the results of a test; its arguments are those of `PosgenProgram.cell`."""
        lengths, known = self.task.test_lengths, len(self.task.validation_lengths)
        return LengthCell(
            id_accuracy=float(accuracy_P[:known].mean()),
            ood_accuracy=float(accuracy_P[known:].mean()),
            id_loss=float(loss_P[:known].mean()),
            ood_loss=float(loss_P[known:].mean()),
            lengths=lengths,
            accuracy_by_length=tuple(accuracy_P.tolist()),
            loss_by_length=tuple(loss_P.tolist()),
            **fields,
        )

    @property
    def _samples_at_test(self) -> bool:
        return SAMPLERS[self.positions.sampler].at_test

    def _batch_rows(self, key: Array, train_NT: Array, first_step: Array, steps: int) -> Array:
        """Returns the numbers of the steps' rows, int32[steps, B], each used once."""
        batch = self.train.batch_size
        return (first_step + jnp.arange(steps))[:, None] * batch + jnp.arange(batch)

    def _batch(self, train_NT: Array, rows_B: Array) -> TokenSequence:
        return self.task.training_sequences(train_NT, rows_B)

    def _loss(
        self, params: Any, batch: TokenSequence, rotation: Rotations, dropout_key: Array | None
    ) -> Array:
        nll, _, tokens = self._answer_sums(params, batch, rotation, dropout_key)
        return nll / tokens

    def _answer_sums(
        self, params: Any, rows: TokenSequence, rotation: Rotations, dropout_key: Array | None
    ) -> tuple[Array, Array, Array]:
        """Sums over answer tokens: negative log likelihood, hits, and their number."""
        nll_BT, hit_BT = self._predict(params, rows.tokens, rotation, dropout_key)
        is_answer_BT = rows.is_answer[:, self.task.seed_length :]
        counted = (nll_BT, hit_BT, jnp.ones_like(nll_BT))
        nll, hits, tokens = (jnp.sum(jnp.where(is_answer_BT, x_BT, 0.0)) for x_BT in counted)
        return nll, hits, tokens

    def _training_positions(self, key: Array, batch: TokenSequence) -> Positions:
        return self._positions(key, batch, self.positions.sampler != "contiguous")

    def _positions(self, key: Array, rows: TokenSequence, sampled: bool) -> Positions:
        """Returns the positions of rows, sampled or from 0."""
        batch, length = rows.tokens.shape
        if not sampled:
            return Positions(jnp.arange(length))
        sample_key, choice_key = jax.random.split(key)
        positions = sample(self.positions, sample_key, batch, length)
        if not SAMPLERS[self.positions.sampler].scattered:
            return positions
        keys_B = jax.random.split(choice_key, batch)
        return Positions(jax.vmap(_uniform_subset)(keys_B, positions.whole, rows.length))


def _uniform_subset(key: Array, positions_T: Array, length: Array) -> Array:
    """Puts a uniform subset of ascending positions first, ascending; the last one follows.

    So the positions of a short row span the range, as if they had been drawn for it alone.
    """
    rank_T = jax.random.permutation(key, positions_T.size)
    return jnp.sort(jnp.where(rank_T < length, positions_T, positions_T[-1]))
