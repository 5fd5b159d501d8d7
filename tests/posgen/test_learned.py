"""PosGen with learned frequencies: their gradient, where they start, and how they are tested."""

import dataclasses
import math
import threading
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from numpy.typing import NDArray

from rrope_jax.model import Decoder, ModelConfig
from rrope_jax.posgen import ablation
from rrope_jax.posgen.config import PosgenTrainConfig, TaskConfig
from rrope_jax.posgen.grid import PROTOCOLS, Training, trainings
from rrope_jax.posgen.layout import rounds
from rrope_jax.posgen.results import Cell
from rrope_jax.posgen.training import PosgenProgram, PosgenState
from rrope_jax.rope import RopeSpec, cos_sin, frequencies, phase_table
from rrope_jax.rope.learned import learned_cos_sin
from rrope_jax.rope.methods import fixed_variant, parse_method

pytestmark = pytest.mark.usefixtures("quick_compilation")

PROGRAM = PosgenProgram(
    TaskConfig(
        modulus=5,
        train_length=8,
        test_length=16,
        train_sequences=20,
        validation_sequences=4,
        test_sequences=6,
    ),
    ModelConfig(
        vocab_size=6,
        d_model=16,
        num_layers=2,
        num_heads=2,
        d_ff=24,
        layer_types=("sliding_attention", "full_attention"),
        sliding_window=3,
    ),
    PosgenTrainConfig(
        steps=6,
        batch_size=4,
        learning_rate=1e-2,
        frequency_rate=3.0,
        validate_every=3,
        eval_batch_size=2,
    ),
)
RULES = ("learned_rope", "resonance_learned_rope", "rational_learned_rope", "coprime_learned_rope")


def _spec(method: str) -> RopeSpec:
    scaling, rule = parse_method(fixed_variant(method))
    fields: dict[str, Any] = {"factor": 2.0, "original_context": 8} if scaling == "yarn" else {}
    period = {"resonance_period": 16} if rule == "rational" else {}
    return RopeSpec(head_dim=8, scaling=scaling, resonance=rule, **fields, **period)


def _trainings(*methods: str, protocol: str = "scaled_training") -> tuple[Training, ...]:
    every = {*methods, *map(PROTOCOLS[protocol], methods)}
    specs = {(protocol, method): _spec(method) for method in every}
    return trainings(tasks=("cot",), methods=methods, seeds=(0,), specs=specs)


class _Store:
    """Keeps everything in the process."""

    def __init__(self) -> None:
        self.cells: dict[str, Cell] = {}
        self.saved: dict[str, Any] = {}
        self.saves = 0

    def finished(self, training: Training) -> bool:
        return all(each.method in self.cells for each in training.evaluations)

    def finish(self, training: Training, cells: Any) -> None:
        self.cells |= {cell.method: cell for cell in cells}

    def restore(self, training: Training, like: PosgenState) -> Any:
        return self.saved.get(training.name)

    def save(self, training: Training, state: PosgenState, progress: Any) -> None:
        self.saves += 1
        self.saved[training.name] = jax.tree.map(np.array, state), dataclasses.replace(progress)

    def results(self) -> dict[str, Any]:
        return {
            name: {key: value for key, value in cell.to_json().items() if key != "seconds"}
            for name, cell in self.cells.items()
        }


@pytest.fixture(scope="module")
def finished(quick_compilation: None) -> _Store:
    """One training that learns, tested under several rules."""
    store = _Store()
    ablation.run(PROGRAM, _trainings(*RULES), store, lanes=1)
    return store


class TestGrid:
    def test_one_training_serves_every_rule(self) -> None:
        planned = _trainings("rope", *RULES)
        assert [t.method for t in planned] == ["rope", "learned_rope"]
        assert [e.method for e in planned[1].evaluations] == list(RULES)
        assert planned[1].learned
        assert planned[1].spec == _spec("rope")

    def test_scaled_at_test_learns_unscaled(self) -> None:
        (planned,) = _trainings("learned_rope", "resonance_learned_yarn", protocol="scaled_at_test")
        assert planned.method == "learned_rope"
        assert planned.evaluations[1].spec == _spec("resonance_yarn")

    def test_trainings_that_learn_have_rounds_of_their_own(self) -> None:
        planned = _trainings("rope", *RULES, "resonance_rope")
        made = rounds(planned, devices=1, lanes=0)
        names = [[training.method for training in each.trainings] for each in made]
        assert names == [["rope", "resonance_rope"], ["learned_rope"]]
        assert [each.learned for each in made] == [False, True]


def test_rules_move_what_was_learned(finished: _Store) -> None:
    plain_F = frequencies(_spec("rope")).inv_freq
    learned, nearest = (finished.cells[method].inv_freq for method in RULES[:2])
    assert learned.keys() == {"full_attention", "sliding_attention"}
    for name, learned_F in learned.items():
        moved_F = abs(np.log(learned_F / plain_F))
        assert 1e-3 < moved_F.max() < 0.18  # six steps of at most 0.03
        wavelengths_F = 2 * math.pi / np.array(learned_F)
        np.testing.assert_allclose(
            2 * math.pi / np.array(nearest[name]), np.rint(wavelengths_F), rtol=1e-12
        )
    assert learned["full_attention"] != learned["sliding_attention"]
    losses = {finished.cells[method].ood_loss for method in RULES}
    assert len(losses) == len(RULES)
    assert {finished.cells[method].trained_as for method in RULES} == {"learned_rope"}


def test_cells_are_read_again(finished: _Store) -> None:
    cell = finished.cells["learned_rope"]
    assert Cell.from_json(cell.to_json()).inv_freq == cell.inv_freq


@pytest.mark.heavy
def test_resumed_run_ends_as_the_unbroken_one(finished: _Store) -> None:
    store = _Store()

    class StopAtFirstSave(threading.Event):
        def is_set(self) -> bool:
            return super().is_set() or store.saves > 0

    planned, often = _trainings(*RULES), {"lanes": 1, "save_every_seconds": 0.0}
    ablation.run(PROGRAM, planned, store, stop=StopAtFirstSave(), **often)
    ((state, progress),) = store.saved.values()
    assert progress.step == 3
    assert abs(state.params.log_ratios["full_attention"]).max() > 0
    ablation.run(PROGRAM, planned, store, **often)
    assert store.results() == finished.results()


# --- the gradient of a whole model, against a float64 one ----------------------------------------

_LETTERS = {"query": "td,dnh->nth", "key": "td,dnh->nth", "value": "td,dnh->nth"}


def _loss_in_float64(
    params: Mapping[str, Any], tokens_T: NDArray[Any], inv_freq_F: NDArray[Any]
) -> float:
    """Mean negative log likelihood of the tokens after the first, by the formulas of the paper."""
    layer = jax.tree.map(lambda leaf_L: np.float64(leaf_L)[0], params["blocks"])

    def norm(x_TD: Any, scale_D: Any) -> Any:
        mean_square_T1 = (x_TD**2).mean(-1, keepdims=True)
        return x_TD / np.sqrt(mean_square_T1 + 1e-5) * np.float64(scale_D)

    def rotated(x_NTH: Any) -> Any:
        angle_TF = np.multiply.outer(np.arange(x_NTH.shape[1]), inv_freq_F)
        first, second = np.split(x_NTH, 2, axis=-1)
        turned_NTF = (first + 1j * second) * np.exp(1j * angle_TF)
        return np.concatenate([turned_NTF.real, turned_NTF.imag], axis=-1)

    x_TD = np.float64(params["embedding"])[tokens_T[:-1]]
    normed_TD = norm(x_TD, layer["attention_norm"]["scale"])
    attention = layer["attention"]
    q, k, v = (np.einsum(_LETTERS[n], normed_TD, attention[n]) for n in ("query", "key", "value"))
    logits_NTS = rotated(q) @ rotated(k).swapaxes(1, 2) * 8**-0.5
    logits_NTS = np.where(np.tri(len(x_TD), dtype=bool), logits_NTS, -np.inf)
    weights_NTS = np.exp(logits_NTS - logits_NTS.max(-1, keepdims=True))
    weights_NTS /= weights_NTS.sum(-1, keepdims=True)
    x_TD = x_TD + np.einsum("nth,nhd->td", weights_NTS @ v, attention["out"])
    normed_TD = norm(x_TD, layer["feed_forward_norm"]["scale"])
    gate_TF, up_TF = (normed_TD @ layer["feed_forward"][name] for name in ("gate", "up"))
    x_TD = x_TD + (gate_TF / (1 + np.exp(-gate_TF)) * up_TF) @ layer["feed_forward"]["down"]
    logits_TV = norm(x_TD, params["final_norm"]["scale"]) @ np.float64(params["output"])
    likelihood_TV = np.exp(logits_TV) / np.exp(logits_TV).sum(-1, keepdims=True)
    return float(-np.log(likelihood_TV[np.arange(len(x_TD)), tokens_T[1:]]).mean())


def test_gradient_of_the_loss_agrees_with_finite_differences_in_float64() -> None:
    # weights large enough that the loss depends on the rotation
    model = ModelConfig(
        vocab_size=6, d_model=16, num_layers=1, num_heads=2, d_ff=24, initializer_range=0.5
    )
    spec, random = RopeSpec(head_dim=8, theta=100.0), np.random.default_rng(0)
    decoder = Decoder(model, spec, rngs=nnx.Rngs(0))
    graph, params = nnx.split(decoder)
    tokens_T = random.integers(0, 6, 17)
    log_ratio_F = random.normal(0, 0.2, 4).astype(np.float32)

    @jax.jit
    def loss(rotation: Any) -> jax.Array:
        logits_TV = nnx.merge(graph, params)(tokens_T[None, :-1], rotation=rotation)[0]
        return -jnp.mean(jax.nn.log_softmax(logits_TV)[jnp.arange(16), tokens_T[1:]])

    def of_learned(ratio_F: jax.Array) -> jax.Array:
        return loss(learned_cos_sin(phase_table(spec), ratio_F, jnp.arange(16)))

    assert of_learned(jnp.zeros(4)) == loss(cos_sin(spec, jnp.arange(16)))
    value, found_F = jax.value_and_grad(of_learned)(jnp.asarray(log_ratio_F))
    arrays = nnx.to_pure_dict(params)
    inv_freq_F, step = frequencies(spec).inv_freq, 1e-5

    def reference(shift_F: Any) -> float:
        moved_F = inv_freq_F * np.exp(np.float64(log_ratio_F) + shift_F)
        return _loss_in_float64(arrays, tokens_T, moved_F)

    assert value == pytest.approx(reference(0), rel=1e-5)
    expected_F = np.array(
        [(reference(unit_F) - reference(-unit_F)) / (2 * step) for unit_F in step * np.eye(4)]
    )
    assert (abs(expected_F) > 1e-4).all()
    np.testing.assert_allclose(found_F, expected_F, atol=1e-4 * abs(expected_F).max(), rtol=0)


@pytest.mark.parametrize("rate", [-1.0, math.inf])
def test_rate_is_checked(rate: float) -> None:
    with pytest.raises(ValueError, match=f"frequency_rate={rate}"):
        dataclasses.replace(PROGRAM.train, frequency_rate=rate)
