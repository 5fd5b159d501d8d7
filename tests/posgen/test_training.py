"""Training and test of one PosGen model, against slow references and a user's expectations."""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from rrope_jax.model import Decoder, ModelConfig
from rrope_jax.posgen import TASKS, generate
from rrope_jax.posgen.config import PosgenTrainConfig, TaskConfig
from rrope_jax.posgen.training import PosgenProgram, PosgenState, PositionMeans, Tables
from rrope_jax.rope import RopeSpec
from rrope_jax.rope.positions import PositionSampling

pytestmark = pytest.mark.usefixtures("quick_compilation")

TASK = TaskConfig(
    modulus=5,
    train_length=8,
    test_length=16,
    train_sequences=7,
    validation_sequences=6,
    test_sequences=8,
)
MODEL = ModelConfig(vocab_size=6, d_model=16, num_layers=1, num_heads=2, d_ff=24)
TRAIN = PosgenTrainConfig(
    steps=12, batch_size=2, learning_rate=1e-2, validate_every=6, eval_batch_size=2
)
PROGRAM = PosgenProgram(TASK, MODEL, TRAIN)
DROPPING = PosgenProgram(TASK, dataclasses.replace(MODEL, dropout=0.3), TRAIN)
ROPE = RopeSpec(head_dim=8)
YARN = RopeSpec(head_dim=8, scaling="yarn", factor=2.0, original_context=8, resonance=True)


@functools.cache
def _train(program: PosgenProgram, steps: int) -> Callable[..., tuple[PosgenState, jax.Array]]:
    return jax.jit(functools.partial(program.train_steps, steps=steps))


@functools.cache
def _evaluate(program: PosgenProgram) -> Callable[..., PositionMeans]:
    return jax.jit(program.evaluate)


@pytest.fixture(scope="module")
def initial(quick_compilation: None) -> PosgenState:
    """The state of a fresh model."""
    return jax.jit(PROGRAM.init)(jax.random.key(1))


@pytest.fixture(scope="module")
def rows() -> np.ndarray:
    """Training rows of cot."""
    return np.asarray(PROGRAM.task.data("cot", jax.random.key(0)).train_NT)


def _stack(*specs: RopeSpec) -> Tables:
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *map(PROGRAM.tables, specs))


def _reference(
    params: Any, spec: RopeSpec, rows_NT: np.ndarray, model: ModelConfig = MODEL
) -> tuple[np.ndarray, np.ndarray]:
    """Hits and negative log likelihoods, float64[N, T - 4], through the model's own rotation."""
    graph = nnx.split(nnx.eval_shape(lambda: Decoder(model, spec, rngs=nnx.Rngs(0))))[0]
    start_N1 = np.full((len(rows_NT), 1), TASK.modulus)
    inputs_NT = np.concatenate([start_N1, rows_NT], axis=1)
    # of T + 1 outputs, the one at index t has seen the start token and rows 0 .. t - 1
    forward = jax.jit(lambda params, inputs_NT: nnx.merge(graph, params)(inputs_NT))
    logits_NTV = np.asarray(forward(params, inputs_NT), np.float64)
    hits, losses = np.zeros((2, len(rows_NT), rows_NT.shape[1] - 4))
    for n, row in enumerate(rows_NT):
        for t in range(4, len(row)):
            logits_V = logits_NTV[n, t]
            hits[n, t - 4] = logits_V.argmax() == row[t]
            losses[n, t - 4] = np.log(np.exp(logits_V).sum()) - logits_V[row[t]]
    return hits, losses


class TestData:
    @pytest.mark.parametrize("task", TASKS)
    def test_rows_continue_their_seeds(self, task: str) -> None:
        data = PROGRAM.task.data(task, jax.random.key(0))
        for rows_NT, shape in zip(data, [(7, 8), (6, 16), (8, 16)], strict=True):
            assert rows_NT.shape == shape
            expected = generate(task, rows_NT[:, :4], shape[1], modulus=5)
            assert (rows_NT == expected).all()

    def test_splits_share_no_seed(self) -> None:
        data = PROGRAM.task.data("cot", jax.random.key(0))
        seeds = [tuple(row) for rows_NT in data for row in rows_NT[:, :4].tolist()]
        assert len(set(seeds)) == 7 + 6 + 8

    def test_other_combination(self) -> None:
        task = dataclasses.replace(TASK, combination="sine_of_turn")
        program = dataclasses.replace(PROGRAM, task=task)
        one, other = (p.task.data("cot", jax.random.key(0)).train_NT for p in (PROGRAM, program))
        assert (one[:, :4] == other[:, :4]).all()
        assert (one[:, 4:] != other[:, 4:]).any()


class TestEvaluate:
    def test_equals_a_slow_reference_under_each_table(self, initial: PosgenState) -> None:
        rows_NT = np.asarray(PROGRAM.task.data("recursive", jax.random.key(0)).test_NT)
        measures = _evaluate(PROGRAM)(initial.params, rows_NT, _stack(ROPE, YARN))
        assert measures.accuracy.shape == measures.loss.shape == (2, 12)
        for index, spec in enumerate((ROPE, YARN)):
            hits, losses = _reference(initial.params, spec, rows_NT)
            np.testing.assert_allclose(measures.accuracy[index], hits.mean(axis=0), atol=1e-6)
            np.testing.assert_allclose(measures.loss[index], losses.mean(axis=0), rtol=1e-5)
        assert (measures.loss[0] != measures.loss[1]).any()


def test_tables_carry_temperatures_by_position(initial: PosgenState) -> None:
    """Beside each other in one program: a spec with such a temperature, and one without."""
    program = dataclasses.replace(PROGRAM, position_temperatures=True)
    log_n = dataclasses.replace(YARN, position_temperature="log_n", temperature_context=2)
    rows_NT = np.asarray(PROGRAM.task.data("recursive", jax.random.key(0)).test_NT)
    tables = jax.tree.map(lambda *leaves: jnp.stack(leaves), *map(program.tables, (YARN, log_n)))
    measures = _evaluate(program)(initial.params, rows_NT, tables)
    for index, spec in enumerate((YARN, log_n)):
        _, losses = _reference(initial.params, spec, rows_NT)
        np.testing.assert_allclose(measures.loss[index], losses.mean(axis=0), rtol=1e-5)
    assert (measures.loss[0] != measures.loss[1]).any()


class TestLayerPlans:
    MODEL = dataclasses.replace(
        MODEL,
        num_layers=3,
        layer_types=("sliding_attention", "nope", "full_attention"),
        sliding_window=3,
        initializer_range=0.3,  # so that the rotation matters
    )
    PROGRAM = dataclasses.replace(PROGRAM, model=MODEL)
    SPECS = (ROPE, dataclasses.replace(YARN, sliding_attention=RopeSpec(head_dim=8, theta=100.0)))

    def test_each_layer_type_has_its_own_table(self) -> None:
        state = jax.jit(self.PROGRAM.init)(jax.random.key(1))
        rows_NT = np.asarray(TASK.data("cot", jax.random.key(0)).test_NT)
        tables = map(self.PROGRAM.tables, self.SPECS)
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *tables)
        measures = _evaluate(self.PROGRAM)(state.params, rows_NT, stacked)
        for index, spec in enumerate(self.SPECS):
            _, losses = _reference(state.params, spec, rows_NT, self.MODEL)
            np.testing.assert_allclose(measures.loss[index], losses.mean(axis=0), rtol=1e-5)
        _, everywhere = _reference(state.params, YARN, rows_NT, self.MODEL)
        assert abs(measures.loss[1] - everywhere.mean(axis=0)).max() > 1e-3

    def test_training_rotates_like_the_model(self) -> None:
        state = jax.jit(self.PROGRAM.init)(jax.random.key(1))
        rows_NT = np.asarray(TASK.data("cot", jax.random.key(0)).train_NT)
        alike_NT = np.repeat(rows_NT[:1], len(rows_NT), axis=0)  # so that the batch is known
        tables = self.PROGRAM.tables(self.SPECS[1])
        _, losses_S = _train(self.PROGRAM, 1)(state, alike_NT, tables, jax.random.key(2))
        _, expected = _reference(state.params, self.SPECS[1], rows_NT[:1], self.MODEL)
        np.testing.assert_allclose(losses_S[0], expected.mean(), rtol=1e-5)

    def test_layers_without_rotation_need_no_table(self) -> None:
        model = self.MODEL.changed({"layer_types": ("nope",)})
        program = dataclasses.replace(self.PROGRAM, model=model)
        state = jax.jit(program.init)(jax.random.key(1))
        rows_NT = np.asarray(TASK.data("cot", jax.random.key(0)).test_NT)
        tables = [program.tables(spec) for spec in (ROPE, YARN)]
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *tables)
        measures = _evaluate(program)(state.params, rows_NT, stacked)
        assert (measures.loss[0] == measures.loss[1]).all()


def test_one_program_tests_methods_with_and_without_far_positions() -> None:
    specs = (
        ROPE,
        RopeSpec(head_dim=8, far_positions="self_extend", far_window=3, far_group=2),
        dataclasses.replace(YARN, far_positions="jet_long", far_window=3, far_context=8),
    )
    model = dataclasses.replace(MODEL, initializer_range=0.3)  # so that the rotation matters
    program = dataclasses.replace(PROGRAM, model=model, far_pairs=True)
    state = jax.jit(program.init)(jax.random.key(1))
    rows_NT = np.asarray(TASK.data("cot", jax.random.key(0)).test_NT)
    length = rows_NT.shape[1] + 1  # of the reference's rows
    stacked = jax.tree.map(
        lambda *leaves: jnp.stack(leaves), *(program.tables(spec, length) for spec in specs)
    )
    measures = _evaluate(program)(state.params, rows_NT, stacked)
    for index, spec in enumerate(specs):
        _, losses = _reference(state.params, spec, rows_NT, model)
        np.testing.assert_allclose(measures.loss[index], losses.mean(axis=0), rtol=1e-5)
    assert abs(measures.loss[0] - measures.loss[1]).max() > 1e-3


@pytest.fixture(scope="module")
def batches(initial: PosgenState, rows: np.ndarray) -> list[tuple[int, int]]:
    """The two rows in the batch of each of 12 steps.

    With a learning rate of 0 the loss of a step tells them: it has to be the mean of the reference
    losses of two rows, taken over the generated tokens alone.
    """
    train = dataclasses.replace(TRAIN, learning_rate=0.0)
    program = dataclasses.replace(PROGRAM, train=train)
    _, losses_S = _train(program, 12)(initial, rows, PROGRAM.tables(ROPE), jax.random.key(2))
    loss_N = _reference(initial.params, ROPE, rows)[1].mean(axis=1)
    pairs = list(itertools.combinations(range(len(rows)), 2))
    pair_losses = np.array([(loss_N[a] + loss_N[b]) / 2 for a, b in pairs])
    assert np.diff(np.sort(pair_losses)).min() > 1e-5, "two pairs look alike: choose another key"
    distances = np.abs(np.asarray(losses_S)[:, None] - pair_losses)
    assert distances.min(axis=1).max() < 2e-6
    return [pairs[index] for index in distances.argmin(axis=1)]


class TestBatches:
    def test_no_row_comes_twice_in_an_epoch(self, batches: list[tuple[int, int]]) -> None:
        for first in range(0, 12, 3):  # 7 rows in batches of 2: three steps, one row left out
            epoch = batches[first : first + 3]
            assert len({row for batch in epoch for row in batch}) == 6

    def test_every_epoch_is_shuffled_anew(self, batches: list[tuple[int, int]]) -> None:
        epochs = {tuple(batches[first : first + 3]) for first in range(0, 12, 3)}
        assert len(epochs) == 4
        left_out = [set(range(7)) - {row for batch in epoch for row in batch} for epoch in epochs]
        assert len(set.union(*left_out)) > 1


def _check_pieces(program: PosgenProgram, initial: PosgenState, cut: int) -> None:
    data = program.task.data("semi_recursive", jax.random.key(0))
    table, key = PROGRAM.tables(YARN), jax.random.key(4)
    whole, losses_S = _train(program, 12)(initial, data.train_NT, table, key)
    state, pieces = initial, []
    for _ in range(12 // cut):
        state, piece = _train(program, cut)(state, data.train_NT, table, key)
        pieces.append(piece)
    assert np.concatenate(pieces).tolist() == losses_S.tolist()
    same = jax.tree.map(lambda a, b: bool((a == b).all()), state, whole)
    assert all(jax.tree.leaves(same))
    assert whole.step == 12


class TestPieces:
    """A run in pieces equals an unbroken one bit for bit, also where pieces end within an epoch."""

    def test_plain(self, initial: PosgenState) -> None:
        _check_pieces(PROGRAM, initial, cut=4)

    @pytest.mark.slow
    @pytest.mark.parametrize("cut", [1, 6])
    def test_with_dropout_and_sampled_positions(self, cut: int, initial: PosgenState) -> None:
        sampling = PositionSampling(sampler="pose", target_length=16)
        _check_pieces(dataclasses.replace(DROPPING, positions=sampling), initial, cut)


class TestDropout:
    @pytest.mark.slow
    def test_acts_in_training(self, initial: PosgenState, rows: np.ndarray) -> None:
        alike_NT = np.repeat(rows[:1], len(rows), axis=0)  # so that the batch is known
        _, losses_S = _train(DROPPING, 1)(
            initial, alike_NT, PROGRAM.tables(ROPE), jax.random.key(2)
        )
        without = _reference(initial.params, ROPE, rows[:1])[1].mean()
        assert abs(losses_S[0] - without) > 1e-3

    def test_does_not_act_in_evaluation(self, initial: PosgenState) -> None:
        rows_NT = PROGRAM.task.data("cot", jax.random.key(0)).test_NT
        plain, dropping = (
            _evaluate(program)(initial.params, rows_NT, _stack(ROPE, YARN))
            for program in (PROGRAM, DROPPING)
        )
        assert (plain.loss == dropping.loss).all()


class TestOptimizer:
    """AdamW's step under a constant gradient is the learning rate itself."""

    @staticmethod
    def _steps(train: PosgenTrainConfig, gradients: list[float], value: float = 0.0) -> np.ndarray:
        optimizer = dataclasses.replace(PROGRAM, train=train).optimizer()
        params = jnp.float32(value)
        state = optimizer.init(params)
        updates = []
        step = jax.jit(optimizer.update)
        for gradient in gradients:
            update, state = step(jnp.float32(gradient), state, params)
            updates.append(-float(update))
        return np.array(updates)

    def test_one_cycle(self) -> None:
        train = dataclasses.replace(TRAIN, steps=30, learning_rate=1.0, validate_every=30)
        rates = self._steps(train, [1.0] * 31)
        np.testing.assert_allclose(rates[0], 1 / 25, rtol=1e-3)
        assert rates.argmax() == 3  # 10 % of the steps
        np.testing.assert_allclose(rates[3], 1.0, rtol=1e-3)
        assert (np.diff(rates[:4]) > 0).all()
        assert (np.diff(rates[3:]) < 0).all()
        assert rates[30] < 1e-5

    def test_no_warmup(self) -> None:
        rates = self._steps(
            dataclasses.replace(TRAIN, learning_rate=1.0, warmup_fraction=0.0), [1.0] * 3
        )
        np.testing.assert_allclose(rates[0], 1.0, rtol=1e-3)
        assert np.isfinite(rates).all()

    def test_weight_decay(self) -> None:
        train = dataclasses.replace(
            TRAIN, learning_rate=1.0, warmup_fraction=0.0, weight_decay=0.25
        )
        np.testing.assert_allclose(self._steps(train, [0.0], value=8.0), [2.0], rtol=1e-6)

    def test_gradient_clip(self) -> None:
        train = dataclasses.replace(TRAIN, learning_rate=1.0, warmup_fraction=0.0)
        clipped = dataclasses.replace(train, gradient_clip=1.0)
        even = self._steps(train, [1.0, 1.0])
        np.testing.assert_allclose(self._steps(clipped, [1.0, 1e4]), even, rtol=1e-6)
        assert abs(self._steps(train, [1.0, 1e4]) - even).max() > 0.1


@pytest.mark.slow
def test_learns_a_task_for_seeds_it_has_not_seen() -> None:
    task = TaskConfig(
        modulus=5,
        j=1,
        k=2,
        train_length=12,
        test_length=24,
        train_sequences=105,
        validation_sequences=8,
        test_sequences=12,
    )
    model = ModelConfig(vocab_size=6, d_model=32, num_layers=2, num_heads=2, d_ff=64)
    train = PosgenTrainConfig(
        steps=500, batch_size=35, learning_rate=5e-3, validate_every=500, eval_batch_size=4
    )
    program = PosgenProgram(task, model, train)
    data = program.task.data("cot", jax.random.key(0))
    rope = RopeSpec(head_dim=16)
    state, losses_S = _train(program, 500)(
        program.init(jax.random.key(1)), data.train_NT, program.tables(rope), jax.random.key(2)
    )
    assert losses_S[0] == pytest.approx(math.log(6), rel=0.1)
    assert losses_S[-1] < 0.05
    measures = program.evaluate(state.params, data.test_NT, _stack(rope))
    assert measures.accuracy[0, : 12 - 3].mean() > 0.6  # guessing gives 0.2


class TestErrors:
    @pytest.mark.parametrize(
        ("changes", "parts"),
        [
            ({"modulus": 1}, ["modulus=1", "at least 2"]),
            ({"j": 0}, ["j=0", "at least 1"]),
            ({"k": 0}, ["k=0", "at least 1"]),
            ({"train_sequences": 0}, ["train_sequences=0", "at least 1"]),
            ({"train_length": 4}, ["train_length=4", "j+k=4"]),
            ({"test_length": 8}, ["test_length=8", "train_length=8"]),
            ({"combination": "sum"}, ["combination='sum'", "modular_sum, sine_squared"]),
            ({"splits": "overlapping"}, ["splits='overlapping'", "disjoint, authors"]),
            ({"train_sequences": 612}, ["626 distinct seeds", "only 625", "fewer rows"]),
        ],
    )
    def test_task(self, changes: dict[str, Any], parts: list[str]) -> None:
        with pytest.raises(ValueError) as caught:  # noqa: PT011 - the parts are checked below
            dataclasses.replace(TASK, **changes)
        assert [part for part in parts if part not in str(caught.value)] == []

    @pytest.mark.parametrize(
        ("changes", "parts"),
        [
            ({"steps": 0}, ["steps=0", "at least 1"]),
            ({"steps": 13}, ["validate_every=6", "steps=13", "steps=18"]),
            ({"steps_per_call": 4}, ["steps_per_call=4", "validate_every=6"]),
            ({"steps_per_call": 0}, ["steps_per_call=0", "None"]),
            ({"learning_rate": -1.0}, ["learning_rate=-1.0", ">= 0"]),
            ({"learning_rate": math.nan}, ["learning_rate=nan", "finite"]),
            ({"weight_decay": math.inf}, ["weight_decay=inf", "finite"]),
            ({"b1": 1.0}, ["b1=1.0", "[0, 1)"]),
            ({"warmup_fraction": 1.5}, ["warmup_fraction=1.5", "[0, 1)"]),
            ({"gradient_clip": 0.0}, ["gradient_clip=0.0", "None"]),
        ],
    )
    def test_train(self, changes: dict[str, Any], parts: list[str]) -> None:
        with pytest.raises(ValueError) as caught:  # noqa: PT011 - the parts are checked below
            dataclasses.replace(TRAIN, **changes)
        assert [part for part in parts if part not in str(caught.value)] == []

    @pytest.mark.parametrize(
        ("changes", "parts"),
        [
            (
                {"model": dataclasses.replace(MODEL, vocab_size=5)},
                ["vocab_size=5", "modulus + 1 = 6"],
            ),
            (
                {"train": dataclasses.replace(TRAIN, batch_size=8)},
                ["batch_size=8", "train_sequences=7"],
            ),
            (
                {"train": dataclasses.replace(TRAIN, eval_batch_size=3)},
                ["eval_batch_size=3", "test_sequences=8"],
            ),
            (
                {"positions": PositionSampling(sampler="randomized", target_length=4)},
                ["target_length=4", "8"],
            ),
        ],
    )
    def test_parts_that_do_not_fit_together(
        self, changes: dict[str, Any], parts: list[str]
    ) -> None:
        with pytest.raises(ValueError) as caught:  # noqa: PT011 - the parts are checked below
            dataclasses.replace(PROGRAM, **changes)
        assert [part for part in parts if part not in str(caught.value)] == []

    def test_defaults_are_the_paper_s_150_epochs(self) -> None:
        assert PosgenTrainConfig().steps == 150 * (TaskConfig().train_sequences // 128)
