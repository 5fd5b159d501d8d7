"""`rrope train` as a user runs it: killed, stopped, out of disk, diverging, and left alone."""

import dataclasses
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import tokenizers
from flax import nnx
from tensorboardX.proto.event_pb2 import Event

from rrope_jax.__main__ import main
from rrope_jax.data.pipeline import DataConfig
from rrope_jax.data.tokenizers import load_tokenizer
from rrope_jax.io import pretrained
from rrope_jax.jobs.train_setting import TrainSetting
from rrope_jax.model.presets import PRESETS
from rrope_jax.train.config import TrainConfig
from tests.jobs.training_run import count_lines, read_records, saved_steps, write_text

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "tests" / "jobs" / "train_tiny.py"
STEPS = 400

Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("text")
    write_text(folder)
    return folder


@pytest.fixture(scope="module")
def words(text: Path) -> list[str]:
    return ["train", f"--config={CONFIG}", f"--config.data.source={text}"]


@pytest.fixture(scope="module")
def unbroken(words: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run from beginning to end."""
    workdir = tmp_path_factory.mktemp("runs") / "unbroken"
    assert main([*words, f"--workdir={workdir}"]) == 0
    return workdir


def _numbers(workdir: Path) -> list[dict[str, Any]]:
    """What must not depend on how often a run was broken."""
    timed = ("tokens_per_second", "waiting", "time")
    return [{k: v for k, v in r.items() if k not in timed} for r in read_records(workdir)]


@pytest.fixture(scope="module")
def start(words: list[str]) -> Start:
    """Starts the command in a process of its own."""

    def run(workdir: Path, *overrides: str, largest_file: int = -1) -> "subprocess.Popen[str]":
        code = (
            "import resource, runpy\n"
            f"resource.setrlimit(resource.RLIMIT_FSIZE, ({largest_file}, {largest_file}))\n"
            "runpy.run_module('rrope_jax', run_name='__main__')"
        )
        return subprocess.Popen(
            [sys.executable, "-c", code, *words, f"--workdir={workdir}", *overrides],
            cwd=ROOT,
            stderr=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    return run


def _signal_after(process: "subprocess.Popen[str]", workdir: Path, lines: int, number: int) -> None:
    """Signals a run once so many steps are logged."""
    while process.poll() is None and count_lines(workdir) < lines:
        time.sleep(0.001)
    assert process.poll() is None, process.communicate()
    process.send_signal(number)


class TestUnbroken:
    def test_every_step_is_logged_once(self, unbroken: Path) -> None:
        records = read_records(unbroken)
        assert [r["step"] for r in records] == list(range(1, STEPS + 1))
        for name in ("loss", "learning_rate", "gradient_norm", "targets", "tokens_per_second"):
            assert all(np.isfinite(r[name]) and r[name] > 0 for r in records)
        assert [r["step"] for r in records if "eval_loss" in r] == [100, 200, 300, 400]

    def test_it_learns(self, unbroken: Path) -> None:
        records = read_records(unbroken)
        assert records[0]["loss"] == pytest.approx(np.log(258), rel=0.05)
        assert records[-1]["eval_loss"] < 1.0

    def test_newest_checkpoints_stay(self, unbroken: Path) -> None:
        assert saved_steps(unbroken) == [380, 400]

    def test_tensorboard_shows_the_same(self, unbroken: Path) -> None:
        (file,) = (unbroken / "tensorboard").iterdir()
        losses = {}
        data = file.read_bytes()
        while data:  # a record: length (8 bytes), its checksum (4), content, checksum (4)
            size = int.from_bytes(data[:8], "little")
            event = Event.FromString(data[12 : 12 + size])
            for value in event.summary.value:
                if value.tag == "loss":
                    losses[event.step] = value.simple_value
            data = data[16 + size :]
        assert losses == {r["step"]: np.float32(r["loss"]) for r in read_records(unbroken)}

    def test_run_again_does_nothing(
        self, unbroken: Path, words: list[str], capsys: pytest.CaptureFixture[str]
    ) -> None:
        before = (unbroken / "metrics.jsonl").stat().st_mtime_ns
        assert main([*words, f"--workdir={unbroken}"]) == 0
        assert "all 400 steps are done" in capsys.readouterr().err
        assert (unbroken / "metrics.jsonl").stat().st_mtime_ns == before

    def test_workdir_is_a_checkpoint(self, unbroken: Path) -> None:
        decoder, description = pretrained.load(unbroken)
        assert description.rope.resonance
        assert (description.model.vocab_size, description.context) == (258, 64)
        tokens = np.frombuffer(b"red green blue re", np.uint8).astype(np.int32)
        logits = jax.jit(lambda d, t: d(t))(decoder, tokens[None])
        assert chr(int(logits[0, -1].argmax())) == "d"


@pytest.mark.heavy
class TestBroken:
    @pytest.mark.slow
    def test_killed_at_any_moment_it_goes_on_as_if_nothing_had_been(
        self, start: Start, words: list[str], unbroken: Path, tmp_path: Path
    ) -> None:
        workdir = tmp_path / "killed"
        moments = random.Random(time.time_ns())
        done = []
        for _ in range(3):
            process = start(workdir)
            reached = count_lines(workdir)
            _signal_after(process, workdir, reached + moments.randint(1, 100), signal.SIGKILL)
            process.communicate()
            done.append(count_lines(workdir))
        assert main([*words, f"--workdir={workdir}"]) == 0
        assert _numbers(workdir) == _numbers(unbroken), f"killed after {done} lines"

    @pytest.mark.slow
    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
    def test_stopped_it_saves_and_goes_on(
        self,
        number: signal.Signals,
        start: Start,
        words: list[str],
        unbroken: Path,
        tmp_path: Path,
    ) -> None:
        workdir = tmp_path / "stopped"
        process = start(workdir)
        _signal_after(process, workdir, 33, number)
        _, error = process.communicate()
        assert process.returncode == 128 + number
        assert f"rrope train: stopped by {number.name}; the same command goes on" in error
        assert "Traceback" not in error
        assert saved_steps(workdir)[-1] == count_lines(workdir) >= 33
        assert main([*words, f"--workdir={workdir}"]) == 0
        assert _numbers(workdir) == _numbers(unbroken)

    def test_damaged_checkpoint_is_passed_over(
        self,
        words: list[str],
        unbroken: Path,
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        workdir = shutil.copytree(unbroken, tmp_path / "damaged")
        files = [p for p in (workdir / "checkpoints" / "400").rglob("*") if p.is_file()]
        largest = max(files, key=lambda path: path.stat().st_size)
        largest.write_bytes(largest.read_bytes()[: largest.stat().st_size // 2])
        assert main([*words, f"--workdir={workdir}"]) == 0
        said = capsys.readouterr().err
        assert f"checkpoint {workdir / 'checkpoints' / '400'} cannot be read" in said
        assert "going on from step 380" in said
        assert _numbers(workdir) == _numbers(unbroken)

    def test_no_readable_checkpoint_is_no_reason_to_begin_anew(
        self,
        words: list[str],
        unbroken: Path,
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        workdir = shutil.copytree(unbroken, tmp_path / "lost")
        for step in ("380", "400"):
            shutil.rmtree(workdir / "checkpoints" / step / "tree")
        assert main([*words, f"--workdir={workdir}"]) == 2
        assert "none that can be read" in capsys.readouterr().err
        assert _numbers(workdir) == _numbers(unbroken)

    @pytest.mark.slow
    def test_full_disk_ends_it_in_one_line(
        self, start: Start, words: list[str], unbroken: Path, tmp_path: Path
    ) -> None:
        """A limit on the size of files stands for the disk: it fails in the same calls."""
        workdir = tmp_path / "full"
        process = start(workdir)
        _signal_after(process, workdir, 33, signal.SIGTERM)
        process.communicate()
        before = saved_steps(workdir)
        # Orbax writes 90 kB in one file or in up to four; the metrics up to the next save are 14 kB
        process = start(workdir, largest_file=16_000)
        _, error = process.communicate()
        assert process.returncode == 1
        (reason,) = [line for line in error.splitlines() if line.startswith("rrope train: ")]
        assert "cannot be written: File too large" in reason
        assert reason.endswith(f"; step {before[-1]} is kept")
        assert saved_steps(workdir) == before
        assert main([*words, f"--workdir={workdir}"]) == 0
        assert _numbers(workdir) == _numbers(unbroken)

    def test_loss_that_is_not_finite_stops_it_with_the_last_good_step(
        self, words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        workdir = tmp_path / "diverged"
        again = [*words, f"--workdir={workdir}", "--config.train.learning_rate=1e38"]
        assert main(again) == 1
        error = capsys.readouterr().err.splitlines()[-1]
        good = read_records(workdir)[-1]["step"]
        assert error.startswith(f"rrope train: step {good + 1} has loss ")
        assert error.endswith(f"; step {good} is kept")
        assert saved_steps(workdir) == [good]
        decoder, _ = pretrained.load(workdir)
        leaves = jax.tree.leaves(nnx.state(decoder))
        assert all(bool(np.isfinite(leaf).all()) for leaf in leaves)


class TestContinued:
    @pytest.fixture
    def config(self, unbroken: Path, tmp_path: Path) -> Path:
        """Two steps from there with another embedding."""
        config = tmp_path / "extend.py"
        config.write_text(
            "import runpy\n"
            "from ml_collections import ConfigDict\n"
            "def get_config():\n"
            f"    config = runpy.run_path({str(CONFIG)!r})['get_config']()\n"
            "    config.model = ConfigDict({'remat': 'full'})\n"
            "    config.rope = ConfigDict({'scaling': 'yarn', 'factor': 4.0})\n"
            f"    config.checkpoint.init_from = {str(unbroken)!r}\n"
            "    config.train.steps = 2\n"
            "    config.train.learning_rate = 1e-9\n"
            "    return config\n"
        )
        return config

    def test_with_another_embedding(
        self, config: Path, words: list[str], unbroken: Path, tmp_path: Path
    ) -> None:
        workdir = tmp_path / "extended"
        assert main(["train", f"--config={config}", words[2], f"--workdir={workdir}"]) == 0
        before, after = pretrained.describe(unbroken), pretrained.describe(workdir)
        assert after.context == 4 * before.context
        assert (after.rope.scaling, after.rope.resonance) == ("yarn", True)
        assert after.model.remat == "full"
        old, new = (jax.tree.leaves(nnx.state(pretrained.load(w)[0])) for w in (unbroken, workdir))
        for one, other in zip(old, new, strict=True):
            np.testing.assert_allclose(one, other, atol=1e-7)

    def test_the_tokenizer_that_was_named_goes_along(
        self, config: Path, words: list[str], tmp_path: Path
    ) -> None:
        file = tmp_path / "tokenizer.json"
        vocabulary = {chr(32 + index): index for index in range(95)}
        letters = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token=" "))
        letters.pre_tokenizer = tokenizers.pre_tokenizers.Split(tokenizers.Regex("."), "isolated")
        letters.save(str(file))
        workdir = tmp_path / "run"
        other = f"--config.data.tokenizer={file}"
        assert main(["train", f"--config={config}", words[2], other, f"--workdir={workdir}"]) == 0
        kept = pretrained.describe(workdir).tokenizer
        assert kept is not None
        assert load_tokenizer(kept).vocab_size == len(vocabulary)


def test_a_token_beyond_the_embedding_is_no_reason_to_refuse() -> None:
    """Only a text that has it is."""
    preset = PRESETS["tiny"]
    model = dataclasses.replace(preset.model, vocab_size=257)  # of 258 ids that bytes have
    description = pretrained.Description(model, preset.rope, 64)
    setting = TrainSetting(
        data=DataConfig(source="text", tokenizer="bytes"),
        train=TrainConfig(steps=1, batch_size=1, length=8),
    )
    tokenizer = setting.open_tokenizer(description)
    assert tokenizer.encode("a") == [97]
    assert tokenizer.eos_id is None


def test_text_that_has_changed(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text, workdir = tmp_path / "text", tmp_path / "run"
    text.mkdir()
    write_text(text)
    again = [*words, f"--config.data.source={text}", f"--workdir={workdir}"]
    again.append("--config.train.steps=2")
    assert main(again) == 0
    (text / "d.txt").write_text("another document")
    capsys.readouterr()
    assert main(again) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("rrope train: config.data: the saved place in the data belongs to")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["--config.train.steps=0"], "config.train: steps=0 must be at least 1"),
        (["--config.checkpoint.keep=0"], "config.checkpoint: keep=0 must be at least 1"),
        (["--config.rope.scaling=yarm"], "scaling='yarm'"),
        (["--config.data.source=absent"], "config.data: "),
        (["--config.data.tokenizer=absent.json"], "tokenizer='absent.json' does not exist"),
        (["--config.checkpoint.init_from=absent"], "config.checkpoint.init_from"),
        (["--config.train.positions.target_length=8"], "target_length=8 must be at least"),
        (["--profile=3"], "--profile=3: give the first and the last step"),
        (["--profile=3:401"], "from 1 to 400"),
        (["--config.model.attention=cudnn"], "config.model: attention='cudnn' cannot be used here"),
    ],
)
def test_bad_config_is_one_line_and_writes_nothing(
    overrides: list[str],
    message: str,
    words: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    workdir = tmp_path / "none"
    assert main([*words, f"--workdir={workdir}", *overrides]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("rrope train: ")
    assert error.count("\n") == 1
    assert not workdir.exists()


def test_group_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "config.py"
    config.write_text(
        "from ml_collections import ConfigDict\n"
        "def get_config():\n"
        "    return ConfigDict({'trian': {'steps': 3}})\n"
    )
    assert main(["train", f"--config={config}", f"--workdir={tmp_path / 'none'}"]) == 2
    assert (
        "config.trian = {...}: there is no such key; did you mean 'train'?"
        in capsys.readouterr().err
    )


@pytest.mark.slow
def test_profile_is_written(start: Start, tmp_path: Path) -> None:
    process = start(tmp_path, "--config.train.steps=4", "--profile=2:3")
    _, error = process.communicate()
    assert process.returncode == 0, error
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))
