"""Training steps on the device against the same ones on the CPU."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rrope_jax.model import ModelConfig
from rrope_jax.posgen.config import PosgenTrainConfig, TaskConfig
from rrope_jax.posgen.training import PosgenProgram
from rrope_jax.rope import RopeSpec
from rrope_jax.train.config import TrainConfig
from rrope_jax.train.step import Program

pytestmark = [pytest.mark.accelerator, pytest.mark.slow]

B, T = 4, 128
MODEL = ModelConfig(
    vocab_size=256, d_model=64, num_layers=2, num_heads=4, num_kv_heads=2, d_ff=128, attention="xla"
)
PROGRAM = Program(
    MODEL,
    RopeSpec(head_dim=16, scaling="yarn", factor=4.0, original_context=64, resonance=True),
    TrainConfig(steps=4, batch_size=B, length=T, learning_rate=1e-3, gradient_clip=1.0),
)
# Float32 sums in another order: 1e-7 each, of some hundred terms, amplified by a few layers.
RELATIVE = 1e-5


def _batch() -> dict[str, np.ndarray]:
    """Two documents in every row."""
    tokens_BT = np.random.default_rng(0).integers(0, MODEL.vocab_size, (B, T + 1)).astype(np.int32)
    places = np.concatenate([np.arange(50), np.arange(T - 50)]).astype(np.int32)
    return {
        "tokens": tokens_BT[:, :-1],
        "targets": tokens_BT[:, 1:],
        "segment_ids": np.broadcast_to(np.repeat([0, 1], [50, T - 50]), (B, T)).astype(np.int32),
        "positions": np.broadcast_to(places, (B, T)).copy(),
        "weights": np.ones((B, T), np.float32),
    }


def _other_device() -> jax.Device:
    """The CPU beside the accelerator."""
    if jax.default_backend() == "cpu":
        pytest.skip("there is no accelerator here to compare with the CPU")
    try:
        return jax.devices("cpu")[0]
    except RuntimeError:
        pytest.skip("JAX_PLATFORMS leaves the CPU out, which the accelerator is compared with")


def _on(device: jax.Device | None, tree: Any) -> Any:
    return tree if device is None else jax.device_put(tree, device)


def _steps(device: jax.Device | None, initial: Any) -> list[tuple[float, float]]:
    """Loss and gradient norm of three steps."""
    with jax.default_matmul_precision("float32"):
        step = jax.jit(PROGRAM.step)
        state, measured = _on(device, initial), []
        for _ in range(3):
            state, found = step(state, *_on(device, (_batch(), jax.random.key(0))))
            measured.append((float(found.loss), float(found.gradient_norm)))
    return measured


def test_text_steps_are_those_of_the_cpu() -> None:
    cpu = _other_device()
    initial = jax.device_get(jax.jit(PROGRAM.init)(jax.random.key(1)))
    np.testing.assert_allclose(_steps(None, initial), _steps(cpu, initial), rtol=10 * RELATIVE)


def test_text_step_learns_in_bfloat16() -> None:
    """With the attention that the platform prefers; on random tokens, by heart."""
    model = ModelConfig(
        **{**vars(MODEL), "compute_dtype": "bfloat16", "attention": "auto", "num_layers": 5}
    )
    program = Program(
        model, PROGRAM.rope, TrainConfig(steps=40, batch_size=B, length=T, learning_rate=3e-3)
    )
    state = jax.jit(program.init)(jax.random.key(1))
    step, batch, losses = jax.jit(program.step, donate_argnums=0), _batch(), []
    for _ in range(40):
        state, found = step(state, batch, jax.random.key(0))
        losses.append(float(found.loss))
    assert losses[0] == pytest.approx(np.log(MODEL.vocab_size), rel=0.02)
    assert losses[-1] < 0.8 * losses[0]


POSGEN = PosgenProgram(
    TaskConfig(
        modulus=7,
        train_length=16,
        test_length=32,
        train_sequences=64,
        validation_sequences=16,
        test_sequences=16,
    ),
    ModelConfig(vocab_size=8, d_model=32, num_layers=2, num_heads=2, d_ff=64, activation="relu"),
    PosgenTrainConfig(steps=20, batch_size=16, validate_every=20, eval_batch_size=16),
    matmul_precision="float32",
)


def _posgen_inputs(seed: int) -> tuple[Any, ...]:
    rows_NT = POSGEN.task.data("cot", jax.random.key(seed)).train_NT
    table = POSGEN.tables(RopeSpec(head_dim=16, resonance=True), POSGEN.task.train_length)
    return POSGEN.init(jax.random.key(seed)), rows_NT, table, jax.random.key(seed)


@pytest.mark.long
def test_posgen_lanes_are_single_trainings() -> None:
    """Side by side under vmap on the device, one by one on the CPU where there is one beside it."""
    accelerated = jax.default_backend() != "cpu"
    single_device = _other_device() if accelerated else None
    inputs = [jax.device_get(jax.jit(_posgen_inputs, static_argnums=0)(seed)) for seed in (0, 1)]
    steps = functools.partial(POSGEN.train_steps, steps=5)
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *inputs)
    _, side_by_side = jax.jit(jax.vmap(steps))(*stacked)
    alone = [np.asarray(jax.jit(steps)(*_on(single_device, each))[1]) for each in inputs]
    np.testing.assert_allclose(side_by_side, alone, rtol=RELATIVE)
