"""The benchmark's arithmetic by hand, its PyTorch peer against ours, and the script itself."""

import functools
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from rrope_jax.model import ModelConfig
from rrope_jax.posgen.ablation import TrainingProgress
from rrope_jax.posgen.config import PosgenTrainConfig, TaskConfig
from rrope_jax.posgen.grid import Evaluation, Training
from rrope_jax.posgen.training import PosgenProgram, PosgenState
from rrope_jax.rope import RopeSpec
from tests.benchmarks import gemm, grid_rate, timing, training_step

ROOT = Path(__file__).parents[2]
TASK = TaskConfig(
    modulus=5,
    train_length=12,
    test_length=16,
    train_sequences=20,
    validation_sequences=4,
    test_sequences=4,
)
PLAIN = ModelConfig(vocab_size=6, d_model=16, num_layers=2, num_heads=2, d_ff=24, activation="relu")
LIKE_T5 = ModelConfig(
    vocab_size=6,
    d_model=16,
    num_layers=1,
    num_heads=2,
    head_dim=10,
    d_ff=24,
    activation="relu",
    attention_scale=1.0,
    tie_embeddings=True,
    logit_scale=0.25,
    initialization="t5",
    dropout=0.1,
    rms_norm_eps=1e-6,
)
TRAIN = PosgenTrainConfig(
    steps=10, batch_size=4, learning_rate=1e-2, validate_every=10, eval_batch_size=4
)
CLIPPED = PosgenTrainConfig(
    steps=10,
    batch_size=4,
    learning_rate=1e-2,
    gradient_clip=0.1,
    weight_decay=0.5,
    validate_every=10,
    eval_batch_size=4,
)


def _training(spec: RopeSpec) -> Training:
    evaluation = Evaluation("scaled_training", "any", spec)
    return Training(task="cot", method="any", seed=3, spec=spec, evaluations=(evaluation,))


def test_flops_by_hand() -> None:
    """Batch 4 of 12 tokens, of which 8 are predicted."""
    attention = 4 * 12 * 16 * 16 + 2 * 12 * 12 * 16  # q, k, v, out; logits and mixture
    feed_forward = 2 * 12 * 16 * 24
    logits = 8 * 16 * 6
    multiply_adds = 2 * (attention + feed_forward) + logits
    assert training_step.flops(PosgenProgram(TASK, PLAIN, TRAIN)) == 4 * 3 * 2 * multiply_adds


def test_products_have_the_operations_of_their_shapes() -> None:
    for product in gemm.products(PosgenProgram(TASK, PLAIN, TRAIN)).values():
        a, b = np.ones(product.left), np.ones(product.right)
        result = product.of(a, b)
        assert product.flops == 2 * result.size * result[0, 0]  # sums of ones: the inner size


def test_medians_are_taken_in_turns_and_without_the_first_call(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = 0.0
    monkeypatch.setattr(timing.time, "perf_counter", lambda: clock)
    order = []
    seconds = {"a": iter([100.0, 1.0, 5.0, 2.0]), "b": iter([200.0, 7.0, 4.0, 3.0])}

    def run(name: str) -> None:
        nonlocal clock
        clock += next(seconds[name])
        order.append(name)

    runs = {name: functools.partial(run, name) for name in seconds}
    assert timing.interleaved_medians(runs, repeats=3) == {"a": 2.0, "b": 4.0}
    assert order == ["a", "b"] * 4


def test_stopwatch_counts_calls_after_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two trainings share every call."""
    clock = iter([2.0, 5.0, 9.0])
    monkeypatch.setattr(grid_rate.time, "perf_counter", lambda: next(clock))
    stopwatch, training = grid_rate.Stopwatch(calls=2), _training(RopeSpec(head_dim=8))
    for step in (10, 10, 20, 20, 30):
        assert not stopwatch.stop.is_set()
        stopwatch.save(training, PosgenState(None, None, None), TrainingProgress(step))
    assert stopwatch.stop.is_set()
    assert stopwatch.calls_per_second() == 2 / (9 - 2)


@pytest.mark.peers
@pytest.mark.parametrize("model", [PLAIN, LIKE_T5], ids=["plain", "like T5"])
@pytest.mark.parametrize("train", [TRAIN, CLIPPED], ids=["unclipped", "clipped"])
def test_peer_trains_as_we_do(model: ModelConfig, train: PosgenTrainConfig) -> None:
    spec = RopeSpec(
        head_dim=model.head_size, scaling="yarn", factor=2.0, original_context=8, resonance=True
    )
    program = PosgenProgram(TASK, model, train)
    assert training_step.largest_difference(program, _training(spec), steps=8) < 1e-5


def _run(*options: str, hide_torch: bool) -> str:
    hide = "import sys; sys.modules['torch'] = None; " if hide_torch else ""
    code = f"{hide}from tests.benchmarks import posgen_step; posgen_step.main({list(options)})"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.long
def test_script_without_torch() -> None:
    printed = _run(
        *("--sizes", "quick", "--steps", "2", "--repeats", "1", "--grid_repeats", "1"),
        hide_torch=True,
    )
    rows = [line.split(" |")[0].removeprefix("| ") for line in printed.splitlines() if "|" in line]
    assert [row for row in rows if row in ("JAX", "rrope_jax", "1")] == ["JAX", "rrope_jax", "1"]
    assert "no rows of PyTorch: " in printed
    assert "eager" not in printed
    assert "nan" not in printed


@pytest.mark.long
@pytest.mark.peers
def test_script_with_torch() -> None:
    options = ["--sizes", "quick", "--parts", "gemm", "step", "--steps", "2", "--repeats", "1"]
    printed = _run(*options, hide_torch=False)
    rows = [line.split(" |")[0].removeprefix("| ") for line in printed.splitlines() if "|" in line]
    for row in ("JAX", "PyTorch", "rrope_jax", "PyTorch eager"):
        assert row in rows
    assert "torch.compile" in rows or "No row of torch.compile: " in printed


def test_script_names_a_wrong_option() -> None:
    code = "from tests.benchmarks import posgen_step; posgen_step.main(['--steps', '0'])"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "--steps=0 must be at least 1" in done.stderr
