"""The rows of `rrope table`: what each method reaches on PosGen and on text."""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

import numpy as np

from rrope_jax.evaluation import comparison
from rrope_jax.evaluation.units import seconds_of
from rrope_jax.posgen import labels
from rrope_jax.posgen.results import Cell, Results, in_report_order
from rrope_jax.posgen.summary import MethodSummary, by_row, seed_statistics, summarise
from rrope_jax.reporting.methods import order_methods

# Fields of a PosGen setting without which accuracies do not compare. Methods, their fields of
# `rope`, and seeds may differ.
_SAME = (
    *("modulus", "j", "k", "combination", "splits", "train_length", "test_length"),
    *("train_sequences", "test_sequences", "model", "train", "positions"),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Accuracy:
    """The accuracies of a method on a PosGen task, in [0, 1].

    Attributes:
      protocol, task: Which ones.
      summary: Statistics over the seeds.
      ood_of_seeds: The accuracy of each seed at positions from the training length on.
      seconds: Mean device time of a training.
    """

    protocol: str
    task: str
    summary: MethodSummary
    ood_of_seeds: tuple[float, ...]
    seconds: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextLoss:
    """The loss of a method on text at a context length.

    Attributes:
      checkpoint: The model.
      context: In tokens.
      loss: Mean over the documents, in nats a token.
      documents: Their number.
      difference: Mean over the documents of this loss minus that of the base method on the same
        tokens; None for the base method, and where they have no tokens in common.
      std: Sample standard deviation of that difference; None for fewer than two documents.
      lower_in: In how many documents it is negative.
      seconds: Of its evaluation; None where results of an earlier release do not say.
    """

    checkpoint: str
    context: int
    loss: float
    documents: int
    difference: float | None = None
    std: float | None = None
    lower_in: int | None = None
    seconds: float | None = None


@dataclasses.dataclass(frozen=True)
class Row:
    """A row of the table.

    Attributes:
      name: The method's name, or that of the folder of its evaluation.
      accuracies: On PosGen, in report order.
      losses: On text, by checkpoint and ascending context.
    """

    name: str
    accuracies: tuple[Accuracy, ...]
    losses: tuple[TextLoss, ...]


def join(
    ablations: Mapping[str, Results], evaluations: Mapping[str, Mapping[str, Any]], base: str
) -> tuple[Row, ...]:
    """Joins ablations and evaluations to one row for each method, the base method's first.

    Args:
      ablations: Folder -> results of `rrope posgen`, of the same setting but for methods and seeds.
      evaluations: Folder -> results of `rrope evaluate`. The folder's name is the method's; several
        folders of one name and checkpoint, with other documents or contexts, make one row.
      base: The method that differences of losses are from.

    Raises:
      ValueError: The settings of ablations differ, two have the same cell, or no evaluation of a
        checkpoint is of the base method.
    """
    accuracies = _accuracies(ablations)
    losses = _losses(evaluations, base)
    names = order_methods({*accuracies, *losses})
    return tuple(
        Row(name, tuple(accuracies.get(name, ())), tuple(losses.get(name, ())))
        for name in sorted(names, key=lambda name: name != base)
    )


def _accuracies(ablations: Mapping[str, Results]) -> dict[str, list[Accuracy]]:
    for (one, first), (other, second) in itertools.pairwise(ablations.items()):
        for field in _SAME:
            here, there = first.setting.get(field), second.setting.get(field)
            if here != there:
                raise ValueError(
                    f"{one} and {other} are of different settings, {field}={here!r} and {there!r}, "
                    "so that their accuracies do not compare; leave one of them out"
                )
    cells = in_report_order(
        dataclasses.replace(cell, method=_row_name(results, cell))
        for results in ablations.values()
        for cell in results.cells
    )
    groups: Mapping[Any, Sequence[Cell]] = by_row(cells)
    rows: dict[str, list[Accuracy]] = {}
    for summary in summarise(cells):
        group = groups[summary.protocol, summary.task, summary.method]
        rows.setdefault(summary.method, []).append(
            Accuracy(
                protocol=summary.protocol,
                task=summary.task,
                summary=summary,
                ood_of_seeds=tuple(cell.ood_accuracy for cell in group),
                seconds=seed_statistics([cell.seconds for cell in group]).mean,
            )
        )
    return rows


def _row_name(results: Results, cell: Cell) -> str:
    """The method of a cell, and a temperature by position, which is no part of a method's name."""
    setting = results.setting
    fields = dict(setting.get("rope") or {})
    if cell.protocol == "scaled_at_test":
        fields.update(setting.get("rope_at_test") or {})
    temperature = fields.get("position_temperature") or "none"
    return cell.method if temperature == "none" else f"{cell.method}_{temperature}"


def _losses(evaluations: Mapping[str, Mapping[str, Any]], base: str) -> dict[str, list[TextLoss]]:
    by_checkpoint: dict[str, dict[str, list[Any]]] = {}
    for folder, run in evaluations.items():
        of_checkpoint = by_checkpoint.setdefault(run["checkpoint"], {})
        entries = of_checkpoint.setdefault(PurePath(folder).name, [])
        entries.extend(run.get("perplexity_by_document", ()))
    rows: dict[str, list[TextLoss]] = {}
    for checkpoint, by_name in sorted(by_checkpoint.items()):
        if base not in by_name:
            raise ValueError(
                f"no evaluation of {checkpoint} is in a folder named {base!r}, whose loss the "
                f"others are compared with; add one, or choose a base from {', '.join(by_name)}"
            )
        differences = _differences(by_name, base)
        for name, entries in by_name.items():
            by_context: dict[int, dict[Any, Any]] = {}
            for entry in entries:
                fragment = entry["document"], entry["start"]
                by_context.setdefault(entry["context"], {})[fragment] = entry
            rows.setdefault(name, []).extend(
                TextLoss(
                    checkpoint=checkpoint,
                    context=context,
                    loss=float(np.mean([each["loss"] for each in of_context.values()])),
                    documents=len(of_context),
                    seconds=seconds_of(of_context.values()),
                    **differences.get((name, context), {}),
                )
                for context, of_context in sorted(by_context.items())
            )
    return rows


def _differences(
    by_name: Mapping[str, Sequence[Any]], base: str
) -> dict[tuple[str, int], dict[str, Any]]:
    """By name and context, the fields of `TextLoss` that compare with the base method."""
    names = [base, *(name for name in by_name if name != base)]
    runs = {name: {"perplexity_by_document": by_name[name]} for name in names}
    return {
        (entry["run"], entry["context"]): {
            "difference": entry["loss"],
            "std": entry["std"],
            "lower_in": entry["lower_in"],
        }
        for entry in comparison.summarise(runs)["difference"]
    }


def tasks_of(rows: Sequence[Row]) -> list[tuple[str, str]]:
    """The protocols and tasks of rows, in report order."""
    present = {(each.protocol, each.task) for row in rows for each in row.accuracies}
    return [
        (protocol, task)
        for protocol in labels.order_protocols(protocol for protocol, _ in present)
        for task in labels.order_tasks(task for _, task in present)
        if (protocol, task) in present
    ]


def contexts_of(rows: Sequence[Row]) -> list[tuple[str, int]]:
    """The checkpoints and contexts of rows, ascending."""
    return sorted({(each.checkpoint, each.context) for row in rows for each in row.losses})
