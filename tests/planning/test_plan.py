"""Plans for this machine's own CPU, whose compiled programs can be asked and run."""

import dataclasses
from typing import Any

import jax
import numpy as np
import pytest

from rrope_jax.model.presets import PRESETS
from rrope_jax.planning.plan import Plan, fingerprint, make_plan, outline
from rrope_jax.planning.saved import dump, load
from rrope_jax.planning.sweep import nearest, recommended, sweep
from rrope_jax.planning.topology import Topology
from rrope_jax.planning.workload import TextTraining
from rrope_jax.sharding import MeshConfig
from rrope_jax.train.config import TrainConfig
from rrope_jax.train.sharded import BATCH_DTYPES, initialize, place
from rrope_jax.train.step import Program

CPU = Topology("cpu:1", "cpu", (1,))
TINY = PRESETS["tiny"]


class _Kept(dict[str, Any]):
    """A cache of plans."""

    def put(self, key: str, value: Any) -> None:
        self[key] = value


def _training(length: int = 32, **model: Any) -> TextTraining:
    train = TrainConfig(steps=10, batch_size=2, length=length)
    shape = dataclasses.replace(TINY.model, **{"num_layers": 1, **model})
    program = Program(shape, TINY.rope, train)
    return TextTraining(program, MeshConfig())


@pytest.fixture(scope="module")
def kept() -> _Kept:
    return _Kept()


@pytest.fixture(scope="module")
def plan(kept: _Kept) -> Plan:
    return make_plan(_training(), CPU, kept)


@pytest.mark.slow
def test_memory_is_the_compilers_own(plan: Plan) -> None:
    training = _training()
    compiled = training.lower(training.make_mesh(jax.devices("cpu")[:1])).compile()
    analysis = compiled.memory_analysis()
    assert plan.memory is not None
    assert plan.memory.arguments == analysis.argument_size_in_bytes
    assert plan.memory.temporaries == analysis.temp_size_in_bytes
    assert plan.demands.state["optimizer"] == 2 * plan.demands.state["parameters"] + 8  # 2 counters


@pytest.mark.slow
def test_one_device_sends_nothing_and_computes_all(plan: Plan) -> None:
    assert plan.collective_bytes == {}
    assert plan.roofline.compute == plan.demands.executed_flops / CPU.chip.peak["float32"]
    assert plan.mfu == pytest.approx(
        plan.demands.model_flops / (plan.roofline.step * CPU.chip.peak["float32"])
    )
    assert plan.run_seconds == 10 * plan.roofline.step


@pytest.mark.slow
def test_a_known_program_is_not_compiled_again(
    plan: Plan, kept: _Kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TextTraining, "lower", None)
    assert make_plan(_training(), CPU, kept).as_json() == plan.as_json()


@pytest.mark.slow
def test_a_saved_step_runs_like_the_one_that_was_saved() -> None:
    training, kept = _training(), []
    make_plan(training, CPU, _Kept(), keep=lambda compiled: kept.append(compiled))
    devices = jax.devices("cpu")[:1]
    mesh = training.make_mesh(devices)
    placement = place(training.program, mesh)
    loaded = load(dump(kept[0]), training.lower(mesh), devices)
    rows = {name: np.ones((2, 32), dtype) for name, dtype in BATCH_DTYPES.items()}
    key = jax.random.key(1)
    losses = []
    for step in (kept[0], loaded):
        state = initialize(training.program, placement, jax.random.key(0))
        losses.append(float(step(state, placement.put(rows), key)[1].loss))
    assert losses[0] == losses[1] > 0


def test_the_key_is_of_everything_that_a_program_depends_on() -> None:
    other = Topology("cpu:2", "cpu", (2,))
    keys = {
        fingerprint(_training(), CPU, quick=False),
        fingerprint(_training(), CPU, quick=True),
        fingerprint(_training(), other, quick=False),
        fingerprint(_training(remat="full"), CPU, quick=False),
        fingerprint(
            dataclasses.replace(_training(), mesh=MeshConfig(seq=1, fsdp=1)), CPU, quick=False
        ),
    }
    assert len(keys) == 5
    assert fingerprint(_training(), CPU, quick=False) in keys


def test_an_outline_needs_no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TextTraining, "lower", None)
    drawn = outline(_training(), CPU)
    assert drawn.memory is None
    assert drawn.why_not is None
    assert drawn.collectives_from == "rules"


@pytest.mark.slow
def test_a_sweep_recommends_the_fastest_that_fits(kept: _Kept) -> None:
    compared = sweep(_training(), CPU, kept, most=2, quick=False)
    assert {tried.plan.fits for tried in compared} == {True}
    steps = [tried.plan.roofline.step for tried in compared]
    assert steps == sorted(steps)
    best = recommended(compared)
    assert best is not None
    assert best.change.overrides == ("--config.mesh.fsdp=1",)  # keeps everything: `remat` none


@pytest.mark.slow
def test_the_nearest_change_is_tried_by_compiling(
    kept: _Kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the pairs of all layers are too much by one byte."""
    base = make_plan(_training(length=256, num_layers=6), CPU, kept)
    tight = dataclasses.replace(CPU.chip, memory=base.peak - 1)
    monkeypatch.setattr(Topology, "chip", tight)
    assert not base.fits
    assert "GiB that a program may use" in (base.why_not or "")
    tried = nearest(base, kept, quick=False)
    assert tried[-1].plan.fits
    assert tried[-1].plan.peak < base.peak
