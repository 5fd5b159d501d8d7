"""`rrope plan` as a user runs it, for CPU devices and, where libtpu is installed, for a slice."""

import importlib.util
import itertools
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "tests" / "jobs" / "plan_tiny.py"
CONTRACT = {
    "topology",
    "devices",
    "fits",
    "peak_bytes_per_device",
    "hbm_bytes_per_device",
    "flops_per_device",
    "model_flops_per_device",
    "collective_bytes_per_device",
    "estimated_step_seconds",
    "estimated_mfu",
    "compile_seconds",
}

needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="needs libtpu, which compiles for TPUs"
)

needs_cuda_plugin = pytest.mark.skipif(
    importlib.util.find_spec("jax_plugins") is None
    or importlib.util.find_spec("jax_plugins.xla_cuda12") is None,
    reason="needs jax-cuda12-plugin and jax-cuda12-pjrt, which compile for GPUs",
)


def _plan(workdir: Path, *words: str, config: Path = CONFIG) -> "subprocess.CompletedProcess[str]":
    """Runs the command in a process of its own: the number of CPU devices is set only once."""
    command = [sys.executable, "-m", "rrope_jax", "plan", f"--config={config}"]
    return subprocess.run(
        [*command, f"--workdir={workdir}", *words],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "JAX_OPTIMIZATION_LEVEL": "O0"},
        check=False,
    )


def _results(workdir: Path) -> dict[str, Any]:
    results: dict[str, Any] = json.loads((workdir / "results.json").read_text())
    return results


@pytest.mark.slow
def test_a_plan_without_weights_or_text(tmp_path: Path) -> None:
    run = _plan(tmp_path, "--topology=cpu:8", "--config.mesh.seq=2", "--config.mesh.tensor=2")
    assert run.returncode == 0, run.stderr
    results = _results(tmp_path)
    assert results.keys() >= CONTRACT
    assert results["mesh"] == {"data": 1, "fsdp": 2, "seq": 2, "tensor": 2}
    assert results["fits"]
    assert sum(results["bytes_per_device"].values()) == results["peak_bytes_per_device"]
    # by the rules: parameters over fsdp and seq, keys and values over seq, sums over tensor
    sent = results["collective_bytes_by_kind_and_axis"]
    assert sent["all-gather"]["fsdp+seq"] > 0
    assert sent["all-gather"]["seq"] > 0
    assert sent["all-reduce"]["tensor"] > 0
    for name in ("report.md", "plan.png"):
        assert (tmp_path / name).exists()
    assert "compiling 8 rows of 32 tokens" in run.stderr

    again = _plan(tmp_path, "--topology=cpu:8", "--config.mesh.seq=2", "--config.mesh.tensor=2")
    assert again.returncode == 0
    assert "compiling" not in again.stderr  # it is known
    assert _results(tmp_path) == results


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--topology=v9:4x4"], "'v9:4x4' is no topology"),
        (["--topology=cpu:2x2"], "sizes of cpu are 1"),
        (["--topology=cpu:8", "--config.mesh.fsdp=3"], "config.mesh: .*mesh of 8 devices"),
        (["--topology=cpu:3"], "config.train.batch_size=8"),
        (["--topology=cpu:8", "--config.mesh.num_slices=2"], "only TPUs come in slices"),
        (["--topology=cpu:8", "--config.model.preset=llama9"], "config.model.preset = 'llama9'"),
    ],
)
@pytest.mark.slow
def test_a_usage_error_is_one_line_before_any_compiling(
    words: list[str], reason: str, tmp_path: Path
) -> None:
    workdir = tmp_path / "plan"
    run = _plan(workdir, *words)
    assert run.returncode == 2
    (line,) = run.stderr.splitlines()
    assert re.search(reason, line), line
    assert not workdir.exists()


@pytest.mark.slow
def test_what_does_not_fit_comes_with_the_nearest_change_that_does(tmp_path: Path) -> None:
    """Rows of 4,096 tokens whose pairs are all kept are too much for the core's 2 GiB."""
    words = [
        "--config.train.length=4096",
        "--config.model.attention=xla",
        "--config.model.remat=full",
    ]
    run = _plan(tmp_path, "--topology=cpu:1", "--config.train.batch_size=2", *words)
    assert run.returncode == 0, run.stderr
    results = _results(tmp_path)
    assert not results["fits"]
    assert "of 2.00 GiB that a program may use" in results["why_not"]
    *worse, change = results["nearest"]
    assert change["fits"]
    assert not any(tried["fits"] for tried in worse)
    assert change["overrides"]
    assert "Changes tried" in (tmp_path / "report.md").read_text()


@pytest.mark.long
def test_a_sweep_leaves_out_meshes_that_rule_out_the_attention(tmp_path: Path) -> None:
    run = _plan(tmp_path, "--topology=cpu:2", "--config.model.dropout=0.1", "--sweep")
    assert run.returncode == 0, run.stderr
    meshes = [tried["mesh"] for tried in _results(tmp_path)["sweep"]]
    assert {mesh["seq"] for mesh in meshes} == {1}


@pytest.mark.slow
def test_a_mesh_that_rules_out_the_attention_is_refused(tmp_path: Path) -> None:
    """Dropout on attention weights cannot be split over seq."""
    refused = _plan(
        tmp_path / "a", "--topology=cpu:2", "--config.model.dropout=0.1", "--config.mesh.seq=2"
    )
    assert refused.returncode == 2
    assert "config.model: dropout on attention weights cannot be split" in refused.stderr
    assert not (tmp_path / "a").exists()


@needs_libtpu
@pytest.mark.slow
@pytest.mark.parametrize("how", ["--quick", "--noquick"])
def test_a_plan_for_a_slice(how: str, tmp_path: Path) -> None:
    run = _plan(tmp_path, "--topology=v5p:2x2x1", "--config.mesh.tensor=2", how)
    assert run.returncode == 0, run.stderr
    results = _results(tmp_path)
    assert results["fits"]
    assert results["collectives_from"] == "the compiled program"
    assert results["collective_bytes_by_kind_and_axis"]["all-reduce"]["tensor"] > 0


@needs_cuda_plugin
@pytest.mark.slow
def test_a_plan_for_gpus(tmp_path: Path) -> None:
    words = ["--topology=h100:1x1x2", "--config.mesh.seq=2"]
    refused = _plan(tmp_path / "a", *words, "--config.model.attention=cudnn")
    assert refused.returncode == 2
    run = _plan(tmp_path / "b", *words, "--config.model.attention=chunked")
    assert run.returncode == 0, run.stderr
    results = _results(tmp_path / "b")
    assert results["fits"]
    assert results["peak_bytes_per_device"] > results["bytes_per_device"]["optimizer"]
    assert results["collective_bytes_by_kind_and_axis"]["all-gather"]["seq"] > 0


@pytest.mark.heavy
def test_algorithmic_sweeps_are_planned_task_by_task(tmp_path: Path) -> None:
    config = ROOT / "tests" / "jobs" / "algorithmic_tiny.py"
    run = _plan(tmp_path, "--topology=cpu:1", "--quick", config=config)
    assert run.returncode == 0, run.stderr
    results = _results(tmp_path)
    assert results["fits"]
    phases = {
        (program["details"]["task"], program["details"]["phase"]): program
        for program in results["phases"]
    }
    tasks = ("reverse_string", "modular_arithmetic")
    assert list(phases) == list(itertools.product(tasks, ("train", "validate", "test")))
    # of 6 and 12 tokens, with a separator and an answer as long
    by_length = {6: ("validate", 4 * 2), 12: ("test", 8 * 4)}
    for question, (phase, rows) in by_length.items():
        tokens = rows * 2 * (2 * question + 1)  # under two tables
        assert (
            round(
                phases["reverse_string", phase]["estimated_tokens_per_second"]
                * phases["reverse_string", phase]["estimated_step_seconds"]
            )
            == tokens
        )
    assert results["estimated_run_seconds"] == pytest.approx(
        sum(program["estimated_run_seconds"] for program in phases.values())
    )
    assert "| modular_arithmetic test |" in (tmp_path / "report.md").read_text()


@pytest.mark.slow
def test_posgen_is_planned_by_its_programs(tmp_path: Path) -> None:
    config = ROOT / "tests" / "jobs" / "posgen_tiny.py"
    run = _plan(tmp_path, "--topology=cpu:1", config=config)
    assert run.returncode == 0, run.stderr
    results = _results(tmp_path)
    assert results["fits"]
    programs = results["phases"]
    assert {program["details"]["phase"] for program in programs} == {"train", "validate", "test"}
    assert results["peak_bytes_per_device"] == max(p["peak_bytes_per_device"] for p in programs)
    assert results["estimated_run_seconds"] == pytest.approx(
        sum(program["estimated_run_seconds"] for program in programs)
    )
    assert "## Programs" in (tmp_path / "report.md").read_text()

    swept = _plan(tmp_path / "swept", "--topology=cpu:1", "--sweep", config=config)
    assert swept.returncode == 2
    assert "one mesh only" in swept.stderr
