"""The training step against plain formulas, and what makes it safe to break off."""

import dataclasses
import functools
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from rrope_jax.data.packing import Rows
from rrope_jax.model import Decoder
from rrope_jax.model.presets import PRESETS
from rrope_jax.rope import cos_sin
from rrope_jax.rope.positions import PositionSampling, sample
from rrope_jax.train.config import TrainConfig
from rrope_jax.train.step import Program, State

MODEL = dataclasses.replace(PRESETS["tiny"].model, num_layers=1, d_model=16, d_ff=32, head_dim=4)
ROPE = dataclasses.replace(PRESETS["tiny"].rope, head_dim=4)
TRAIN = TrainConfig(
    steps=20,
    batch_size=4,
    length=16,
    learning_rate=1e-2,
    schedule="constant",
    warmup_fraction=0.0,
    weight_decay=0.1,
    gradient_clip=None,
    loss_chunk=24,
)
KEY = jax.random.key(7)
POSE = PositionSampling(sampler="pose", target_length=64)

Arrays = dict[str, jax.Array]


def _program(**fields: Any) -> Program:
    return Program(MODEL, ROPE, dataclasses.replace(TRAIN, **fields))


def _batch(packing: str = "documents") -> Arrays:
    """Documents of 6 to 40 tokens in rows of 16, some rows with several and some with padding."""
    random = np.random.default_rng(0)
    documents = [random.integers(0, MODEL.vocab_size, n) for n in (6, 40, 13)]
    rows = Rows(documents, length=TRAIN.length, packing=packing)
    chosen = [rows[i % len(rows)] for i in range(TRAIN.batch_size)]
    return {name: jnp.stack([row[name] for row in chosen]) for name in chosen[0]}


@functools.cache
def _params() -> Any:
    """Parameters as a new model has, without compiling what draws them."""
    random = np.random.default_rng(1)
    shapes = jax.eval_shape(_program().init, KEY).params

    def draw(path: Any, leaf: jax.ShapeDtypeStruct) -> jax.Array:
        if path[-1].key == "scale":
            return jnp.ones(leaf.shape)
        return jnp.asarray(0.02 * random.normal(size=leaf.shape), jnp.float32)

    return jax.tree.map_with_path(draw, shapes)


def _start(program: Program) -> State:
    return program.state_from_params(_params())


@functools.cache
def _step(program: Program) -> Any:
    return jax.jit(program.step)


def _decoder(params: Any) -> Decoder:
    graph = nnx.split(nnx.eval_shape(lambda: Decoder(MODEL, ROPE, rngs=nnx.Rngs(0))))[0]
    return nnx.merge(graph, params)


@jax.jit
def _mean_loss(params: Any, batch: Arrays, rotation: tuple[jax.Array, jax.Array]) -> jax.Array:
    """As one would write it down: whole logits, one mean."""
    logits_BTV = _decoder(params)(
        batch["tokens"], segment_ids_BT=batch["segment_ids"], rotation=rotation
    )
    losses_BT = optax.softmax_cross_entropy_with_integer_labels(logits_BTV, batch["targets"])
    return jnp.sum(losses_BT * batch["weights"]) / jnp.sum(batch["weights"])


def test_one_step_is_adamw_on_the_mean_loss() -> None:
    program, batch = _program(), _batch()
    before = _start(program)
    rotation = cos_sin(ROPE, batch["positions"])
    loss, gradients = jax.jit(jax.value_and_grad(_mean_loss))(before.params, batch, rotation)

    def updated(path: Any, parameter: jax.Array, gradient: jax.Array) -> jax.Array:
        # the first step of Adam, in which both moments are the gradient's own
        direction = gradient / (jnp.abs(gradient) + TRAIN.eps)
        decay = 0.0 if path[-1].key == "scale" else TRAIN.weight_decay
        return parameter - TRAIN.learning_rate * (direction + decay * parameter)

    expected = jax.tree.map_with_path(updated, before.params, gradients)
    after, measures = _step(program)(before, batch, KEY)
    assert measures.loss == pytest.approx(float(loss), rel=1e-5)
    assert measures.gradient_norm == pytest.approx(float(optax.tree.norm(gradients)), rel=1e-4)
    assert measures.learning_rate == pytest.approx(TRAIN.learning_rate)
    assert measures.targets == batch["weights"].sum()
    assert (int(after.step), bool(after.sound)) == (1, True)
    # the direction of a gradient near 0 is rounding: leave out the few
    for found, wanted, gradient in zip(
        *map(jax.tree.leaves, (after.params, expected, gradients)), strict=True
    ):
        clear = np.abs(gradient) > 1e-5
        np.testing.assert_allclose(found[clear], wanted[clear], atol=2e-5)


def test_documents_of_a_row_do_not_see_each_other() -> None:
    program, packed = _program(), _batch()
    heldout = jax.jit(program.heldout)
    params = _start(program).params
    row = {name: packed[name][:1] for name in packed}
    first = int((row["segment_ids"] == 1).sum())
    assert 0 < first < TRAIN.length  # two documents
    hidden = jnp.arange(TRAIN.length) < first
    parts = [
        heldout(params, row | {"weights": row["weights"] * keep}) for keep in (hidden, ~hidden)
    ]
    # whatever the first document is, the loss of the second is the same
    other = row | {"tokens": row["tokens"].at[0, :first].set(1)}
    changed = [
        heldout(params, other | {"weights": row["weights"] * keep}) for keep in (hidden, ~hidden)
    ]
    assert changed[0][0] != parts[0][0]
    assert changed[1] == parts[1]
    assert [count for _, count in parts] == [first, TRAIN.length - first]


def test_accumulation_changes_nothing() -> None:
    batch = _batch()
    assert len({float(n) for n in batch["weights"].sum(axis=1)}) > 1  # microbatches differ in size
    whole, parts = _program(positions=POSE), _program(positions=POSE, accumulation=2)
    state = _start(whole)
    after, measures = _step(whole)(state, batch, KEY)
    after_parts, measures_parts = _step(parts)(state, batch, KEY)
    chex.assert_trees_all_close(measures_parts, measures, rtol=1e-5)
    first, first_parts = after.opt_state, after_parts.opt_state
    chex.assert_trees_all_close(first_parts, first, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(
    "sampling",
    [
        POSE,
        PositionSampling(sampler="e2_llm", max_scale=4),
    ],
    ids=lambda sampling: sampling.sampler,
)
def test_sampled_positions_are_those_of_the_tokens_place(sampling: PositionSampling) -> None:
    program, batch = _program(positions=sampling), _batch()
    state = _start(program)
    position_key = jax.random.split(jax.random.fold_in(KEY, 0))[0]
    whole_BT, fraction_BT = jax.jit(
        lambda: sample(sampling, position_key, TRAIN.batch_size, TRAIN.length)
    )()
    places_BT = np.asarray(batch["positions"])
    rows_B1 = np.arange(TRAIN.batch_size)[:, None]
    rotation = cos_sin(
        ROPE,
        whole_BT[rows_B1, places_BT],
        fraction=None if fraction_BT is None else fraction_BT[rows_B1, places_BT],
    )
    _, measures = _step(program)(state, batch, KEY)
    assert measures.loss == pytest.approx(
        float(_mean_loss(state.params, batch, rotation)), rel=1e-5
    )


def test_every_step_draws_its_own_positions() -> None:
    program = _program(positions=POSE)
    step = _step(program)
    state, batch = _start(program), _batch()
    same = [float(step(state, batch, KEY)[1].loss) for _ in range(2)]
    other_step = float(step(state._replace(step=jnp.int32(1)), batch, KEY)[1].loss)
    other_key = float(step(state, batch, jax.random.key(8))[1].loss)
    assert same[0] == same[1]
    assert len({same[0], other_step, other_key}) == 3


def test_gradient_is_clipped_and_reported_unclipped() -> None:
    program = _program(gradient_clip=1e-3)
    after, measures = _step(program)(_start(program), _batch(), KEY)
    adam = optax.tree.get(after.opt_state, "mu")  # shows the gradient that the optimizer was given
    assert optax.tree.norm(adam) == pytest.approx(1e-3 * (1 - TRAIN.b1), rel=1e-4)
    assert measures.gradient_norm > 1e-2


def test_a_loss_that_is_not_finite_changes_nothing_ever_after() -> None:
    program = _program()
    step = _step(program)
    good, bad = _batch(), _batch()
    bad["weights"] = bad["weights"].at[2, 3].set(jnp.nan)
    before, _ = step(_start(program), good, KEY)
    after, measures = step(before, bad, KEY)
    assert not bool(measures.sound)
    chex.assert_trees_all_close(after._replace(sound=before.sound), before, rtol=0)
    later, measures = step(after, good, KEY)  # started by the host before it could know
    assert not bool(measures.sound)
    chex.assert_trees_all_close(later, after, rtol=0)


def test_training_learns_a_batch_by_heart() -> None:
    program, batch = _program(), _batch()
    state = jax.jit(program.init)(jax.random.key(0))
    losses = []
    for _ in range(20):
        state, measures = _step(program)(state, batch, KEY)
        losses.append(float(measures.loss))
    assert losses[0] == pytest.approx(np.log(MODEL.vocab_size), rel=0.02)
    assert losses[-1] < losses[0] / 2


def test_unsegmented_rows_need_no_segments() -> None:
    packed = _batch("one_document_per_row")
    masked, plain = _program(), dataclasses.replace(_program(), segmented=False)
    params = _start(masked).params
    expected = jax.jit(masked.heldout)(params, packed)
    del packed["segment_ids"]
    chex.assert_trees_all_close(jax.jit(plain.heldout)(params, packed), expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rope": PRESETS["llama2_7b"].rope}, "rope.head_dim=128 differs"),
        (
            {
                "train": dataclasses.replace(
                    TRAIN, positions=PositionSampling(sampler="pose", target_length=8)
                )
            },
            "target_length=8 must be at least the sequence length",
        ),
    ],
)
def test_parts_that_do_not_fit_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(_program(), **fields)


def test_arrays_that_would_broadcast_are_refused() -> None:
    program, batch = _program(), _batch()
    wide = batch | {"weights": batch["weights"][:, :1]}
    for call in (
        lambda: program.step(_start(program), wide, KEY),
        lambda: program.heldout(_params(), wide),
    ):
        with pytest.raises(AssertionError, match="shape"):
            call()
