"""`rrope evaluate` as a user runs it, on a tiny model of bytes."""

import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rrope_jax.__main__ import main
from rrope_jax.evaluation import comparison, plots
from rrope_jax.io.conversion import convert
from tests.closeness import without_seconds
from tests.evaluation.tiny import byte_decoder, log_probabilities
from tests.jobs.tiny_checkpoint import CONTEXT, write_checkpoint
from tests.posgen.conftest import quick_compilation as quick_compilation

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "configs" / "evaluate_smollm2.py"
SECTIONS = ("perplexity", "longppl", "passkey", "closed_ended", "ruler")
PROSE = "It was a dark and stormy night; the rain fell in torrents. "


@pytest.fixture(autouse=True, scope="module")
def _quick(quick_compilation: None) -> None:
    pass


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("texts")
    (folder / "night.txt").write_text(PROSE * 4)
    (folder / "digits.txt").write_text("".join(f"{i} and " for i in range(60)))
    (folder / "note.txt").write_text("short")
    return folder


def words(checkpoint: Path, texts: Path, *overrides: str) -> list[str]:
    """The command without its workdir: every section, but small."""
    questions = texts.parent / f"{texts.name}_questions"
    questions.mkdir(exist_ok=True)
    (questions / "quiz.jsonl").write_text(
        json.dumps({"input": PROSE, "instructions": ["Who?", "Why?"], "outputs": ["A", "B"]}) + "\n"
    )
    return [
        "evaluate",
        f"--config={CONFIG}",
        f"--checkpoint={checkpoint}",
        f"--config.data.source={texts}",
        "--config.data.heldout=('*',)",
        "--config.data.tokenizer=bytes",
        "--config.eval.perplexity.contexts=(32,64,128)",
        "--config.eval.passkey.contexts=(512,)",
        "--config.eval.passkey.depths=(0.0,1.0)",
        "--config.eval.closed_ended.enabled=True",
        f"--config.eval.closed_ended.files=('{questions / 'quiz.jsonl'}',)",
        "--config.eval.closed_ended.context=128",
        "--config.eval.closed_ended.max_tokens=4",
        *overrides,
    ]


def only(section: str) -> list[str]:
    """Switches the other sections off."""
    return [f"--config.eval.{name}.enabled={name == section}" for name in SECTIONS]


def results_of(workdir: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((workdir / "results.json").read_text())
    return found


@pytest.fixture(scope="module")
def finished(checkpoint: Path, texts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    workdir = tmp_path_factory.mktemp("runs") / "plain"
    assert main([*words(checkpoint, texts), f"--workdir={workdir}"]) == 0
    return workdir


@pytest.fixture(scope="module")
def scaled(checkpoint: Path, texts: Path, finished: Path) -> Path:
    workdir = finished.parent / "resonance_yarn"
    rope = ["scaling=yarn", "factor=4", "resonance=True"]
    overrides = [f"--config.rope.{field}" for field in rope]
    assert main([*words(checkpoint, texts, *overrides), f"--workdir={workdir}"]) == 0
    return workdir


def test_perplexities_are_those_of_the_model(finished: Path, texts: Path) -> None:
    results = results_of(finished)
    tokens = np.frombuffer((texts / "night.txt").read_bytes(), np.uint8).astype(np.int32)
    for context in (32, 64, 128):
        losses = -log_probabilities(byte_decoder(), tokens[:context])
        expected = losses[np.arange(context - 1), tokens[1:context]].mean()
        (entry,) = (
            e
            for e in results["perplexity_by_document"]
            if (e["document"], e["context"]) == ("night.txt", context)
        )
        assert entry["perplexity"] == pytest.approx(math.exp(expected), rel=1e-4)
    assert [entry["context"] for entry in results["perplexity"]] == [32, 64, 128]
    assert {entry["documents"] for entry in results["perplexity"]} == {2}
    assert results["too_short"] == [{"document": "note.txt", "tokens": 5}]


def test_every_section_is_in_the_results(finished: Path) -> None:
    results = results_of(finished)
    assert results["complete"] is True
    assert [(c["context"], c["depth"]) for c in results["passkey"]] == [(512, 0.0), (512, 1.0)]
    assert all(cell["log_probability"] < 0 for cell in results["passkey"])
    assert [entry["task"] for entry in results["closed_ended"]] == ["quiz"]
    assert (results["method"], results["original_context"]) == ("rope", CONTEXT)


def test_report_shows_tables_and_figures(finished: Path) -> None:
    report = (finished / "report.md").read_text()
    results = results_of(finished)
    for entry in results["perplexity"]:
        assert f"| {entry['context']} | " in report
    assert "Left out, with fewer tokens than the longest context: note.txt (5)." in report
    assert "| quiz | choice |" in report
    assert plots.figures_of(results).keys() == plots.FIGURES.keys() - {"ruler.png"}
    for name in plots.figures_of(results):
        assert f"]({name})" in report
        assert (finished / name).read_bytes().startswith(b"\x89PNG")
    assert not re.search(r"\bnan\b", report)


def test_rope_overrides_reach_the_model(finished: Path, scaled: Path) -> None:
    results = results_of(scaled)
    assert (results["method"], results["context"]) == ("resonance_yarn", 4 * CONTEXT)
    assert results["rope"]["original_context"] == results["original_context"] == CONTEXT
    plain = results_of(finished)["perplexity"]
    for one, other in zip(plain, results["perplexity"], strict=True):
        assert one["perplexity"] != other["perplexity"]


def test_rerun_computes_nothing_and_writes_the_same(
    finished: Path, checkpoint: Path, texts: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    before = {p: p.read_bytes() for p in finished.rglob("*") if p.is_file()}
    assert main([*words(checkpoint, texts), f"--workdir={finished}"]) == 0
    assert {p: p.read_bytes() for p in finished.rglob("*") if p.is_file()} == before
    assert "all units are finished already" in capfd.readouterr().err


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: bytes(len(data)),
        lambda data: data[: len(data) // 2],
        lambda data: data.replace(b"1", b"2", 1),
        lambda data: b"null",
        lambda data: b"{}",
        lambda data: b"\xff" + data,
    ],
)
def test_damaged_unit_is_made_again_and_costs_no_other(
    damage: Callable[[bytes], bytes],
    finished: Path,
    checkpoint: Path,
    texts: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    workdir = tmp_path / "run"
    shutil.copytree(finished, workdir)
    units = sorted(workdir.glob("units/perplexity/*.json"))
    kept = {p: p.stat().st_mtime_ns for p in workdir.glob("units/*/*.json")}
    units[0].write_bytes(damage(units[0].read_bytes()))
    assert main([*words(checkpoint, texts), f"--workdir={workdir}"]) == 0
    assert f"{units[0]} is damaged and made again" in capfd.readouterr().err
    changed = [p for p, written in kept.items() if p.stat().st_mtime_ns != written]
    assert changed == [units[0]]
    assert without_seconds(results_of(workdir)) == without_seconds(results_of(finished))


def test_every_section_says_what_it_cost(finished: Path) -> None:
    """In seconds: of each unit, of each entry that is made of units, and of all."""
    found = results_of(finished)
    entries = {
        "perplexity": ("perplexity", "perplexity_by_document"),
        "passkey": ("passkey",),
        "closed_ended": ("closed_ended",),
    }
    assert {each["section"]: each["units"] for each in found["cost"]} == {
        "perplexity": 2,
        "passkey": 2,
        "closed_ended": 1,
    }
    for cost in found["cost"]:
        units = finished.glob(f"units/{cost['section']}/*.json")
        seconds = sum(json.loads(unit.read_text())["seconds"] for unit in units)
        assert seconds > 0
        assert cost["seconds"] == pytest.approx(seconds)
        for key in entries[cost["section"]]:
            assert sum(each["seconds"] for each in found[key]) == pytest.approx(seconds)
    assert "| closed_ended | 1 |" in (finished / "report.md").read_text().partition("## Cost")[2]


def test_units_of_an_earlier_release_have_no_checksum(
    finished: Path, checkpoint: Path, texts: Path, tmp_path: Path
) -> None:
    workdir = tmp_path / "run"
    shutil.copytree(finished, workdir)
    for unit in workdir.glob("units/*/*.json"):
        kept = json.loads(unit.read_text())
        del kept["checksum"], kept["seconds"]
        unit.write_text(json.dumps(kept))
    before = {p: p.read_bytes() for p in workdir.glob("units/*/*.json")}
    assert main([*words(checkpoint, texts), f"--workdir={workdir}"]) == 0
    assert {p: p.read_bytes() for p in workdir.glob("units/*/*.json")} == before
    found = results_of(workdir)
    assert {each["seconds"] for each in found["cost"]} == {None}
    assert without_seconds(found) == without_seconds(results_of(finished))


def test_sections_can_follow_one_another(
    finished: Path, checkpoint: Path, texts: Path, tmp_path: Path
) -> None:
    """One workdir, first with one section and then with all: the same as all at once."""
    for overrides in (only("passkey"), only("perplexity")):
        command = [*words(checkpoint, texts, *overrides), f"--workdir={tmp_path / 'run'}"]
        assert main(command) == 0
    assert "passkey" not in results_of(tmp_path / "run")
    assert main([*words(checkpoint, texts), f"--workdir={tmp_path / 'run'}"]) == 0
    one, other = results_of(tmp_path / "run"), results_of(finished)
    assert without_seconds(one) == without_seconds(other)


def test_answers_are_asked_again_where_texts_end_elsewhere(
    checkpoint: Path, texts: Path, tmp_path: Path
) -> None:
    """The files that name the ends count: config.json and generation_config.json."""
    model = tmp_path / "hf"
    convert(checkpoint, model, "hf")
    workdir = tmp_path / "run"
    command = [*words(model, texts, *only("closed_ended")), f"--workdir={workdir}"]
    assert main(command) == 0
    units = set((workdir / "units").rglob("*.json"))
    assert results_of(workdir)["stop_ids"] == [257]
    every_byte = {"eos_token_id": list(range(256))}
    (model / "generation_config.json").write_text(json.dumps(every_byte))
    assert main(command) == 0
    found = results_of(workdir)
    assert found["stop_ids"] == [*range(256), 257]
    assert {answer["answer"] for answer in found["closed_ended"][0]["answers"]} == {""}
    assert set((workdir / "units").rglob("*.json")) > units


def test_another_model_is_refused(finished: Path, checkpoint: Path, texts: Path) -> None:
    command = words(checkpoint, texts, "--config.rope.theta=500.0")
    assert main([*command, f"--workdir={finished}"]) == 2


@pytest.mark.heavy
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_killed_it_goes_on(
    number: signal.Signals, finished: Path, checkpoint: Path, texts: Path, tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "rrope_jax", *words(checkpoint, texts)]
    command.append(f"--workdir={tmp_path / 'run'}")
    # as the finished run, so that what that has compiled serves here, too
    environment = os.environ | {"JAX_DISABLE_MOST_OPTIMIZATIONS": "True"}
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 120
    while not list((tmp_path / "run").glob("units/*/*.json")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(number)
    said = process.communicate()[1]
    if number == signal.SIGTERM:
        assert process.returncode == 128 + signal.SIGTERM
        assert "the same command goes on from here" in said
        assert results_of(tmp_path / "run")["complete"] is False
        assert "**Partial run: " in (tmp_path / "run" / "report.md").read_text()
    else:
        assert process.returncode == -signal.SIGKILL
    kept = {p: p.stat().st_mtime_ns for p in (tmp_path / "run").glob("units/*/*.json")}
    again = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    assert {p: p.stat().st_mtime_ns for p in kept} == kept
    assert f"{len(kept)} of 5 units are finished already" in again.stderr
    one, other = results_of(tmp_path / "run"), results_of(finished)
    for key in ("perplexity", "passkey"):
        for a, b in zip(one[key], other[key], strict=True):
            for field in a.keys() & {"loss", "log_probability"}:
                assert a[field] == pytest.approx(b[field], rel=1e-5)


def test_compare(finished: Path, scaled: Path, tmp_path: Path) -> None:
    workdir = tmp_path / "compared"
    assert main(["evaluate", "--compare", str(finished), str(scaled), f"--workdir={workdir}"]) == 0
    results = results_of(workdir)
    assert list(results["runs"]) == ["plain", "resonance_yarn"]
    base, other = results_of(finished), results_of(scaled)
    pairs = {
        context: [
            (
                next(e["loss"] for e in other["perplexity_by_document"] if key(e) == key(entry))
                - entry["loss"]
            )
            for entry in base["perplexity_by_document"]
            if entry["context"] == context
        ]
        for context in (32, 64, 128)
    }
    for entry in results["difference"]:
        gaps = np.array(pairs[entry["context"]])
        assert entry["loss"] == pytest.approx(gaps.mean())
        assert entry["std"] == pytest.approx(gaps.std(ddof=1))
        assert (entry["lower_in"], entry["documents"]) == ((gaps < 0).sum(), 2)
    report = (workdir / "report.md").read_text()
    assert "| resonance_yarn | Resonance YaRN, factor 4 | 64 | yes |" in report
    for name in comparison.FIGURES.keys() - {"ruler.png"}:
        assert f"]({name})" in report
        assert (workdir / name).read_bytes().startswith(b"\x89PNG")


def test_ruler_resumes_reports_and_compares(checkpoint: Path, texts: Path, tmp_path: Path) -> None:
    workdir = tmp_path / "run"
    ruler = ["tasks=('fwe',)", "contexts=(640,)", "samples=1"]
    overrides = [*only("ruler"), *(f"--config.eval.ruler.{field}" for field in ruler)]
    command = [*words(checkpoint, texts, *overrides), f"--workdir={workdir}"]
    assert main(command) == 0
    (unit,) = workdir.glob("units/ruler/*.json")
    written = unit.stat().st_mtime_ns
    assert main(command) == 0
    assert unit.stat().st_mtime_ns == written
    (cell,) = results_of(workdir)["ruler"]
    assert (cell["task"], cell["context"], cell["samples"]) == ("fwe", 640, 1)
    report = (workdir / "report.md").read_text()
    assert f"| fwe | {cell['score']:.1f} |" in report
    assert f"| **mean** | {cell['score']:.1f} |" in report
    assert (workdir / "ruler.png").read_bytes().startswith(b"\x89PNG")
    compared = tmp_path / "compared"
    assert main(["evaluate", "--compare", str(workdir), f"--workdir={compared}"]) == 0
    assert f"| run | {cell['score']:.1f} |" in (compared / "report.md").read_text()
    assert (compared / "ruler.png").read_bytes().startswith(b"\x89PNG")


def test_longppl_by_the_model_and_by_an_evaluator(
    checkpoint: Path, texts: Path, tmp_path: Path
) -> None:
    fields = ["contexts=(128,)", "short_context=32", "window=32", "alpha=0.1", "beta=-9.0"]
    overrides = [*only("longppl"), *(f"--config.eval.longppl.{field}" for field in fields)]
    for name, more in {"self": [], "judge": [f"evaluator={checkpoint}"]}.items():
        scaled = ["--config.rope.theta=50.0"]  # the evaluator keeps its own
        judge = [f"--config.eval.longppl.{field}" for field in more]
        command = [*words(checkpoint, texts, *overrides, *scaled, *judge)]
        assert main([*command, f"--workdir={tmp_path / name}"]) == 0
    (own,), (judged,) = (results_of(tmp_path / name)["longppl"] for name in ("self", "judge"))
    assert (own["context"], own["documents"], own["tokens"]) == (128, 2, 254)
    assert own["perplexity"] == judged["perplexity"]
    assert own["key_tokens"] != judged["key_tokens"]
    report = (tmp_path / "judge" / "report.md").read_text()
    assert f"whose loss, by {checkpoint}, falls by more than 0.1 nats from 32 tokens" in report
    assert f"| {judged['key_tokens']} |" in report
    workdir = tmp_path / "compared"
    folders = [str(tmp_path / name) for name in ("self", "judge")]
    assert main(["evaluate", "--compare", *folders, f"--workdir={workdir}"]) == 0
    compared = (workdir / "report.md").read_text()
    assert f"| judge | {judged['key_tokens']} |" in compared
    assert "these numbers do not compare" in compared


def key(entry: dict[str, Any]) -> tuple[str, int]:
    return entry["document"], entry["context"]


def test_runs_with_the_same_folder_name_get_their_parents() -> None:
    runs = comparison.label_runs({"a/x/run": {}, "a/y/run": {}, "a/y/other": {}})
    assert list(runs) == ["x/run", "y/run", "y/other"]


def test_compare_says_what_is_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", "--compare", f"--workdir={tmp_path / 'out'}"]) == 2
    assert "--compare names no folder" in capsys.readouterr().err
    folder = tmp_path / "empty"
    folder.mkdir()
    command = ["evaluate", f"--workdir={tmp_path / 'out'}", "--compare", str(folder)]
    assert main(command) == 2
    assert "results.json cannot be read" in capsys.readouterr().err
    (folder / "results.json").write_text("{}")
    assert main(command) == 2
    assert "is not a result of rrope evaluate" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_group_that_is_not_there(
    checkpoint: Path, texts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Else the model would be measured without its changes."""
    config = tmp_path / "config.py"
    for line, said in (
        (
            "config.rop = ConfigDict({'scaling': 'yarn'})",
            "config.rop = {...}: there is no such key; did you mean 'rope'?",
        ),
        ("del config.rope; config.rope = 'yarn'", "config.rope = 'yarn': it has to be a group"),
    ):
        config.write_text(
            "import runpy\n"
            "from ml_collections import ConfigDict\n"
            "def get_config():\n"
            f"    config = runpy.run_path({str(CONFIG)!r})['get_config']()\n"
            "    config.unlock()\n"
            f"    {line}\n"
            "    return config\n"
        )
        command = words(checkpoint, texts)
        command[1] = f"--config={config}"
        assert main([*command, f"--workdir={tmp_path / 'run'}"]) == 2
        assert said in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["--config.eval.perplexity.contexts=(0,)"], "contexts=(0,) must"),
        (["--config.eval.perplexity.contexts=(999,)"], "none of 3 documents has 999 tokens"),
        (["--config.eval.perplexity.protocol=slide"], "it has to be 'fragments' or 'sliding'"),
        (["--config.eval.passkey.contexts=(64,)"], "64 tokens are too few for a passkey"),
        (["--config.eval.closed_ended.files=('absent.jsonl',)"], "absent.jsonl"),
        (
            ["--config.eval.ruler.enabled=True", "--config.eval.ruler.contexts=(300,)"],
            "config.eval.ruler: contexts: 300 tokens are too few for niah_single_1",
        ),
        (
            ["--config.eval.longppl.enabled=True", "--config.eval.longppl.contexts=(5000,)"],
            "config.eval.longppl: contexts=(5000,): none of 3 documents has 5000 tokens",
        ),
        (
            ["--config.eval.ruler.enabled=True", "--config.eval.ruler.text=absent"],
            "config.eval.ruler: source='absent'",
        ),
        (only("nothing"), "nothing to evaluate"),
        (["--config.rope.scaling=yern"], "scaling='yern' is unknown"),
        (["--config.data.source=absent"], "config.data: source='absent'"),
        (["--config.data.tokenizer=absent"], "tokenizer='absent' does not exist"),
        (["--checkpoint=absent"], "absent does not exist; give a checkpoint"),
        (["--config.model.compute_dtype=int8"], "compute_dtype='int8' is unknown"),
    ],
)
def test_bad_usage_is_one_line_and_writes_nothing(
    overrides: list[str],
    said: str,
    checkpoint: Path,
    texts: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    workdir = tmp_path / "run"
    assert main([*words(checkpoint, texts, *overrides), f"--workdir={workdir}"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("rrope evaluate: ")
    assert said in error
    assert error.count("\n") == 1
    assert not workdir.exists()


def test_a_checkpoint_without_tokenizer_asks_for_one(
    checkpoint: Path, texts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [w for w in words(checkpoint, texts) if not w.startswith("--config.data.tokenizer")]
    assert main([*command, f"--workdir={tmp_path / 'run'}"]) == 2
    assert "comes without a tokenizer; name one" in capsys.readouterr().err
