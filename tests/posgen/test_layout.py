"""Which device trains what."""

from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rrope_jax.posgen.grid import Evaluation, Training
from rrope_jax.posgen.layout import AblationMeshConfig, Round, make_mesh, rounds
from rrope_jax.rope import RopeSpec

SPEC = RopeSpec(head_dim=8)


def _trainings(*, seeds: int, tasks: tuple[str, ...] = ("recursive", "cot")) -> list[Training]:
    evaluation = Evaluation("scaled_training", "rope", SPEC)
    return [
        Training(task, "rope", seed, SPEC, (evaluation,)) for seed in range(seeds) for task in tasks
    ]


def _names(made: tuple[Round, ...]) -> list[list[str | None]]:
    return [[training and training.name for training in each.lanes] for each in made]


class TestRounds:
    def test_one_device_and_lane_take_trainings_in_the_order_given(self) -> None:
        trainings = _trainings(seeds=2)
        made = rounds(trainings, devices=1, lanes=1)
        assert made == tuple(Round((training,)) for training in trainings)

    def test_one_device_takes_a_task_at_a_time(self) -> None:
        assert _names(rounds(_trainings(seeds=3), devices=1, lanes=0)) == [
            ["recursive-rope-0", "recursive-rope-1", "recursive-rope-2"],
            ["cot-rope-0", "cot-rope-1", "cot-rope-2"],
        ]

    def test_devices_share_a_task_and_some_have_nothing_left(self) -> None:
        assert _names(rounds(_trainings(seeds=3), devices=2, lanes=0)) == [
            ["recursive-rope-0", "recursive-rope-1", "recursive-rope-2", None],
            ["cot-rope-0", "cot-rope-1", "cot-rope-2", None],
        ]

    def test_whole_seeds_come_first(self) -> None:
        assert _names(rounds(_trainings(seeds=3), devices=2, lanes=1)) == [
            ["recursive-rope-0", "recursive-rope-1"],
            ["cot-rope-0", "cot-rope-1"],
            ["recursive-rope-2", None],
            ["cot-rope-2", None],
        ]

    def test_the_paper_s_60_on_8_devices(self) -> None:
        trainings = _trainings(seeds=20, tasks=("recursive", "cot", "semi_recursive"))
        made = rounds(trainings, devices=8, lanes=0)
        assert [len(each.lanes) for each in made] == [24, 24, 24]
        assert [each.lanes.count(None) for each in made] == [4, 4, 4]
        one_each = rounds(trainings, devices=8, lanes=1)
        assert [each.lanes.count(None) for each in one_each] == [0, 0, 0, 0, 0, 0, 4, 4, 4]

    @given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 4))
    def test_every_training_once(self, seeds: int, devices: int, lanes: int) -> None:
        trainings = _trainings(seeds=seeds)
        made = rounds(trainings, devices=devices, lanes=lanes)
        assert sorted(t.name for each in made for t in each.trainings) == sorted(
            training.name for training in trainings
        )
        for each in made:
            assert len({training.task for training in each.trainings}) == 1
            assert len(each.lanes) % devices == 0
            assert len(each.lanes) // devices <= (lanes or seeds)


class TestMesh:
    def test_all_devices_unless_told(self) -> None:
        assert make_mesh(AblationMeshConfig()).shape == {"ablation": len(jax.devices())}
        assert make_mesh(AblationMeshConfig(ablation=1)).shape == {"ablation": 1}

    def test_too_many(self) -> None:
        devices = len(jax.devices())
        with pytest.raises(ValueError, match=f"ablation={devices + 1}, but there .* {devices} dev"):
            make_mesh(AblationMeshConfig(ablation=devices + 1))

    @pytest.mark.parametrize("size", [0, -2])
    def test_bad_size(self, size: int) -> None:
        with pytest.raises(ValueError, match=f"ablation={size} must be at least 1, or -1"):
            AblationMeshConfig(ablation=size)

    def test_devices_of_a_process_need_not_be_neighbours(self) -> None:
        """As on a TPU slice, where they go through the hosts' chips row by row."""
        processes = np.array([SimpleNamespace(process_index=index) for index in (0, 0, 1, 1, 0, 0)])
        mesh: Any = SimpleNamespace(devices=processes, size=6)
        (only,) = rounds(_trainings(seeds=11, tasks=("cot",)), devices=6, lanes=2)
        seeds = [training and training.seed for training in only.here(mesh).lanes]
        assert seeds == [0, 1, 2, 3, 8, 9, 10, None]
