"""`rrope table` on small results written by hand."""

import dataclasses
import json
import re
import runpy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from rrope_jax.__main__ import main
from rrope_jax.posgen.results import Cell, Results
from rrope_jax.rope import RopeSpec
from rrope_jax.rope.methods import method_of, resonance_variant
from rrope_jax.rope.scalings import SCALINGS

ROOT = Path(__file__).parents[2]
SCRIPT = (ROOT / "launch" / "method_table.sh").read_text()
PLAIN = re.findall(r"\w+", re.findall(r'SCALINGS="(.*?)"', SCRIPT, re.S)[0])
FAR = re.findall(r"\w+", re.findall(r"FAR=\((.*?)\)", SCRIPT)[0])
SETTING = {"train_length": 32, "test_length": 128, "seeds": [5, 6]}


def cell(method: str, seed: int, ood: float, **changes: Any) -> Cell:
    plain = Cell(
        task="recursive",
        method=method,
        protocol="scaled_at_test",
        trained_as="rope",
        seed=seed,
        id_accuracy=0.97,
        ood_accuracy=ood,
        accuracy_by_position=(),
        validation_step=(),
        validation_loss=(),
        seconds=40.0 + seed,
    )
    return dataclasses.replace(plain, **changes)


def ablation(folder: Path, *cells: Cell, **setting: Any) -> str:
    results = Results(
        name=folder.name,
        setting=SETTING | setting,
        backend="",
        versions={},
        cells_expected=len(cells),
        complete=True,
        cells=cells,
    )
    return written(folder, results.to_json())


def evaluation(folder: Path, losses: Mapping[tuple[str, int], float], **changes: Any) -> str:
    """An evaluation with losses by document and context."""
    entries = [
        {"document": document, "context": context, "start": 0, "tokens": context - 1, "loss": loss}
        for (document, context), loss in losses.items()
    ]
    found = {"checkpoint": "models/m.gguf", "method": "yarn", "perplexity_by_document": entries}
    return written(folder, found | changes)


def written(folder: Path, results: Mapping[str, Any]) -> str:
    folder.mkdir(parents=True)
    (folder / "results.json").write_text(json.dumps(results))
    return str(folder)


def table_of(workdir: Path, runs: list[str], *words: str) -> tuple[dict[str, Any], str]:
    """The rows by name, and the lines of the table in the report."""
    assert main(["table", f"--workdir={workdir}", *words, "--runs", *runs]) == 0
    results = json.loads((workdir / "results.json").read_text())
    return {row["name"]: row for row in results["rows"]}, (workdir / "report.md").read_text()


def test_ablations_and_evaluations_make_one_row_a_method(tmp_path: Path) -> None:
    runs = [
        ablation(tmp_path / "one", cell("yarn", 5, 0.96), cell("yarn", 6, 0.98)),
        ablation(tmp_path / "two", cell("nope", 5, 0.5, id_accuracy=0.6)),
        evaluation(tmp_path / "text" / "yarn", {("a", 64): 3.0, ("b", 64): 2.0}),
        evaluation(tmp_path / "text" / "nope", {("a", 64): 3.1, ("b", 64): 2.3}),
        evaluation(tmp_path / "text" / "ntk", {("a", 64): 2.9}),
    ]
    rows, report = table_of(tmp_path / "table", runs)
    assert next(iter(rows)) == "yarn"
    assert set(rows) == {"yarn", "nope", "ntk"}
    (accuracy,) = rows["yarn"]["accuracies"]
    assert accuracy["seconds"] == pytest.approx(45.5)
    assert accuracy["summary"]["ood"]["mean"] == pytest.approx(0.97)
    (loss,) = rows["nope"]["losses"]
    assert loss["difference"] == pytest.approx(0.2)
    assert loss["std"] == pytest.approx(0.02**0.5)  # of 0.1 and 0.3
    assert (loss["lower_in"], loss["documents"]) == (0, 2)
    lines = report.splitlines()
    assert "| method | Recursive | trained as | s a training | 64 |" in lines
    assert "| yarn | 97.0 ± 1.4 (97.0) | rope | 46 | 2.5000 |" in lines
    assert "| nope | 50.0 (60.0) † | rope | 45 | +0.2000 ± 0.1414 |" in lines
    assert "| ntk | n/a | n/a | n/a | -0.1000 |" in lines
    assert (tmp_path / "table" / "methods.png").read_bytes().startswith(b"\x89PNG")


def test_text_has_a_cost_where_its_results_say_so(tmp_path: Path) -> None:
    """Not those of earlier releases, of which one entry without it is enough."""
    entry = {"document": "a", "start": 0, "tokens": 63, "loss": 3.0}
    short, long = {**entry, "context": 32}, {**entry, "context": 64}
    costs = {"yarn": (0.0, 41.6), "ntk": (2.0, None)}
    runs = [
        evaluation(
            tmp_path / name,
            {},
            perplexity_by_document=[{**short, "seconds": first}, {**long, "seconds": second}],
        )
        for name, (first, second) in costs.items()
    ]
    rows, report = table_of(tmp_path / "table", runs)
    assert [loss["seconds"] for loss in rows["yarn"]["losses"]] == [0.0, 41.6]
    assert [loss["seconds"] for loss in rows["ntk"]["losses"]] == [2.0, None]
    assert "| method | 32 | 64 | s of text |" in report
    assert "| yarn | 3.0000 | 3.0000 | 42 |" in report
    assert "| ntk | +0.0000 | +0.0000 | n/a |" in report


def test_a_temperature_by_position_makes_a_row_of_its_own(tmp_path: Path) -> None:
    runs = [
        ablation(tmp_path / "plain", cell("yarn", 5, 0.96)),
        ablation(
            tmp_path / "log_n",
            cell("yarn", 5, 0.98),
            rope={"position_temperature": "none"},
            rope_at_test={"position_temperature": "log_n"},
        ),
        evaluation(tmp_path / "text" / "yarn", {("a", 64): 3.0}),
        evaluation(tmp_path / "text" / "yarn_log_n", {("a", 64): 3.5}),
    ]
    rows, _ = table_of(tmp_path / "table", runs)
    assert list(rows) == ["yarn", "yarn_log_n"]
    (accuracy,), (loss,) = rows["yarn_log_n"]["accuracies"], rows["yarn_log_n"]["losses"]
    assert accuracy["ood_of_seeds"] == [0.98]
    assert loss["difference"] == 0.5


def test_folders_of_one_name_are_one_method(tmp_path: Path) -> None:
    """With other documents and contexts; more of them can be added to the same table."""
    first = [
        evaluation(tmp_path / "short" / "yarn", {("a", 64): 3.0}),
        evaluation(tmp_path / "short" / "ntk", {("a", 64): 2.8}),
    ]
    rows, _ = table_of(tmp_path / "table", first)
    assert [each["documents"] for each in rows["ntk"]["losses"]] == [1]
    more = [
        evaluation(tmp_path / "long" / "yarn", {("b", 64): 3.0, ("b", 128): 4.0}),
        evaluation(tmp_path / "long" / "ntk", {("b", 64): 3.4, ("b", 128): 5.0}),
    ]
    rows, _ = table_of(tmp_path / "table", [*first, *more])
    assert [(each["context"], each["documents"]) for each in rows["ntk"]["losses"]] == [
        (64, 2),
        (128, 1),
    ]
    assert [each["difference"] for each in rows["ntk"]["losses"]] == pytest.approx([0.1, 1.0])


def test_checkpoints_and_protocols_have_columns_of_their_own(tmp_path: Path) -> None:
    in_training = cell("yarn", 5, 0.9, protocol="scaled_training", trained_as="yarn")
    runs = [
        ablation(tmp_path / "posgen", cell("yarn", 5, 0.96), in_training),
        evaluation(tmp_path / "one" / "yarn", {("a", 2048): 3.0}),
        evaluation(tmp_path / "two" / "yarn", {("a", 2048): 2.0}, checkpoint="models/other.gguf"),
    ]
    _, report = table_of(tmp_path / "table", runs)
    assert (
        "| method | Recursive (scaled in training and test) | Recursive (scaled at test only) | "
        "trained as | s a training | m.gguf at 2K | other.gguf at 2K |"
    ) in report
    assert "| yarn, rope | 45 |" in report


def test_differences_are_over_the_same_tokens_only(tmp_path: Path) -> None:
    runs = [
        evaluation(tmp_path / "yarn", {("a", 64): 3.0, ("b", 64): 2.0}),
        evaluation(tmp_path / "ntk", {("b", 64): 2.5, ("c", 64): 9.0}),
    ]
    rows, _ = table_of(tmp_path / "table", runs)
    assert rows["ntk"]["losses"][0]["difference"] == pytest.approx(0.5)


def test_what_does_not_compare_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = ablation(tmp_path / "one", cell("yarn", 5, 0.96))
    refused = {
        "train_length": [one, ablation(tmp_path / "two", cell("ntk", 5, 0.9), train_length=64)],
        "appears twice": [one, ablation(tmp_path / "three", cell("yarn", 5, 0.9))],
        "named 'yarn'": [evaluation(tmp_path / "ntk", {("a", 64): 3.0})],
        "neither cells": [written(tmp_path / "plan", {"fits": True})],
        "cannot be read": [str(tmp_path / "absent")],
        "finished anything": [ablation(tmp_path / "empty")],
    }
    for message, runs in refused.items():
        workdir = tmp_path / "table"
        assert main(["table", f"--workdir={workdir}", "--runs", *runs]) == 2
        assert message in capsys.readouterr().err
        assert not workdir.exists()


def test_another_base_gets_other_differences(tmp_path: Path) -> None:
    runs = [
        evaluation(tmp_path / "yarn", {("a", 64): 3.0}),
        evaluation(tmp_path / "ntk", {("a", 64): 2.5}),
    ]
    rows, report = table_of(tmp_path / "table", runs, "--base=ntk")
    assert list(rows) == ["ntk", "yarn"]
    assert "| yarn | +0.5000 |" in report
    assert main(["table", f"--workdir={tmp_path / 'table'}", "--runs", *runs]) == 2


@pytest.mark.parametrize("method", ["nope", *PLAIN, *map(resonance_variant, PLAIN), *FAR])
def test_every_method_of_the_script_gets_the_fields_that_it_reads(method: str) -> None:
    config = runpy.run_path(str(ROOT / "configs" / "evaluate_method.py"))["get_config"](method)
    fields = config.rope.to_dict()
    if "original_context" in SCALINGS[fields["scaling"]].reads:  # the checkpoint's
        fields["original_context"] = 8192
    if fields["far_positions"] == "jet_long":
        fields["far_context"] = 8192
    spec = RopeSpec(head_dim=64, theta=1e5, **fields)
    assert method_of(spec) == method


def test_a_temperature_by_position_goes_with_a_method() -> None:
    config = runpy.run_path(str(ROOT / "configs" / "evaluate_method.py"))["get_config"](
        "yarn,log_n"
    )
    spec = RopeSpec(head_dim=64, original_context=8192, **config.rope.to_dict())
    assert (method_of(spec), spec.position_temperature) == ("yarn", "log_n")
