"""URLs of what is not read there are refused by every command, in one line and before anything."""

from pathlib import Path

import pytest

from rrope_jax.__main__ import main
from rrope_jax.io.paths import check_local

ROOT = Path(__file__).parents[2]
TRAIN = ["train", f"--config={Path(__file__).with_name('train_tiny.py')}"]
POSGEN = ["posgen", f"--config={Path(__file__).with_name('posgen_tiny.py')}"]
EVALUATE = ["evaluate", f"--config={ROOT / 'configs' / 'evaluate_smollm2.py'}"]
PLAN = ["plan", f"--config={ROOT / 'configs' / 'posgen_paper.py'}", "--topology=v5e:1x1"]
ANALYZE = ["analyze", f"--config={ROOT / 'configs' / 'tiny_from_scratch.py'}"]


@pytest.mark.parametrize(
    ("words", "name"),
    [
        ([*TRAIN, "--workdir=az://bucket/run"], "--workdir"),
        ([*TRAIN, "--workdir=http:/bucket/run"], "--workdir"),
        ([*TRAIN, "--workdir=run", "--config.data.source=az://bucket/text"], "config.data.source"),
        (
            [*TRAIN, "--workdir=run", "--config.checkpoint.init_from=http://host/model"],
            "config.checkpoint.init_from",
        ),
        (
            [*TRAIN, "--workdir=run", "--config.data.tokenizer=hf://bucket/tokenizer.json"],
            "config.data.tokenizer",
        ),
        ([*POSGEN, "--workdir=HF://bucket/run"], "--workdir"),
        ([*EVALUATE, "--checkpoint=a", "--workdir=abfss://b@c/run"], "--workdir"),
        ([*EVALUATE, "--checkpoint=az://bucket/model", "--workdir=run"], "--checkpoint"),
        (["evaluate", "--compare", "a", "ftp://host/run", "--workdir=run"], "--compare"),
        (["convert", "--from=https://host/model.gguf", "--to=model"], "--from"),
        (["convert", "--from=model", "--to=hdfs://host/model.gguf"], "--to"),
        (["generate", "--checkpoint=hf://bucket/model", "--prompt=a"], "--checkpoint"),
        (["generate", "--checkpoint=a", "--tokenizer=wss://b/t.json", "--prompt=a"], "--tokenizer"),
        ([*PLAN, "--workdir=gcs://bucket/plan"], "--workdir"),
        ([*ANALYZE, "--workdir=file:///run"], "--workdir"),
    ],
)
def test_refused(
    words: list[str],
    name: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(words) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"rrope {words[0]}: {name}: ")
    assert "is a URL" in error
    assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_text_may_hold_a_url(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "--checkpoint=absent", "--prompt=https://example.com is"]) == 2
    assert "absent does not exist" in capsys.readouterr().err


@pytest.mark.parametrize(
    "path", ["run", "/a/run", "./gs:/run", "a:b", "12:30/run", "tfds:lm1b", ""]
)
def test_paths_of_this_machine(path: str) -> None:
    check_local(path)
