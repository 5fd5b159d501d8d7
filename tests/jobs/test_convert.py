"""`rrope convert` on tiny checkpoints."""

import json
from pathlib import Path

import pytest

from rrope_jax import __main__ as cli
from rrope_jax import rope
from rrope_jax.io import pretrained
from rrope_jax.io.gguf import write as gguf_export
from rrope_jax.rope import RopeSpec
from tests.io import tiny


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A Hugging Face folder."""
    return tiny.save(tiny.decoder(), tmp_path / "source", "hf")


def _convert(*words: str) -> int:
    return cli.main(["convert", *words])


@pytest.mark.parametrize(
    ("target", "expected"), [("a.gguf", "gguf"), ("a", "orbax"), ("source.ggufs", "orbax")]
)
def test_format_follows_the_name(folder: Path, target: str, expected: str) -> None:
    path = folder.parent / target
    assert _convert(f"--from={folder}", f"--to={path}") == 0
    assert pretrained.format_of(path) == expected


def test_our_own_format_becomes_a_hugging_face_folder(folder: Path) -> None:
    ours, back = folder.parent / "ours", folder.parent / "back"
    assert _convert(f"--from={folder}", f"--to={ours}") == 0
    assert _convert(f"--from={ours}", f"--to={back}") == 0
    assert pretrained.format_of(back) == "hf"
    weights = "model.safetensors"
    assert (back / weights).read_bytes() == (folder / weights).read_bytes()


def test_rope_overrides(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = folder.parent / "extended"
    words = [
        "--config.rope.scaling=yarn",
        "--config.rope.factor=4",
        "--config.rope.resonance=True",
    ]
    assert _convert(f"--from={folder}", f"--to={target}", *words) == 0
    description = pretrained.describe(target)
    expected = RopeSpec(
        head_dim=12,
        scaling="yarn",
        factor=4.0,
        original_context=tiny.CONTEXT,
        resonance=True,
    )
    assert (description.rope, description.context) == (expected, 4 * tiny.CONTEXT)
    assert capsys.readouterr().out == (
        f"wrote {target}: format orbax, 22,688 parameters, context 256, rope yarn with resonance\n"
    )
    # with weights of its own, so without any config
    exported = folder.parent / "exported"
    assert _convert(f"--from={target}", f"--to={exported}", "--dtype=bfloat16") == 0
    assert "temperature 1.1386 folded" in capsys.readouterr().out
    assert json.loads((exported / "config.json").read_text())["dtype"] == "bfloat16"
    # its weights cannot get rid of this temperature, wherever they go
    again = folder.parent / "again.gguf"
    assert _convert(f"--from={exported}", f"--to={again}") == 0
    assert _convert(f"--from={again}", f"--to={folder.parent / 'b'}", *words) == 2
    assert "hold the temperature 1.1386" in capsys.readouterr().err


def test_portable(folder: Path) -> None:
    words = ["--config.rope.scaling=linear", "--config.rope.factor=2"]
    for name, more in (("native", []), ("portable", ["--portable"])):
        target = f"--to={folder.parent / name}"
        assert _convert(f"--from={folder}", target, "--format=hf", *words, *more) == 0
    native, portable = (
        pretrained.describe(folder.parent / name).rope for name in ("native", "portable")
    )
    assert (native.scaling, portable.scaling) == ("linear", "longrope")
    assert portable.short_factor == (2.0,) * 6
    assert rope.frequencies(native).inv_freq == pytest.approx(rope.frequencies(portable).inv_freq)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--format=ggml"], "--format=ggml"),
        (["--dtype=int8"], "dtype='int8' is unknown"),
        (["--format=hf", "--shard_bytes=0"], "shard_bytes=0"),
        (["--config.rope.scaling=yarn"], "factor is not set"),
        (["--config.rope.scailng=yarn"], "did you mean 'scaling'"),
        (["--config.rope.factor=many"], "--config.rope.factor=many"),
        (["--config.model.d_ff=3"], "config has no key 'model'"),
        (["--config=a.py"], "takes no config file"),
    ],
)
def test_bad_usage(
    folder: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    target = folder.parent / "target"
    assert _convert(f"--from={folder}", f"--to={target}", *words) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert [path.name for path in folder.parent.iterdir()] == ["source"]


def test_existing_target(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = folder.parent / "a.gguf"
    assert _convert(f"--from={folder}", f"--to={target}", "--dtype=float16") == 0
    before = target.read_bytes()
    assert _convert(f"--from={folder}", f"--to={target}") == 2
    assert "--overwrite" in capsys.readouterr().err
    assert target.read_bytes() == before
    assert _convert(f"--from={folder}", f"--to={target}", "--overwrite") == 0
    assert target.stat().st_size > len(before)


def test_full_disk(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(gguf_export, "cast", fail)
    assert _convert(f"--from={folder}", f"--to={folder.parent / 'a.gguf'}") == 1
    error = capsys.readouterr().err
    assert "No space left on device" in error
    assert error.count("\n") == 1
    assert [path.name for path in folder.parent.iterdir()] == ["source"]


def test_help_names_the_overrides(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        _convert("--help")
    assert (
        "--config.KEY=VALUE\n      sets a field of the group(s) rope\n" in capsys.readouterr().out
    )
