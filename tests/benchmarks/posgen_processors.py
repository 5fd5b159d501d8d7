r"""One PosGen grid trained on several processors: what is the same on all of them?

    python -m tests.benchmarks.posgen_processors docs/results/posgen_processors \
        "Intel Xeon=docs/results/posgen_quick" "AMD EPYC=runs/epyc" "AMD EPYC, AVX2=runs/avx2"

To be run from the root of the repository. Each workdir is that of a finished `rrope posgen` of the
same config; XLA_FLAGS=--xla_cpu_max_isa=AVX2 in front of the command holds it to an older
instruction set. Seeds, data and code are the same, so what differs is the rounding of sums, which
training amplifies. Writes report.md and results.json (accuracies of every cell) into the folder.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rrope_jax.posgen import labels
from rrope_jax.posgen.results import Cell, in_report_order
from rrope_jax.posgen.summary import (
    MethodSummary,
    ResonanceDifference,
    resonance_differences,
    summarise,
)
from rrope_jax.reporting.methods import method_label, order_methods
from rrope_jax.reporting.table import table

_KEPT = ("protocol", "task", "method", "trained_as", "seed", "id_accuracy", "ood_accuracy")
# Curves that a summary does not need, which would be most of the file.
_LEFT_OUT = {"accuracy_by_position": [], "validation_loss": [], "validation_step": []}


def collect(workdirs: Mapping[str, Path]) -> dict[str, Any]:
    """The cells of all runs by the name of their processor, without curves.

    Raises:
      ValueError: two runs have another setting, so that more than rounding differs.
    """
    processors, first = {}, None
    for name, workdir in workdirs.items():
        results = json.loads((workdir / "results.json").read_text())
        setting = {k: v for k, v in results["setting"].items() if k != "tasks"}
        first = first or setting
        different = [key for key in setting if setting[key] != first.get(key)]
        if different:
            raise ValueError(f"{workdir}: other than in the first run: {', '.join(different)}")
        processors[name] = {
            "backend": results["backend"],
            "versions": results["versions"],
            "cells": [{key: cell[key] for key in _KEPT} for cell in results["cells"]],
        }
    return {"setting": first, "processors": processors}


def _cells(processor: Mapping[str, Any]) -> tuple[Cell, ...]:
    return in_report_order(Cell.from_json(cell | _LEFT_OUT) for cell in processor["cells"])


def summaries(collected: Mapping[str, Any]) -> dict[str, tuple[MethodSummary, ...]]:
    """Rows of the report by processor."""
    return {n: summarise(_cells(p)) for n, p in collected["processors"].items()}


def differences(collected: Mapping[str, Any]) -> dict[str, tuple[ResonanceDifference, ...]]:
    """Resonance minus plain by processor."""
    return {n: resonance_differences(_cells(p)) for n, p in collected["processors"].items()}


def _percent(row: MethodSummary) -> str:
    mark = "" if row.learned else " †"
    return f"{100 * row.ood.mean:.1f} ± {100 * row.ood.std:.1f}{mark}"


def _points(row: ResonanceDifference | None) -> str:
    if row is None:
        return "n/a"
    return f"{100 * row.mean:+.1f} ({row.wins} of {row.n}), {row.verdict}"


def markdown(collected: Mapping[str, Any]) -> str:
    """The report: accuracies and differences, a column for each processor."""
    by_processor, of_pairs = summaries(collected), differences(collected)
    names = list(by_processor)
    rows = {n: {(r.task, r.method): r for r in rows} for n, rows in by_processor.items()}
    cells = {key for of_one in rows.values() for key in of_one}
    tasks = labels.order_tasks(task for task, _ in cells)
    methods = order_methods(method for _, method in cells)
    accuracies = [
        [labels.task_label(task), method_label(method)]
        + [_percent(rows[n][task, method]) if (task, method) in rows[n] else "n/a" for n in names]
        for task in tasks
        for method in methods
    ]
    pairs = {n: {(r.task, r.scaling): r for r in rows} for n, rows in of_pairs.items()}
    scalings = order_methods(scaling for of_one in pairs.values() for _, scaling in of_one)
    gains = [
        [labels.task_label(task), method_label(scaling)]
        + [_points(pairs[n].get((task, scaling))) for n in names]
        for task in tasks
        for scaling in scalings
    ]
    machines = [(n, p["backend"]) for n, p in collected["processors"].items()]
    return (
        "\n\n".join(
            [
                "# One grid on several processors",
                "The same config, seeds, data and code: what differs is the rounding of sums.",
                table(("run", "backend"), machines, text_columns=2),
                "## OOD accuracy",
                "In percent, mean ± standard deviation over seeds. † Not learned in distribution.",
                table(("task", "method", *names), accuracies, text_columns=2),
                "## Resonance minus none",
                "Percentage points, in how many seeds it is higher, and the report's verdict.",
                table(("task", "scaling", *names), gains, text_columns=2),
            ]
        )
        + "\n"
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Collects, writes, and prints the report."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("runs", nargs="+", metavar="NAME=WORKDIR")
    arguments = parser.parse_args(argv)
    pairs = (run.rpartition("=") for run in arguments.runs)
    collected = collect({name: Path(workdir) for name, _, workdir in pairs})
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "results.json").write_text(json.dumps(collected) + "\n")
    text = markdown(collected)
    (arguments.out / "report.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
