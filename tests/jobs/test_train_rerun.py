"""The same command again: what may have changed meanwhile, and what is refused by name."""

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import tokenizers

from rrope_jax.__main__ import main
from rrope_jax.io import conversion
from rrope_jax.train.heldout import Heldout
from tests.jobs.training_run import read_records, saved_steps, write_text

CONFIG = Path(__file__).with_name("train_tiny.py")
# the tiny config with all that these tests change, and so that it can be exported
CHANGED = f"""
import runpy

from ml_collections import ConfigDict


def get_config(base=""):
    config = runpy.run_path({str(CONFIG)!r})["get_config"]()
    config.model.update(dropout=0.0, remat="none")
    config.rope.resonance = False
    config.data.seed = 0
    config.train.update(steps=4, accumulation=1, loss_chunk=1024)
    config.eval.update(every_steps=2, batch_size=1)
    config.checkpoint.every_steps = 2
    if base:
        config.checkpoint.init_from = base
        config.model, config.rope = ConfigDict(), ConfigDict()
    return config
"""


def _words(folder: Path, *overrides: str, base: str = "") -> list[str]:
    config = folder / "config.py"
    config.write_text(CHANGED)
    return [
        "train",
        f"--config={config}:{base}",
        f"--config.data.source={folder / 'text'}",
        f"--workdir={folder / 'run'}",
        *overrides,
    ]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a text and a run over it, to its end."""
    folder = tmp_path_factory.mktemp("whole")
    (folder / "text").mkdir()
    write_text(folder / "text")
    assert main(_words(folder)) == 0
    return folder


@pytest.fixture
def stopped(whole: Path, tmp_path: Path) -> Path:
    """The same after step 2."""
    folder = tmp_path / "stopped"
    shutil.copytree(whole, folder)
    shutil.rmtree(folder / "run" / "checkpoints" / "4")
    return folder


def _losses(folder: Path) -> list[tuple[int, float, float]]:
    """Step, loss and loss on held-out text, 0 where that was not measured."""
    return [(r["step"], r["loss"], r.get("eval_loss", 0.0)) for r in read_records(folder / "run")]


def _last_line(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().err.splitlines()[-1]


def _refused(
    stopped: Path, capsys: pytest.CaptureFixture[str], message: str, *overrides: str
) -> None:
    before = {p: p.read_bytes() for p in (stopped / "run").rglob("*") if p.is_file()}
    capsys.readouterr()
    assert main(_words(stopped, *overrides)) == 2
    line = _last_line(capsys)
    assert line.startswith("rrope train: ")
    assert message in line
    assert {p: p.read_bytes() for p in (stopped / "run").rglob("*") if p.is_file()} == before


class TestWhatMayChange:
    def test_nothing(self, stopped: Path, whole: Path) -> None:
        assert main(_words(stopped)) == 0
        assert _losses(stopped) == _losses(whole)

    def test_what_an_out_of_memory_asks_for(self, stopped: Path, whole: Path) -> None:
        changes = (
            "--config.model.remat=full",
            "--config.model.attention=xla",
            "--config.train.loss_chunk=5",
            "--config.train.accumulation=2",
            "--config.eval.batch_size=2",
        )
        assert main(_words(stopped, *changes)) == 0
        found, expected = _losses(stopped), _losses(whole)
        assert [step for step, *_ in found] == [step for step, *_ in expected]
        for one, other in zip(found, expected, strict=True):
            # a step or two after the same sums in another order
            assert one[1:] == pytest.approx(other[1:], rel=1e-4)

    def test_where_the_text_is(self, stopped: Path, whole: Path) -> None:
        moved = (stopped / "text").rename(stopped / "elsewhere")
        assert main(_words(stopped, f"--config.data.source={moved}")) == 0
        assert _losses(stopped) == _losses(whole)

    def test_workdir_of_an_earlier_release_names_all_that(self, stopped: Path, whole: Path) -> None:
        file = stopped / "run" / "config.json"
        identity: dict[str, Any] = json.loads(file.read_text())
        identity["data"] |= {"source": "/elsewhere", "data_dir": None}
        identity["model"] |= {"remat": "dots", "attention": "chunked"}
        identity["train"] |= {"accumulation": 1, "loss_chunk": 7}
        file.write_text(json.dumps(identity))
        assert main(_words(stopped)) == 0
        assert _losses(stopped) == _losses(whole)


class TestWhatMayNot:
    @pytest.mark.parametrize(
        "change",
        ["--config.train.learning_rate=0.5", "--config.data.seed=3", "--config.eval.max_rows=2"],
    )
    def test_config(self, change: str, stopped: Path, capsys: pytest.CaptureFixture[str]) -> None:
        key = change.removeprefix("--config.").partition("=")[0]
        _refused(stopped, capsys, f"belongs to another config: {key} is ", change)

    def test_what_dropout_drops(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        (tmp_path / "text").mkdir()
        write_text(tmp_path / "text")
        dropout = ("--config.model.dropout=0.1", "--config.train.steps=1")
        assert main(_words(tmp_path, *dropout)) == 0
        more = (*dropout, "--config.train.accumulation=2")
        _refused(tmp_path, capsys, "train.accumulation is 1 there and 2 here", *more)

    def test_heldout_text(self, stopped: Path, capsys: pytest.CaptureFixture[str]) -> None:
        (stopped / "text" / "c.txt").write_text("other held-out text " * 20)
        _refused(stopped, capsys, "the held-out text is another one")

    def test_tokenizer(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        """Also where this text has the same ids as before."""
        (tmp_path / "text").mkdir()
        write_text(tmp_path / "text")
        file = tmp_path / "tokenizer.json"
        words = (f"--config.data.tokenizer={file}", "--config.train.steps=1")
        for unused in ("xy", "yx"):
            vocabulary = {letter: place for place, letter in enumerate(f" redgblun{unused}")}
            made = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token=" "))
            made.pre_tokenizer = tokenizers.pre_tokenizers.Split(tokenizers.Regex("."), "isolated")
            made.save(str(file))
            if not (tmp_path / "run").exists():
                assert main(_words(tmp_path, *words)) == 0
        _refused(tmp_path, capsys, "the tokenizer is another one", *words)

    def test_text_at_another_place(self, stopped: Path, capsys: pytest.CaptureFixture[str]) -> None:
        (stopped / "text" / "a.txt").write_text("other text " * 20)
        _refused(stopped, capsys, "the saved place in the data belongs to")


class TestBaseModel:
    """A run that continues another one."""

    def test_it_may_move_but_be_no_other(
        self, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        base, moved = tmp_path / "base", tmp_path / "moved"
        conversion.convert(whole / "run", base, "hf")
        shutil.copytree(whole / "text", tmp_path / "text")
        words = _words(tmp_path, base=str(base))
        assert main(words) == 0
        expected = _losses(tmp_path)
        shutil.rmtree(tmp_path / "run" / "checkpoints" / "4")
        file = base / "config.json"
        before = file.read_text()
        assert "10000.0" in before
        file.write_text(before.replace("10000.0", "500000.0"))
        capsys.readouterr()
        assert main(words) == 2
        line = _last_line(capsys)
        assert "rope.theta is 10000.0 there and 500000.0 here" in line
        assert "config.checkpoint.init_from" in line
        assert saved_steps(tmp_path / "run") == [2]
        file.write_text(before)
        base.rename(moved)
        assert main([*words, f"--config.checkpoint.init_from={moved}"]) == 0
        assert _losses(tmp_path) == expected


class TestDamage:
    def test_lines_of_the_log(
        self, stopped: Path, whole: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        file = stopped / "run" / "metrics.jsonl"
        first, second, *rest = file.read_bytes().splitlines(keepends=True)
        damage = [b"\n", bytes(300) + b"\n", b'{"step": 3, "lo' + rest[0]]
        file.write_bytes(b"".join([first, second, *damage, *rest]))
        assert main(_words(stopped)) == 0
        assert f"{file}: line 4 and 1 more is damaged and left out" in capsys.readouterr().err
        assert _losses(stopped) == _losses(whole)

    def test_flipped_bit_of_the_newest_checkpoint(
        self, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        folder = tmp_path / "flipped"
        shutil.copytree(whole, folder)
        tree = folder / "run" / "checkpoints" / "4" / "tree"
        files = [path for path in tree.rglob("*") if path.is_file()]
        largest = max(files, key=lambda path: path.stat().st_size)
        data = bytearray(largest.read_bytes())
        data[len(data) // 2] ^= 16
        largest.write_bytes(data)
        capsys.readouterr()
        assert main(_words(folder)) == 0
        said = capsys.readouterr().err
        # by whom it is noticed depends on what the bit belongs to: the order in the file varies
        assert f"checkpoint {folder / 'run' / 'checkpoints' / '4'} cannot be read (" in said
        assert "going on from step 2" in said
        assert _losses(folder) == _losses(whole)


def test_sigterm_within_the_pass_over_heldout_text(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is answered there; the step is saved, and what it owes comes with the next start."""
    shutil.copytree(whole / "text", tmp_path / "text")
    measure = Heldout.__call__

    def interrupted(self: Heldout, *arguments: Any) -> dict[str, float]:
        os.kill(os.getpid(), signal.SIGTERM)
        return measure(self, *arguments)

    with monkeypatch.context() as stopping:
        stopping.setattr(Heldout, "__call__", interrupted)
        for _ in range(2):  # the second one comes while it makes up for the first
            assert main(_words(tmp_path)) == 143
            assert saved_steps(tmp_path / "run") == [2]
            assert [step for step, *_ in _losses(tmp_path)] == [1]
    assert main(_words(tmp_path)) == 0
    assert _losses(tmp_path) == _losses(whole)


@pytest.mark.parametrize("loss", [float("nan"), float("inf")])
def test_heldout_loss_that_is_not_finite(
    loss: float,
    whole: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(
        "rrope_jax.train.heldout.Heldout.__call__", lambda self, *_, **__: {"eval_loss": loss}
    )
    workdir = tmp_path / "run"
    shutil.copytree(whole / "text", tmp_path / "text")
    assert main(_words(tmp_path, "--config.checkpoint.every_steps=100")) == 1
    line = _last_line(capsys)
    assert line.startswith(f"rrope train: the model of step 2 has eval_loss {loss}")
    assert line.endswith("; step 2 is kept")
    assert saved_steps(workdir) == [2]
    assert [record["step"] for record in read_records(workdir)] == [1, 2]


@pytest.mark.parametrize(
    ("workdir", "message"),
    [
        ("lr=[1e-3]/run", "has '[' in it"),
        ("a*b", "has '*' in it"),
        ("ftp://host/run", "is a URL"),
    ],
)
def test_workdir_that_cannot_hold_checkpoints(
    workdir: str,
    message: str,
    whole: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([*_words(whole), f"--workdir={workdir}"]) == 2
    assert message in _last_line(capsys)
    assert list(tmp_path.iterdir()) == []
