"""The harness sees every kind of fault, and goes on where it was."""

import json
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest

from rrope_jax.rope import RopeSpec
from tests.fuzz import judging, running
from tests.fuzz.encoding import content_of, encode
from tests.fuzz.judging import Target, UnfitError, judge
from tests.fuzz.mutation import mutated, mutated_bytes

ROOT = Path(__file__).parents[2]
SEED = {"a.json": {"size": 4, "names": ["x", "y"]}}


def _says(text: str) -> Callable[[Path], None]:
    """A function that raises a ValueError of the package with a text."""
    file = Path(judging.rrope_jax.__file__).with_name("imagined.py")
    return lambda folder: exec(compile(f"raise ValueError({text!r})", str(file), "exec"))


def _spin(folder: Path) -> None:
    began = time.process_time()
    while time.process_time() - began < 20:
        pass


def _hide_memory(folder: Path) -> None:
    try:
        bytearray(2**31)
    except MemoryError as error:
        raise ValueError("it is damaged") from error


def _unfit(folder: Path) -> None:
    raise UnfitError


def _warn(folder: Path) -> None:
    warnings.warn("something", RuntimeWarning, stacklevel=1)


RUNS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "reads": (lambda folder: (folder / "a.json").read_bytes(), judging.ACCEPTED),
    "refuses": (lambda folder: RopeSpec(head_dim=3), judging.REFUSED),
    "unfit": (_unfit, judging.REFUSED),
    "absent": (lambda folder: (folder / "b").read_bytes(), judging.REFUSED),
    "two_lines": (_says("one\ntwo"), judging.MESSAGE),
    "silent": (_says(""), judging.MESSAGE),
    "key": (lambda folder: {}["a"], judging.FOREIGN),
    "not_raised_by_us": (lambda folder: int("a"), judging.FOREIGN),
    "exit": (lambda folder: sys.exit(0), judging.FOREIGN),
    "warns": (_warn, judging.FOREIGN),
    "writes": (lambda folder: (folder / "b").write_text("b"), judging.WRITES),
    "replaces": (lambda folder: (folder / "a.json").write_text("b"), judging.WRITES),
    "removes": (lambda folder: (folder / "a.json").unlink(), judging.WRITES),
    "writes_elsewhere": (lambda folder: Path("b").write_text("b"), judging.WRITES),
    "starts": (lambda folder: subprocess.run(["true"], check=True), judging.WRITES),
    "allocates": (lambda folder: bytearray(2**31), judging.MEMORY),
    "hides_memory": (_hide_memory, judging.MEMORY),
    "spins": (_spin, judging.SLOW),
    "aborts": (lambda folder: os.abort(), judging.CRASHED),
}


def _target(run: Callable[[Path], Any]) -> Target:
    def accepting(folder: Path) -> None:
        # valid inputs come first, to warm up
        if b'"size": 4' not in (folder / "a.json").read_bytes():
            run(folder)

    return Target("harness", lambda: [SEED], accepting)


def main(out: Path) -> None:
    """In a process without threads, which may fork."""
    files = encode({"a.json": {"size": 5}})
    kinds = {name: running.try_alone(_target(run), files).kind for name, (run, _) in RUNS.items()}
    half = running.campaign(_target(_says("no")), inputs=40, seed=3, out=out / "halves")
    whole = running.campaign(_target(_says("no")), inputs=80, seed=3, out=out / "whole")
    halves = running.campaign(_target(_says("no")), inputs=80, seed=3, out=out / "halves")
    print(json.dumps([kinds, half.done, whole.counts, halves.counts]))


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    out = tmp_path_factory.mktemp("harness")
    code = f"import tests.fuzz.test_harness as h, pathlib; h.main(pathlib.Path({str(out)!r}))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": "."},
        capture_output=True,
        text=True,
        check=True,
    )
    found: list[Any] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("name", RUNS)
def test_each_kind_of_fault_is_seen(told: list[Any], name: str) -> None:
    if RUNS[name][1] == judging.MEMORY and not Path("/proc/self/statm").exists():
        pytest.skip("memory is limited where the system says how much there is")
    assert told[0][name] == RUNS[name][1]


def test_a_run_goes_on_where_it_was(told: list[Any]) -> None:
    _, half, whole, halves = told
    assert half == 40
    assert whole == halves
    assert sum(whole.values()) == 80
    assert len(whole) == 2  # both kinds of verdicts


def test_an_input_is_the_same_whatever_came_before() -> None:
    target = _target(_says("no"))
    made = [running.make_input(target, [SEED], 1, number) for number in range(30)]
    assert running.make_input(target, [SEED], 1, 29) == made[29]
    assert len({json.dumps(sorted(map(repr, files.items()))) for files in made}) > 15


def test_a_kept_input_is_read_again(tmp_path: Path) -> None:
    files = {"a/b.json": b"{}", "c": b"\0"}
    running.save(_target(_spin), files, tmp_path / "kept.zip")
    assert running.load(tmp_path / "kept.zip") == ("harness", files)


def test_changes_leave_what_they_change_alone() -> None:
    tree = {"a": [1, {"b": b"bytes"}], "c": "text"}
    before = repr(tree)
    for number in range(300):
        mutated(Random(number), tree, [tree])
        assert isinstance(mutated_bytes(Random(number), b"some bytes", [b"other"]), bytes)
    assert repr(tree) == before


@pytest.mark.parametrize("name", ["../a", "/a", "a/../../b", "a\nb", "", "b" * 300])
def test_no_file_of_an_input_is_outside_of_its_folder(name: str) -> None:
    assert encode({name: b"data"}) == {}


def test_any_tree_becomes_bytes() -> None:
    for name in ("a.json", "a.jsonl", "a.safetensors", "a.gguf", "a.txt", "a.jsonl.gz"):
        for content in (None, [], {}, "text", 2**70, float("nan"), {"header": 1, "data": []}):
            assert isinstance(content_of(name, content), bytes)


def test_a_verdict_names_the_lines(tmp_path: Path) -> None:
    target = _target(lambda folder: RopeSpec(head_dim=3))
    verdict = judge(target, {"a.json": b""}, tmp_path / "in")
    assert verdict.kind == judging.REFUSED
    assert verdict.what.startswith("ValueError: head_dim=3")
    assert "ranges.py" in verdict.where
