"""Running many trainings: how they are paired, stopped, kept and laid over devices."""

import copy
import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from rrope_jax.model import ModelConfig
from rrope_jax.posgen import ablation
from rrope_jax.posgen.config import PosgenTrainConfig, TaskConfig
from rrope_jax.posgen.grid import Evaluation, Training
from rrope_jax.posgen.layout import Round
from rrope_jax.posgen.results import Cell, training_cells
from rrope_jax.posgen.round_functions import inputs
from rrope_jax.posgen.training import PosgenProgram, PosgenState
from rrope_jax.rope import RopeSpec, phase_table
from rrope_jax.rope.positions import PositionSampling

pytestmark = pytest.mark.usefixtures("quick_compilation")

ROOT = Path(__file__).parents[2]
PROGRAM = PosgenProgram(
    TaskConfig(
        modulus=5,
        train_length=8,
        test_length=16,
        train_sequences=20,
        validation_sequences=4,
        test_sequences=6,
    ),
    ModelConfig(vocab_size=6, d_model=16, num_layers=1, num_heads=2, d_ff=24),
    PosgenTrainConfig(
        steps=12,
        batch_size=4,
        learning_rate=1e-2,
        validate_every=6,
        steps_per_call=3,
        eval_batch_size=2,
    ),
)
SPECS = {
    "rope": RopeSpec(head_dim=8),
    "linear": RopeSpec(head_dim=8, scaling="linear", factor=1.0),
    "resonance_yarn": RopeSpec(
        head_dim=8, scaling="yarn", factor=2.0, original_context=8, resonance=True
    ),
    "dynamic_ntk": RopeSpec(head_dim=8, scaling="dynamic_ntk", factor=2.0, original_context=8),
}


def _training(
    method: str = "rope", *, task: str = "cot", seed: int = 0, tested_as: Sequence[str] = ()
) -> Training:
    evaluations = tuple(
        Evaluation("scaled_training", name, SPECS[name]) for name in tested_as or (method,)
    )
    return Training(task, method, seed, SPECS[method], evaluations)


class MemoryStore:
    """Keeps everything in the process."""

    def __init__(self) -> None:
        self.cells: dict[str, Sequence[Cell]] = {}
        self.saved: dict[str, tuple[PosgenState, ablation.TrainingProgress]] = {}
        self.saves = 0

    def finished(self, training: Training) -> bool:
        return training.name in self.cells

    def finish(self, training: Training, cells: Sequence[Cell]) -> None:
        assert training.name not in self.cells
        self.cells[training.name] = cells

    def restore(
        self, training: Training, like: PosgenState
    ) -> tuple[PosgenState, ablation.TrainingProgress] | None:
        if training.name not in self.saved:
            return None
        state, progress = self.saved[training.name]
        assert jax.tree.map(np.shape, state) == jax.tree.map(np.shape, like)
        return state, copy.deepcopy(progress)

    def save(
        self, training: Training, state: PosgenState, progress: ablation.TrainingProgress
    ) -> None:
        self.saves += 1
        self.saved[training.name] = jax.tree.map(np.array, state), copy.deepcopy(progress)

    def results(self) -> dict[str, Any]:
        """All cells by name and method, without the time they took."""
        return {
            f"{name} as {cell.method}": {
                key: value for key, value in cell.to_json().items() if key != "seconds"
            }
            for name, cells in sorted(self.cells.items())
            for cell in cells
        }


DAMAGED_CELLS = {
    "null": lambda cells: None,
    "a cell": lambda cells: cells[0],
    "none": lambda cells: [],
    "one too many": lambda cells: cells * 2,
    "of another seed": lambda cells: [cells[0] | {"seed": 7}],
    "text": lambda cells: ["cell"],
    "no accuracy": lambda cells: [{k: v for k, v in cells[0].items() if k != "ood_accuracy"}],
    "accuracy is text": lambda cells: [cells[0] | {"ood_accuracy": "high"}],
    "curve is a number": lambda cells: [cells[0] | {"validation_loss": 3}],
    "curve is cut": lambda cells: [cells[0] | {"validation_loss": []}],
}


@pytest.fixture(scope="module")
def finished(quick_compilation: None) -> MemoryStore:
    """Three trainings of one shape, run one by one."""
    store = MemoryStore()
    trainings = [_training(), _training("linear"), _training(seed=1)]
    ablation.run(PROGRAM, trainings, store, lanes=1, save_every_seconds=1e9)
    return store


class TestCells:
    def test_content(self, finished: MemoryStore) -> None:
        cell = finished.cells["cot-rope-1"][0].to_json()
        assert {key: cell[key] for key in ("task", "method", "protocol", "trained_as", "seed")} == {
            "task": "cot",
            "method": "rope",
            "protocol": "scaled_training",
            "trained_as": "rope",
            "seed": 1,
        }
        by_position = cell["accuracy_by_position"]
        assert by_position[:4] == [None] * 4
        assert len(by_position) == 16
        assert cell["id_accuracy"] == pytest.approx(np.mean(by_position[4:8]))
        assert cell["ood_accuracy"] == pytest.approx(np.mean(by_position[8:]))
        assert cell["steps"] == 12
        assert cell["validation_step"] == [6, 12]
        assert len(cell["validation_loss"]) == len(cell["train_loss"]) == 2
        assert cell["seconds"] > 0
        json.dumps(cell, allow_nan=False)

    def test_methods_of_a_seed_are_paired(self, finished: MemoryStore) -> None:
        """Linear scaling by 1 is plain RoPE: same data, start and batches give the same numbers."""
        (plain,), (linear,) = finished.cells["cot-rope-0"], finished.cells["cot-linear-0"]
        changed = {"method", "trained_as", "seconds"}
        assert {k: v for k, v in plain.to_json().items() if k not in changed} == {
            k: v for k, v in linear.to_json().items() if k not in changed
        }

    def test_seeds_differ(self, finished: MemoryStore) -> None:
        (one,), (other,) = finished.cells["cot-rope-0"], finished.cells["cot-rope-1"]
        assert one.validation_loss != other.validation_loss
        assert one.train_loss != other.train_loss

    def test_train_loss_is_the_mean_since_the_last_validation(self, finished: MemoryStore) -> None:
        train = dataclasses.replace(PROGRAM.train, validate_every=3)
        store = MemoryStore()
        ablation.run(dataclasses.replace(PROGRAM, train=train), [_training()], store, lanes=1)
        (every_3,), (every_6,) = store.cells["cot-rope-0"], finished.cells["cot-rope-0"]
        assert every_3.validation_step == (3, 6, 9, 12)
        assert every_3.validation_loss[1::2] == every_6.validation_loss
        halves = np.reshape(every_3.train_loss, (2, 2)).mean(axis=1)
        np.testing.assert_allclose(every_6.train_loss, halves, rtol=1e-12)

    def test_one_training_is_tested_under_several_tables(self) -> None:
        store = MemoryStore()
        methods = ("rope", "linear", "resonance_yarn", "dynamic_ntk")
        ablation.run(PROGRAM, [_training(tested_as=methods)], store, lanes=1)
        plain, linear, yarn, dynamic = store.cells["cot-rope-0"]
        assert tuple(cell.method for cell in store.cells["cot-rope-0"]) == methods
        assert plain.validation_loss == linear.validation_loss
        assert plain.train_loss == yarn.train_loss
        assert plain.validation_loss != yarn.validation_loss
        assert plain.ood_loss != yarn.ood_loss
        # at the context that it was made for, dynamic_ntk is plain RoPE; the test is longer
        assert plain.ood_loss != dynamic.ood_loss

    def test_read_from_json(self, finished: MemoryStore) -> None:
        entries = _entries(finished)
        (cell,) = training_cells(entries, _training(seed=1))
        assert cell.to_json() == entries[0]
        with pytest.raises(ValueError, match="it has other cells"):
            training_cells(entries, _training(seed=0))

    @pytest.mark.parametrize("name", DAMAGED_CELLS)
    def test_that_are_damaged(self, name: str, finished: MemoryStore) -> None:
        damaged = DAMAGED_CELLS[name](_entries(finished))
        with pytest.raises(ValueError):  # noqa: PT011
            training_cells(damaged, _training(seed=1))


def _entries(store: MemoryStore) -> list[dict[str, Any]]:
    """The cells of a training as they come back from JSON."""
    written = json.dumps([cell.to_json() for cell in store.cells["cot-rope-1"]], allow_nan=False)
    entries: list[dict[str, Any]] = json.loads(written)
    return entries


def test_training_has_the_tables_of_the_positions_it_draws() -> None:
    """Scalings that follow the length see that of the positions, not that of the rows."""
    sampling = PositionSampling(sampler="pose", target_length=16)
    for positions, length in ((PositionSampling(), 8), (sampling, 16)):
        program = dataclasses.replace(PROGRAM, positions=positions)
        made = inputs(program, Round((_training("dynamic_ntk"),))).tables_S["full_attention"]
        expected = phase_table(SPECS["dynamic_ntk"], length)
        for found, table in zip(*map(jax.tree.leaves, (made.phases, expected)), strict=True):
            np.testing.assert_array_equal(np.asarray(found)[0], table)


def test_lanes_agree_with_trainings_one_by_one(finished: MemoryStore) -> None:
    together = MemoryStore()
    trainings = [_training(), _training("linear"), _training(seed=1)]
    ablation.run(PROGRAM, trainings, together, lanes=3)
    assert together.cells.keys() == finished.cells.keys()
    for name, cells in finished.cells.items():
        for one, lane in zip(cells, together.cells[name], strict=True):
            for key in ("validation_loss", "train_loss", "id_loss", "ood_loss"):
                found, expected = getattr(lane, key), getattr(one, key)
                np.testing.assert_allclose(found, expected, rtol=1e-5, err_msg=f"{name} {key}")
            for key in ("id_accuracy", "ood_accuracy"):
                # one token in 48 may fall the other way where two logits are almost equal
                assert abs(getattr(lane, key) - getattr(one, key)) < 0.05


class TestResume:
    TRAININGS = (_training(), _training("linear"), _training(seed=1))

    def test_finished_trainings_are_not_run_again(self, finished: MemoryStore) -> None:
        saves = finished.saves
        ablation.run(PROGRAM, self.TRAININGS, finished, lanes=1)  # `finish` refuses a second time
        assert finished.saves == saves

    def test_stopped_at_every_chance_ends_as_the_unbroken_run(self, finished: MemoryStore) -> None:
        store, rounds = MemoryStore(), 0

        class StopAtNextSave(threading.Event):
            def is_set(self) -> bool:
                return super().is_set() or store.saves > rounds

        while not store.cells:
            ablation.run(
                PROGRAM,
                [_training()],
                store,
                lanes=1,
                save_every_seconds=0.0,
                stop=StopAtNextSave(),
            )
            rounds += 1
            assert rounds <= 7
        assert rounds == 7  # four calls, two validations, and the test
        assert store.results().items() <= finished.results().items()

    def test_stop_before_the_start_does_nothing(self) -> None:
        store, stop = MemoryStore(), threading.Event()
        stop.set()
        ablation.run(PROGRAM, self.TRAININGS, store, lanes=1, stop=stop)
        assert (store.saves, store.cells) == (0, {})

    @pytest.mark.slow
    def test_signal_that_another_thread_receives_is_answered_at_once(self) -> None:
        """The system may hand it to any thread; Python answers in the main thread alone."""

        class Stopped(BaseException):
            pass

        class SignalingStore(MemoryStore):
            def save(
                self, training: Training, state: PosgenState, progress: ablation.TrainingProgress
            ) -> None:
                super().save(training, state, progress)
                if self.saves == 1:
                    signal.pthread_kill(threading.get_ident(), signal.SIGUSR1)
                    time.sleep(2)  # for a main thread that is not waiting any more

        def stop(number: int, frame: object) -> None:
            raise Stopped

        store = SignalingStore()
        before = signal.signal(signal.SIGUSR1, stop)
        try:
            with pytest.raises(Stopped):
                ablation.run(PROGRAM, self.TRAININGS, store, lanes=1, save_every_seconds=0.0)
        finally:
            signal.signal(signal.SIGUSR1, before)
        assert (store.saves, store.cells) == (1, {})

    @pytest.mark.slow
    def test_partly_finished_group_is_computed_as_in_the_unbroken_run(self) -> None:
        whole, partly = MemoryStore(), MemoryStore()
        ablation.run(PROGRAM, self.TRAININGS, whole, lanes=3)
        partly.cells = {"cot-rope-0": whole.cells["cot-rope-0"]}
        finish = partly.finish
        partly.finish = lambda training, cells: (  # type: ignore[method-assign]
            None if partly.finished(training) else finish(training, cells)
        )
        ablation.run(PROGRAM, self.TRAININGS, partly, lanes=3)
        assert partly.results() == whole.results()


class TestFailure:
    def test_divergence_names_training_step_and_mend_and_keeps_what_was_done(self) -> None:
        train = dataclasses.replace(PROGRAM.train, learning_rate=1e38)
        store = MemoryStore()
        store.cells["cot-linear-0"] = []
        with pytest.raises(FloatingPointError) as caught:
            ablation.run(
                dataclasses.replace(PROGRAM, train=train),
                [_training("linear"), _training()],
                store,
                lanes=1,
            )
        message = str(caught.value)
        parts = ["cot-rope-0", "step 3", "train.learning_rate", "train.gradient_clip"]
        assert [part for part in parts if part not in message] == []
        assert store.cells.keys() == {"cot-linear-0"}

    @pytest.mark.slow
    def test_error_of_the_store_ends_the_run(self) -> None:
        class FullDisk(MemoryStore):
            def save(
                self, training: Training, state: PosgenState, progress: ablation.TrainingProgress
            ) -> None:
                raise OSError(28, "No space left on device")

        with pytest.raises(OSError, match="No space left"):
            ablation.run(PROGRAM, [_training()], FullDisk(), lanes=1)


def _on_devices(devices: int, code: str) -> dict[str, Any]:
    """The results in `store` after some code in a process with so many CPU devices."""
    header = f"""
import dataclasses, json
import jax
jax.config.update("jax_num_cpu_devices", {devices})
import tests.posgen.test_ablation as t
store = t.MemoryStore()
"""
    quick = {"JAX_PLATFORMS": "cpu", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", f"{header}{code}\nprint(json.dumps(store.results()))"],
        cwd=ROOT,
        env=os.environ | quick,
        stdout=subprocess.PIPE,
        check=True,
    )
    results: dict[str, Any] = json.loads(done.stdout)
    return results


# neither 2 nor 8 devices divide them
FIVE = """
trainings = [t._training(tested_as=("rope", "linear")), *(t._training(seed=s) for s in range(1, 5))]
t.ablation.run(t.PROGRAM, trainings, store, lanes={lanes})
"""


@pytest.fixture(scope="module")
def one_device() -> dict[str, Any]:
    """Results of `FIVE` on one device."""
    return _on_devices(1, FIVE.format(lanes=1))


@pytest.mark.slow
class TestDevices:
    """What is computed does not depend on where."""

    @pytest.mark.parametrize("devices", [2, 8])
    def test_number_does_not_change_a_bit(self, devices: int, one_device: dict[str, Any]) -> None:
        assert len(one_device) == 6
        assert _on_devices(devices, FIVE.format(lanes=1)) == one_device

    def test_lanes_on_devices_agree_with_one_by_one(self, one_device: dict[str, Any]) -> None:
        several = _on_devices(2, FIVE.format(lanes=0))
        assert several.keys() == one_device.keys()
        for name, cell in one_device.items():
            for key in ("validation_loss", "train_loss", "id_loss", "ood_loss"):
                np.testing.assert_allclose(several[name][key], cell[key], rtol=1e-5, err_msg=name)

    def test_matrix_products_that_threads_share(self) -> None:
        """At a width where XLA shares one between threads, if a device has several."""
        code = """
model = dataclasses.replace(t.PROGRAM.model, d_model=256, head_dim=128, num_kv_heads=2, d_ff=512)
train = dataclasses.replace(t.PROGRAM.train, batch_size=20)
program = dataclasses.replace(t.PROGRAM, model=model, train=train)
t.SPECS["rope"] = t.RopeSpec(head_dim=128)
t.ablation.run(program, [t._training(seed=seed) for seed in range(2)], store, lanes=1)
"""
        assert _on_devices(1, code) == _on_devices(2, code)
