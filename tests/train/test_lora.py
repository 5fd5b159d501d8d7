"""LoRA in the training step: what it starts from, what it trains, and what stays."""

import dataclasses
import functools
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.nnx.traversals import flatten_mapping

from rrope_jax.io.adapters.config import TARGETS, LoraConfig
from rrope_jax.model.low_rank import LowRankUpdated
from rrope_jax.train.step import Program, State
from tests.train.test_step import KEY, _batch, _params, _program

LORA = LoraConfig(rank=2, alpha=3.0, targets=tuple(TARGETS), train_also=("norm",))
# no decay, and steps large enough that every trained array moves
FULL = dataclasses.replace(_program(weight_decay=0.0))
PROGRAM = dataclasses.replace(FULL, lora=LORA)


def _state(program: Program = PROGRAM) -> State:
    return jax.jit(program.state_from_params)(_params(), KEY)


@functools.cache
def _trained() -> tuple[State, State]:
    """Before and after two steps, so that both factors of each update have moved."""
    before = _state()
    step = jax.jit(PROGRAM.step)
    state, _ = step(before, _batch(), KEY)
    return before, step(state, _batch(), KEY)[0]


def _loss(program: Program, params: Any) -> float:
    return float(jax.jit(program.heldout)(params, _batch())[0])


def _merged(program: Program, state: State) -> Any:
    """The decoder's parameters with plain sums in place of updated kernels."""

    def merge(leaf: Any) -> Any:
        if not isinstance(leaf, LowRankUpdated):
            return leaf
        update = [jnp.tensordot(a, b, 1) for a, b in zip(leaf.a, leaf.b, strict=True)]
        return leaf.base.astype(jnp.float32) + leaf.scaling * jnp.stack(update)

    return jax.tree.map(
        merge, program.decoder_params(state), is_leaf=lambda leaf: isinstance(leaf, LowRankUpdated)
    )


def test_it_starts_as_its_base_bit_for_bit() -> None:
    state = _state()
    assert _loss(PROGRAM, PROGRAM.decoder_params(state)) == _loss(FULL, _params())
    _, measures = jax.jit(PROGRAM.step)(state, _batch(), KEY)
    _, of_base = jax.jit(FULL.step)(FULL.state_from_params(_params()), _batch(), KEY)
    assert float(measures.loss) == float(of_base.loss)


def test_only_adapters_and_norms_move_and_have_moments() -> None:
    before, after = _trained()
    chex.assert_trees_all_equal(after.frozen, before.frozen)
    names = {".".join(path) for path in flatten_mapping(after.params)}
    norms = {name for name in names if name.endswith("norm.scale")}
    assert len(norms) == 3
    assert names - norms == {
        f"{weight.path}.lora_{factor}" for weight in TARGETS.values() for factor in "ab"
    }
    for path, leaf in flatten_mapping(after.params).items():
        assert (leaf != flatten_mapping(before.params)[path]).any(), path
    moments = sum(leaf.size for leaf in jax.tree.leaves(after.opt_state) if leaf.ndim)
    assert moments == 2 * sum(leaf.size for leaf in jax.tree.leaves(after.params))


def test_merged_it_is_the_same_model_and_has_the_gradients_of_its_factors() -> None:
    """Those of A and B in W + s A B, by the chain rule from those of the sum."""
    _, state = _trained()
    unmerged, merged = PROGRAM.decoder_params(state), _merged(PROGRAM, state)
    assert _loss(PROGRAM, unmerged) == pytest.approx(_loss(FULL, merged), rel=1e-6)

    def total(program: Program) -> Any:
        return jax.jit(jax.grad(lambda params: program.heldout(params, _batch())[0]))

    factors, whole = total(PROGRAM)(unmerged), total(FULL)(merged)
    for weight in TARGETS.values():
        path = tuple(weight.path.split("."))
        found, of_sum = flatten_mapping(factors)[path], flatten_mapping(whole)[path]
        kernel = flatten_mapping(unmerged)[path]
        outputs = kernel.b.ndim - 2  # without the axes of layers and rank
        for layer, gradient in enumerate(of_sum):
            of_a = np.tensordot(gradient, np.moveaxis(kernel.b[layer], 0, -1), outputs)
            inputs = kernel.a.ndim - 2
            of_b = np.tensordot(np.moveaxis(kernel.a[layer], -1, 0), gradient, inputs)
            for one, other in ((found.a, of_a), (found.b, of_b)):
                expected = LORA.scaling * other
                np.testing.assert_allclose(
                    one[layer], expected, rtol=1e-3, atol=1e-5 * np.abs(expected).max()
                )


def test_accumulation_and_a_rounded_base() -> None:
    """Parts of a batch make the same step; a base in bfloat16 gives nearly the same loss."""
    step = jax.jit(PROGRAM.step)
    parts = dataclasses.replace(PROGRAM, train=dataclasses.replace(PROGRAM.train, accumulation=2))
    one, other = step(_state(), _batch(), KEY)[0], jax.jit(parts.step)(_state(), _batch(), KEY)[0]
    chex.assert_trees_all_close(one.params, other.params, rtol=1e-3, atol=1e-5)

    rounded = dataclasses.replace(PROGRAM, lora=dataclasses.replace(LORA, base_dtype="bfloat16"))
    state = _state(rounded)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(state.frozen)} == {"bfloat16"}
    assert {leaf.dtype.name for leaf in jax.tree.leaves(state.params)} == {"float32"}
    exact = _loss(PROGRAM, PROGRAM.decoder_params(_state()))
    assert _loss(rounded, rounded.decoder_params(state)) == pytest.approx(exact, rel=2**-8)


def test_dropout_is_drawn_anew_in_every_step_and_is_off_in_evaluation() -> None:
    drops = dataclasses.replace(PROGRAM, lora=dataclasses.replace(LORA, dropout=0.5))
    _, state = _trained()
    losses = {float(jax.jit(p.step)(state, _batch(), KEY)[1].loss) for p in (PROGRAM, drops)}
    later = state._replace(step=state.step + 1)
    losses.add(float(jax.jit(drops.step)(later, _batch(), KEY)[1].loss))
    assert len(losses) == 3
    assert _loss(drops, drops.decoder_params(state)) == _loss(
        PROGRAM, PROGRAM.decoder_params(state)
    )


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rank": -1}, "rank=-1 must be at least 0"),
        ({"alpha": 0.0}, "alpha=0.0 must be a finite number > 0"),
        ({"dropout": 1.0}, r"dropout=1.0 must be in \[0, 1\)"),
        ({"targets": ("lm_head",)}, "targets has 'lm_head'; choose from q_proj"),
        ({"targets": ("q_proj", "q_proj")}, "names one of them twice"),
        ({"targets": ()}, "targets is empty"),
        ({"train_also": ("bias",)}, "train_also has 'bias'; choose from norm, embed"),
        ({"base_dtype": "int4"}, "choose one of float32, bfloat16"),
    ],
)
def test_what_it_cannot_be(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LoraConfig(**{"rank": 4, **fields})


def test_a_matrix_that_the_model_lacks() -> None:
    plain = dataclasses.replace(FULL.model, activation="relu")
    with pytest.raises(ValueError, match=r"lora\.targets has 'gate_proj', which a model with"):
        Program(plain, FULL.rope, FULL.train, lora=LORA)
