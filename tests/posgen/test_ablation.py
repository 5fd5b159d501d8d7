"""Running many trainings: how they are grouped, paired, stopped and kept."""

import dataclasses
import json
import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from rrope_jax.model import ModelConfig
from rrope_jax.posgen import ablation
from rrope_jax.posgen.grid import Evaluation, Training
from rrope_jax.posgen.training import Program, State, TaskConfig, TrainConfig
from rrope_jax.rope import RopeSpec

pytestmark = pytest.mark.usefixtures("quick_compilation")

ROOT = Path(__file__).parents[2]
PROGRAM = Program(
    TaskConfig(
        modulus=5,
        train_length=8,
        test_length=16,
        train_sequences=20,
        validation_sequences=4,
        test_sequences=6,
    ),
    ModelConfig(vocab_size=6, d_model=16, num_layers=1, num_heads=2, d_ff=24),
    TrainConfig(
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
    """Keeps everything in the process, states as numpy arrays since training donates its own."""

    def __init__(self) -> None:
        self.cells: dict[str, list[ablation.Cell]] = {}
        self.saved: dict[str, tuple[Any, ablation.Progress]] = {}
        self.saves = 0

    def finished(self, training: Training) -> bool:
        return training.name in self.cells

    def finish(self, training: Training, cells: list[ablation.Cell]) -> None:
        assert training.name not in self.cells
        self.cells[training.name] = cells

    def restore(self, name: str, state: State) -> tuple[State, ablation.Progress] | None:
        if name not in self.saved:
            return None
        arrays, progress = self.saved[name]
        placed = jax.tree.map(lambda x, like: jax.device_put(x, like.sharding), arrays, state)
        return placed, ablation.Progress(**dataclasses.asdict(progress))

    def save(self, name: str, state: State, progress: ablation.Progress) -> None:
        self.saves += 1
        arrays = jax.tree.map(np.array, state)
        self.saved[name] = arrays, ablation.Progress(**dataclasses.asdict(progress))

    def results(self) -> dict[str, Any]:
        """All cells by name and method, without the time they took."""
        return {
            f"{name} as {cell['method']}": {k: v for k, v in cell.items() if k != "seconds"}
            for name, cells in sorted(self.cells.items())
            for cell in cells
        }


@pytest.fixture(scope="module")
def finished(quick_compilation: None) -> MemoryStore:
    """Three trainings of one shape, run one by one."""
    store = MemoryStore()
    trainings = [_training(), _training("linear"), _training(seed=1)]
    ablation.run(PROGRAM, trainings, store, lanes=1, save_every_seconds=1e9)
    return store


class TestGroups:
    TRAININGS = tuple(
        _training(task=task, seed=seed) for seed in range(3) for task in ("recursive", "cot")
    )

    def _names(self, *, devices: int, lanes: int) -> list[list[str]]:
        made = ablation.groups(self.TRAININGS, devices=devices, lanes=lanes)
        return [[training.name for training in group.trainings] for group in made]

    def test_one_lane_is_a_training_a_group_in_the_order_given(self) -> None:
        assert self._names(devices=4, lanes=1) == [[t.name] for t in self.TRAININGS]

    def test_a_group_has_one_task(self) -> None:
        assert self._names(devices=1, lanes=0) == [
            ["recursive-rope-0", "recursive-rope-1", "recursive-rope-2"],
            ["cot-rope-0", "cot-rope-1", "cot-rope-2"],
        ]

    def test_devices_share_a_task(self) -> None:
        assert self._names(devices=2, lanes=0) == [
            ["recursive-rope-0", "recursive-rope-1"],
            ["cot-rope-0", "cot-rope-1"],
            ["recursive-rope-2"],
            ["cot-rope-2"],
        ]

    def test_lanes_bound_a_group(self) -> None:
        assert [len(names) for names in self._names(devices=1, lanes=2)] == [2, 2, 1, 1]

    def test_trainings_tested_differently_often_do_not_mix(self) -> None:
        trainings = [_training(), _training(seed=1, tested_as=("rope", "linear"))]
        assert len(ablation.groups(trainings, devices=1, lanes=0)) == 2

    def test_names_are_unique(self) -> None:
        for lanes in (0, 1, 2):
            made = ablation.groups(self.TRAININGS, devices=2, lanes=lanes)
            assert len({group.name for group in made}) == len(made)


class TestCells:
    def test_content(self, finished: MemoryStore) -> None:
        (cell,) = finished.cells["cot-rope-1"]
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
        assert {k: v for k, v in plain.items() if k not in changed} == {
            k: v for k, v in linear.items() if k not in changed
        }

    def test_seeds_differ(self, finished: MemoryStore) -> None:
        (one,), (other,) = finished.cells["cot-rope-0"], finished.cells["cot-rope-1"]
        assert one["validation_loss"] != other["validation_loss"]
        assert one["train_loss"] != other["train_loss"]

    def test_train_loss_is_the_mean_since_the_last_validation(self, finished: MemoryStore) -> None:
        train = dataclasses.replace(PROGRAM.train, validate_every=3)
        store = MemoryStore()
        ablation.run(dataclasses.replace(PROGRAM, train=train), [_training()], store, lanes=1)
        (every_3,), (every_6,) = store.cells["cot-rope-0"], finished.cells["cot-rope-0"]
        assert every_3["validation_step"] == [3, 6, 9, 12]
        assert every_3["validation_loss"][1::2] == every_6["validation_loss"]
        halves = np.reshape(every_3["train_loss"], (2, 2)).mean(axis=1)
        np.testing.assert_allclose(every_6["train_loss"], halves, rtol=1e-12)

    def test_one_training_is_tested_under_several_tables(self) -> None:
        store = MemoryStore()
        methods = ("rope", "linear", "resonance_yarn", "dynamic_ntk")
        ablation.run(PROGRAM, [_training(tested_as=methods)], store, lanes=1)
        plain, linear, yarn, dynamic = store.cells["cot-rope-0"]
        assert tuple(cell["method"] for cell in store.cells["cot-rope-0"]) == methods
        assert plain["validation_loss"] == linear["validation_loss"]
        assert plain["train_loss"] == yarn["train_loss"]
        assert plain["validation_loss"] != yarn["validation_loss"]
        assert plain["ood_loss"] != yarn["ood_loss"]
        # at the context that it was made for, dynamic_ntk is plain RoPE; the test is longer
        assert plain["ood_loss"] != dynamic["ood_loss"]


def test_lanes_agree_with_trainings_one_by_one(finished: MemoryStore) -> None:
    together = MemoryStore()
    trainings = [_training(), _training("linear"), _training(seed=1)]
    ablation.run(PROGRAM, trainings, together, lanes=3)
    assert together.cells.keys() == finished.cells.keys()
    for name, cells in finished.cells.items():
        for one, lane in zip(cells, together.cells[name], strict=True):
            for key in ("validation_loss", "train_loss", "id_loss", "ood_loss"):
                np.testing.assert_allclose(lane[key], one[key], rtol=1e-5, err_msg=f"{name} {key}")
            for key in ("id_accuracy", "ood_accuracy"):
                # one token in 48 may fall the other way where two logits are almost equal
                assert abs(lane[key] - one[key]) < 0.05


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
            def save(self, name: str, state: State, progress: ablation.Progress) -> None:
                raise OSError(28, "No space left on device")

        with pytest.raises(OSError, match="No space left"):
            ablation.run(PROGRAM, [_training()], FullDisk(), lanes=1)


@pytest.mark.slow
def test_number_of_cpu_devices_does_not_change_a_bit() -> None:
    """At a width where XLA shares a matrix product between threads, if a device has several."""
    code = """
import dataclasses, json, sys
import jax
jax.config.update("jax_num_cpu_devices", int(sys.argv[1]))
import tests.posgen.test_ablation as t
model = dataclasses.replace(t.PROGRAM.model, d_model=256, head_dim=128, num_kv_heads=2, d_ff=512)
train = dataclasses.replace(t.PROGRAM.train, batch_size=20)
program = dataclasses.replace(t.PROGRAM, model=model, train=train)
t.SPECS["rope"] = t.RopeSpec(head_dim=128)
store = t.MemoryStore()
t.ablation.run(program, [t._training(seed=seed) for seed in range(2)], store, lanes=1)
print(json.dumps(store.results()))
"""
    quick = {"JAX_PLATFORMS": "cpu", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    one, two = (
        json.loads(
            subprocess.run(
                [sys.executable, "-c", code, str(devices)],
                cwd=ROOT,
                env=os.environ | quick,
                stdout=subprocess.PIPE,
                check=True,
            ).stdout
        )
        for devices in (1, 2)
    )
    assert len(one) == 2
    assert one == two
