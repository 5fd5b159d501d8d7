"""What models read of a task: sequences, lengths, positions, and which tokens count."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rrope_jax.algorithmic import TASKS, Row
from rrope_jax.algorithmic.config import SweepConfig, SweepTask
from rrope_jax.algorithmic.program import AlgorithmicProgram
from rrope_jax.algorithmic.sequences import TokenSequence, sequence
from rrope_jax.model import ModelConfig
from rrope_jax.posgen.config import PosgenTrainConfig, seed_keys
from rrope_jax.rope import RopeSpec
from rrope_jax.rope.positions import Positions, PositionSampling

SWEEP = SweepConfig(train_length=6, test_length=12, test_step=3, test_rows=8, validation_rows=8)
MODEL = ModelConfig(vocab_size=4, d_model=16, num_layers=1, num_heads=2, d_ff=24)
TRAIN = PosgenTrainConfig(
    steps=6, batch_size=4, learning_rate=1e-2, validate_every=6, eval_batch_size=4
)
RANDOMIZED = PositionSampling(sampler="randomized", target_length=200)


def _program(positions: PositionSampling = PositionSampling()) -> AlgorithmicProgram:
    return AlgorithmicProgram(SweepTask("reverse_string", SWEEP), MODEL, TRAIN, positions)


def test_a_sequence_by_hand() -> None:
    row = Row(jnp.array([1, 0, 1, 0]), jnp.int32(3), jnp.array([1, 1, 0]), jnp.int32(2))
    drawn = sequence(row, separator=7)
    assert drawn.tokens.tolist() == [1, 0, 1, 7, 1, 1, 0, 0]
    assert drawn.is_answer.tolist() == [False] * 4 + [True] * 2 + [False] * 2
    assert drawn.length == 6


@pytest.mark.parametrize("name", TASKS)
def test_lengths_fit_the_task_and_every_task_fits_the_papers_sweep(name: str) -> None:
    task = SweepTask(name, SweepConfig())
    assert task.test_lengths[-1] in (499, 500)
    assert task.validation_lengths[-1] in (39, 40)
    assert all(TASKS[name].nearest_length(n) == n for n in task.test_lengths)
    assert task.vocab_size == task.start_token + 1 == task.separator + 2
    assert task.train_length <= 121  # the longest answer is the question twice
    assert task.test_length <= 1501


def test_training_rows_depend_on_their_number_alone_and_have_all_lengths() -> None:
    task = SweepTask("reverse_string", SWEEP)
    draw = jax.jit(task.training_sequences)
    key = jax.random.key(2)
    rows = draw(key, jnp.arange(200))
    again = draw(key, jnp.arange(100, 300))
    np.testing.assert_array_equal(rows.tokens[100:], again.tokens[:100])
    # A question of n tokens makes 2n + 1.
    assert set(rows.length.tolist()) == {3, 5, 7, 9, 11, 13}
    assert len({tuple(row) for row in rows.tokens.tolist()}) > 60


def test_only_answers_count() -> None:
    """More padding costs nothing, another answer does."""
    program = _program()
    params = jax.jit(program.init)(jax.random.key(0)).params
    key, _, _ = seed_keys(0)
    rows = jax.jit(program.task.training_sequences)(key, jnp.arange(4))
    tables = program.tables(RopeSpec(head_dim=8))

    @jax.jit
    def loss(rows: TokenSequence) -> jax.Array:
        rotation = program._rotations(tables, program._training_positions(key, rows))
        return program._loss(params, rows, rotation, None)

    wider = TokenSequence(
        jnp.pad(rows.tokens, ((0, 0), (0, 3)), constant_values=1),
        jnp.pad(rows.is_answer, ((0, 0), (0, 3))),
        rows.length,
    )
    np.testing.assert_allclose(loss(rows), loss(wider), rtol=1e-5)  # sums of another order
    wrong = rows.tokens.at[0, rows.length[0] - 1].set(1 - rows.tokens[0, rows.length[0] - 1])
    assert not np.isclose(loss(rows), loss(rows._replace(tokens=wrong)), rtol=1e-4)


def test_evaluate_measures_each_length_under_each_table() -> None:
    program = _program()
    state = jax.jit(program.init)(jax.random.key(0))
    _, validation, test = program.task.data("reverse_string", seed_keys(0).data)
    specs = [RopeSpec(head_dim=8), RopeSpec(head_dim=8, scaling="linear", factor=8.0)]
    tables_E = jax.tree.map(lambda *x: np.stack(x), *map(program.tables, specs))
    evaluate = jax.jit(program.evaluate)
    measured = evaluate(state.params, test, tables_E)
    assert measured.accuracy.shape == measured.loss.shape == (2, 4)
    assert evaluate(state.params, validation, tables_E).loss.shape == (2, 2)

    @jax.jit
    def predict(rows_BT: jax.Array) -> jax.Array:
        rotation = program._rotations(program.tables(specs[1]), Positions(jnp.arange(25)))
        return program._predict(state.params, rows_BT, rotation, None)[0]

    key, length = test.key_P[2], test.length_P[2]
    draw = jax.jit(functools.partial(program.task.sequences, width=12))
    nll = tokens = 0.0
    for batch_key in jax.random.split(key, 2):
        row_key, _ = jax.random.split(batch_key)
        rows = draw(jax.random.split(row_key, 4), jnp.full(4, length))
        nll_BT = predict(rows.tokens)
        # The answer of 9 tokens follows 9 of the question and the separator.
        nll += float(nll_BT[:, 10 - program.task.seed_length :][:, :9].sum())
        tokens += 4 * 9
    np.testing.assert_allclose(measured.loss[1, 2], nll / tokens, rtol=1e-5)  # another order
    assert (measured.loss[0] != measured.loss[1]).all()


def test_randomized_positions_of_short_rows_span_the_range_in_training_and_test() -> None:
    program = _program(RANDOMIZED)
    rows = TokenSequence(jnp.zeros((400, 13), int), jnp.zeros((400, 13), bool), jnp.full(400, 3))
    positions_BT = np.asarray(program._training_positions(jax.random.key(0), rows).whole)
    first_B3 = positions_BT[:, :3]
    assert (np.diff(first_B3, axis=-1) > 0).all()
    # A uniform subset of three of 0 .. 199 has quarters of the range between them, on average; the
    # deviation of a mean of 400 is 200 / sqrt(400) / 4 at most.
    np.testing.assert_allclose(first_B3.mean(axis=0), [49.5, 99.5, 149.5], atol=10)
    assert program._samples_at_test
    assert not _program()._samples_at_test


def test_a_task_without_a_question_in_distribution_is_refused() -> None:
    sweep = dataclasses.replace(SWEEP, train_length=2, test_step=2)
    with pytest.raises(ValueError, match="shortest solve_equation has 3 tokens"):
        SweepTask("solve_equation", sweep)
