"""`rrope plan` refuses what `rrope train` and `rrope posgen` refuse, with the same words."""

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from rrope_jax.__main__ import main
from rrope_jax.model.presets import PRESETS
from rrope_jax.planning.topology import Topology
from rrope_jax.planning.workload import TextTraining
from rrope_jax.sharding import LayoutError, MeshConfig
from rrope_jax.train.config import TrainConfig
from rrope_jax.train.heldout import HeldoutConfig
from rrope_jax.train.step import Program
from tests.jobs.training_run import write_text
from tests.train import slices

ROOT = Path(__file__).parents[2]
Refuse = Callable[..., str]


@pytest.fixture
def refusal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Refuse:
    """What a command says of a config with some fields changed, before it writes anything."""
    monkeypatch.setattr(Topology, "prepare", lambda self: None)  # this process has its devices

    def refused(command: str, base: str, changes: str, *flags: str) -> str:
        path, workdir = tmp_path / "config.py", tmp_path / "work"
        path.write_text(
            f"from tests.jobs.{base} import get_config as base\n"
            "def get_config():\n"
            "    config = base()\n"
            "    with config.unlocked():\n"
            f"        {changes}\n"
            "    return config\n"
        )
        assert main([command, f"--config={path}", f"--workdir={workdir}", *flags]) == 2
        assert not workdir.exists()
        (line,) = capsys.readouterr().err.splitlines()
        return line.removeprefix(f"rrope {command}: ")

    return refused


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        (
            "config.nothing = 1",
            "config.nothing = 1: there is no such key; allowed: checkpoint, data",
        ),
        ("config.mesh.fsdp = 3", "config.mesh: data=1, fsdp=3, .* a mesh of 1 devices"),
        ("config.mesh.sep = 3", "config.mesh.sep"),
        ("config.eval.every = 3", "config.eval.every"),
        ("config.eval.batch_size = 0", "config.eval: batch_size=0 must be at least 1"),
        ("config.data.heldout = ()", "config.eval.every_steps=100, but no text is held out"),
        ("config.data.packing = 'best'", "config.data: packing='best' is unknown"),
        ("config.checkpoint.keep = 0", "config.checkpoint: keep=0"),
        ("config.model.attention = 'splash'", "config.model: attention='splash' cannot be used"),
        ("config.model.vocab_size = 99", "config.data.tokenizer has 258 tokens, but the model's"),
        ("config.data.tokenizer = 'not-here'", "config.data.tokenizer: "),
        ("config.data.tokenizer = None", "config.data.tokenizer has no value"),
        ("config.rope.scaling = 'yarn'", "config.rope: "),
    ],
)
def test_training_and_its_plan(refusal: Refuse, tmp_path: Path, changes: str, reason: str) -> None:
    text = tmp_path / "text"
    text.mkdir()
    write_text(text)
    source = f"config.data.source = {str(text)!r}; "
    trained = refusal("train", "train_tiny", source + changes)
    assert trained == refusal("plan", "train_tiny", source + changes, "--topology=cpu:1")
    assert trained.startswith(reason.partition(" ")[0])
    assert re.search(reason, trained), trained


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ("config.mesh.ablation = 99", "config.mesh: ablation=99, but there are 1 devices"),
        ("config.model.attention = 'splash'", "config.model: attention='splash' cannot be used"),
        ("config.methods = ('best',)", "config: "),
    ],
)
def test_an_ablation_and_its_plan(
    refusal: Refuse, monkeypatch: pytest.MonkeyPatch, changes: str, reason: str
) -> None:
    monkeypatch.setattr("rrope_jax.jobs.posgen.use_cpu_devices", lambda *given: None)
    run = refusal("posgen", "posgen_tiny", changes)
    assert run == refusal("plan", "posgen_tiny", changes, "--topology=cpu:1")
    assert run.startswith(reason)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        (
            "config.model.d_model = 64",
            "config.model.d_model = 64: a checkpoint that is continued has its own; only "
            "compute_dtype, remat, attention, dropout, layer_types, sliding_window can be set",
        ),
        ("config.checkpoint.init_from = None", "config.data.tokenizer has no value"),
    ],
)
def test_what_is_known_without_the_weights(refusal: Refuse, changes: str, reason: str) -> None:
    """`init_from` names a folder that is not here."""
    assert refusal("plan", "plan_tiny", changes, "--topology=cpu:1").startswith(reason)


@pytest.mark.parametrize(
    ("mesh", "evaluation", "message"),
    [
        (MeshConfig(fsdp=3), HeldoutConfig(), "config.mesh: data=1, fsdp=3, .* mesh of 64"),
        (MeshConfig(tensor=64), HeldoutConfig(), "config.mesh: the parameter .* tensor=64 of the"),
        (MeshConfig(seq=64), HeldoutConfig(), "config.train.length=96 is not a multiple of 128"),
        (MeshConfig(num_slices=2), HeldoutConfig(), "config.mesh: num_slices=2, but the devices"),
        (
            MeshConfig(data=8, seq=4),
            HeldoutConfig(every_steps=1, length=36),
            "config.eval.length=36 is not a multiple of 8",
        ),
        (MeshConfig(data=64, fsdp=1), HeldoutConfig(), ""),
        (MeshConfig(data=8, seq=4), HeldoutConfig(length=36), ""),  # nothing is measured
    ],
)
def test_a_plan_for_a_slice(mesh: MeshConfig, evaluation: HeldoutConfig, message: str) -> None:
    """Every message names one key, with its value."""
    devices = slices.tpus("v5p", (4, 4, 4))
    tiny, train = PRESETS["tiny"], TrainConfig(steps=1, batch_size=64, length=96)
    training = TextTraining(Program(tiny.model, tiny.rope, train), mesh, evaluation)
    if not message:
        training.check(devices)
        return
    with pytest.raises(LayoutError) as caught:
        training.check(devices)
    said = caught.value.under("config")
    assert re.match(message, said), said
    assert said.count("config.") == 1


def test_attention_of_the_heldout_loss_is_checked_before_the_first_step() -> None:
    """A kernel that computes the rows of training need not compute those of evaluation."""
    tiny, train = PRESETS["tiny"], TrainConfig(steps=1, batch_size=4, length=256)
    model = dataclasses.replace(tiny.model, attention="splash")
    devices = slices.tpus("v5e", (2, 2))
    training = TextTraining(Program(model, tiny.rope, train), MeshConfig())
    training.check(devices)
    short = dataclasses.replace(training, evaluation=HeldoutConfig(every_steps=1, length=100))
    with pytest.raises(LayoutError) as caught:
        short.check(devices)
    assert caught.value.under("config").startswith("config.eval: attention='splash' cannot be")
