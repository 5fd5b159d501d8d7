"""Plans for this machine's own CPU, whose compiled programs can be asked and run."""

import dataclasses
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from rrope_jax.model.presets import PRESETS
from rrope_jax.planning import plan as module
from rrope_jax.planning.compilation import Keep
from rrope_jax.planning.plan import Plan, fingerprint
from rrope_jax.planning.roofline.collectives import summarize
from rrope_jax.planning.roofline.step_time import estimate
from rrope_jax.planning.roofline.sweep import nearest, recommended, sweep
from rrope_jax.planning.saved import dump, load
from rrope_jax.planning.topology import Topology
from rrope_jax.planning.workload import TextTraining
from rrope_jax.sharding import MeshConfig
from rrope_jax.train.config import TrainConfig
from rrope_jax.train.sharded import BATCH_DTYPES, init_state, make_placement
from rrope_jax.train.step import Program

ROOT = Path(__file__).parents[2]
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


def make_plan(training: TextTraining, kept: _Kept, keep: Keep | None = None) -> Plan:
    return module.make_plan(training, CPU, kept, summarize, keep=keep)


@pytest.fixture(scope="module")
def kept() -> _Kept:
    return _Kept()


@pytest.fixture(scope="module")
def plan(kept: _Kept) -> Plan:
    return make_plan(_training(), kept)


@pytest.mark.slow
def test_memory_is_the_compilers_own(plan: Plan) -> None:
    training = _training()
    compiled = training.lower(training.make_mesh(jax.devices("cpu")[:1])).compile()
    analysis = compiled.memory_analysis()
    memory = plan.compilation.memory
    assert memory is not None
    assert memory.arguments == analysis.argument_size_in_bytes
    assert memory.temporaries == analysis.temp_size_in_bytes
    assert plan.demands.state["optimizer"] == 2 * plan.demands.state["parameters"] + 8  # 2 counters


@pytest.mark.slow
def test_one_device_sends_nothing_and_computes_all(plan: Plan) -> None:
    time = estimate(plan.workload, CPU, plan.compilation.summary)
    assert time.collective_bytes == {}
    assert time.roofline.compute == plan.demands.executed_flops / CPU.chip.peak["float32"]
    assert time.mfu == pytest.approx(
        plan.demands.model_flops / (time.step_seconds * CPU.chip.peak["float32"])
    )
    assert time.run_seconds == 10 * time.step_seconds
    assert time.collectives_source == "the compiled program"


@pytest.mark.slow
def test_a_known_program_is_not_compiled_again(
    plan: Plan, kept: _Kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TextTraining, "lower", None)
    assert make_plan(_training(), kept).as_json() == plan.as_json()


@pytest.mark.slow
def test_a_saved_step_runs_like_the_one_that_was_saved() -> None:
    training, kept = _training(), []
    for _ in range(2):  # the second time, a cache of JAX may have it
        make_plan(training, _Kept(), keep=kept.append)
    devices = jax.devices("cpu")[:1]
    mesh = training.make_mesh(devices)
    placement = make_placement(training.program, mesh)
    loaded = load(dump(kept[1]), training.lower(mesh), devices)
    rows = {name: np.ones((2, 32), dtype) for name, dtype in BATCH_DTYPES.items()}
    key = jax.random.key(1)
    losses = []
    for step in (kept[0], loaded):
        state = init_state(training.program, placement, jax.random.key(0))
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


@pytest.mark.parametrize(
    ("change", "value"),
    [
        (lambda patch: patch.setenv("XLA_FLAGS", "--xla_cpu_max_isa=AVX2"), "a flag of XLA"),
        (lambda patch: patch.setenv("LIBTPU_INIT_ARGS", "--xla_tpu_x=1"), "one of libtpu"),
        (
            lambda patch: patch.setattr(
                Topology, "chip", dataclasses.replace(CPU.chip, core_mode="megacore")
            ),
            "figures of the chip",
        ),
        (lambda patch: patch.setattr(module, "code_digest", lambda: "other"), "code of ours"),
    ],
)
def test_the_key_is_another_with(
    change: Callable[[pytest.MonkeyPatch], None], value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = fingerprint(_training(), CPU, quick=False)
    change(monkeypatch)
    assert fingerprint(_training(), CPU, quick=False) != before, value


def test_code_of_the_key_is_all_that_planning_imports() -> None:
    """A module that is left out could change a plan that is then not made again."""
    names = ("evaluation", "plan", "posgen", "quick", "roofline.sweep", "workload")
    code = (
        f"import sys\nfor name in {names}: __import__(f'rrope_jax.planning.{{name}}')\n"
        "print(*(m.__file__ for name, m in sys.modules.items() if name.startswith('rrope_jax.')))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert run.returncode == 0, run.stderr
    package = ROOT / "rrope_jax"
    imported = {Path(name).relative_to(package).as_posix() for name in run.stdout.split()}
    marks = {name for name in imported if not name.endswith("__init__.py")}
    assert len(marks) > 30
    left_out = {
        name
        for name in marks
        if not any(name == part or name.startswith(f"{part}/") for part in module.CODE)
    }
    assert left_out == set()


@pytest.mark.parametrize(
    "name", ["planning/chips.py", "planning/topology.py", "planning/workload.py", "sharding.py"]
)
def test_the_digest_is_of_contents(name: str, tmp_path: Path) -> None:
    package = tmp_path / "rrope_jax"
    for part in module.CODE:
        source = ROOT / "rrope_jax" / part
        copy = shutil.copytree if source.is_dir() else shutil.copy
        (package / part).parent.mkdir(parents=True, exist_ok=True)
        copy(source, package / part)
    before = module.code_digest(package)
    assert before == module.code_digest(ROOT / "rrope_jax")
    with (package / name).open("a") as file:
        file.write("# another\n")
    assert module.code_digest(package) != before


def test_an_estimate_needs_no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TextTraining, "lower", None)
    time = estimate(_training(), CPU)
    assert time.step_seconds > 0
    assert time.collectives_source == "the sharding rules"


@pytest.mark.slow
def test_a_sweep_recommends_the_fastest_that_fits(kept: _Kept) -> None:
    trials = sweep(_training(), CPU, kept, most=2, quick=False)
    assert {trial.plan.fits for trial in trials} == {True}
    steps = [trial.estimate.step_seconds for trial in trials]
    assert steps == sorted(steps)
    best = recommended(trials)
    assert best is not None
    assert best.change.fields == ("mesh.fsdp=1",)  # keeps everything: `remat` none


@pytest.mark.slow
def test_the_nearest_change_is_tried_by_compiling(
    kept: _Kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the pairs of all layers are too much by one byte."""
    base = make_plan(_training(length=256, num_layers=6), kept)
    tight = dataclasses.replace(CPU.chip, memory=base.peak - 1)
    monkeypatch.setattr(Topology, "chip", tight)
    assert not base.fits
    assert "GiB that a program may use" in (base.why_not or "")
    trials = nearest(base, kept, quick=False)
    assert trials[-1].plan.fits
    assert trials[-1].plan.peak < base.peak
