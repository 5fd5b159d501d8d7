"""Compares several evaluations in one table and one plot."""

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import PurePath
from types import MappingProxyType
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rrope_jax.evaluation.plots import (
    context_axis,
    draw_passkey,
    draw_ruler_means,
    mark_original_context,
    perplexity_axis,
    position_axis,
    position_curve,
)
from rrope_jax.evaluation.report import method_label, number, ruler_table
from rrope_jax.reporting.colours import INK, PALETTE
from rrope_jax.reporting.figure import Figures, ReportFigure, plots_section, pngs
from rrope_jax.reporting.style import legend_below
from rrope_jax.reporting.table import pivot_table, table

Run = Mapping[str, Any]
"""The contents of one evaluation's results.json."""


def label_runs(runs: Mapping[str, Run]) -> dict[str, Run]:
    """Labels runs by folder name, with as many parent folders as needed to tell them apart.

    Args:
      runs: path of the workdir -> results.
    """
    paths = {folder: PurePath(folder).parts for folder in runs}
    for count in range(1, max(map(len, paths.values()), default=1) + 1):
        names = {folder: "/".join(parts[-count:]) for folder, parts in paths.items()}
        if len(set(names.values())) == len(names):
            break
    return {names[folder]: results for folder, results in runs.items()}


def summarise(runs: Mapping[str, Run]) -> dict[str, Any]:
    """The contents of results.json: the runs, and their losses relative to the first run's.

    Args:
      runs: label -> results, in display order.

    Returns:
      `runs`: label -> results. `difference`: one entry per run after the first and per context that
      both runs have, over their common documents: `loss` is the mean over documents of the run's
      loss minus the first run's, `std` the sample standard deviation of these differences (None for
      one document), `lower_in` the number of documents with a lower loss than the first run's.
    """
    (base, first), *others = runs.items()
    differences = []
    for label, run in others:
        for context, of_context in sorted(_gaps_by_context(_gaps(first, run)).items()):
            gaps = np.array(of_context)
            differences.append(
                {
                    "run": label,
                    "base": base,
                    "context": context,
                    "loss": float(gaps.mean()),
                    "std": float(gaps.std(ddof=1)) if gaps.size > 1 else None,
                    "lower_in": int((gaps < 0).sum()),
                    "documents": int(gaps.size),
                }
            )
    return {"runs": dict(runs), "difference": differences}


def _gaps(first: Run, other: Run) -> dict[Any, dict[int, float]]:
    """The loss of `other` minus that of `first`, by fragment and context, on the same tokens."""
    losses = {_measured(entry): entry["loss"] for entry in other.get("perplexity_by_document", [])}
    gaps: dict[Any, dict[int, float]] = {}
    for entry in first.get("perplexity_by_document", []):
        if (loss := losses.get(_measured(entry))) is not None:
            fragment = entry["document"], entry["start"]
            gaps.setdefault(fragment, {})[entry["context"]] = loss - entry["loss"]
    return gaps


def _gaps_by_context(gaps: Mapping[Any, Mapping[int, float]]) -> dict[int, list[float]]:
    """The gaps of all fragments, grouped by context."""
    by_context: dict[int, list[float]] = {}
    for of_fragment in gaps.values():
        for context, gap in of_fragment.items():
            by_context.setdefault(context, []).append(gap)
    return by_context


def _measured(entry: Mapping[str, Any]) -> tuple[Any, ...]:
    """Identifies the tokens of a loss, which depend on the text, tokenizer and protocol."""
    return tuple(entry.get(key) for key in ("context", "document", "start", "tokens", "crc32"))


def _same_text(runs: Iterable[Run]) -> bool:
    """Whether the runs predicted the same tokens at each context that they share."""
    by_context: dict[int, set[frozenset[Any]]] = {}
    for run in runs:
        entries = run["perplexity_by_document"]
        for context in {entry["context"] for entry in entries}:
            measured = frozenset(_measured(e) for e in entries if e["context"] == context)
            by_context.setdefault(context, set()).add(measured)
    return all(len(different) == 1 for different in by_context.values())


def markdown(results: Mapping[str, Any]) -> str:
    """The text of report.md."""
    runs: Mapping[str, Run] = results["runs"]
    parts = [
        f"# {len(runs)} evaluations",
        table(
            ("run", "method", "original context", "complete", "checkpoint"),
            [
                (
                    label,
                    method_label(run),
                    str(run["original_context"]),
                    "yes" if run["complete"] else "no",
                    run["checkpoint"],
                )
                for label, run in runs.items()
            ],
            text_columns=5,
        ),
    ]
    if measured := {label: run for label, run in runs.items() if run.get("perplexity")}:
        parts += ["## Perplexity", _by_context(measured, "perplexity", "perplexity", number)]
        if not _same_text(measured.values()):
            parts.append(
                "**The runs predicted different tokens (other documents, tokenizers or protocols), "
                "so that these perplexities do not compare; the differences below are over the "
                "fragments that two runs share.**"
            )
        if results["difference"]:
            parts += _difference(results["difference"])
    if gained := {label: run for label, run in runs.items() if run.get("longppl")}:
        parts += _longppl(gained)
    if keyed := {label: run for label, run in runs.items() if run.get("passkey")}:
        averages = {label: {"passkey": _over_depths(run)} for label, run in keyed.items()}
        parts += [
            "## Passkey",
            "Percent of the keys repeated, over all depths:",
            _by_context(averages, "passkey", "accuracy", lambda value: f"{100 * value:.1f}"),
            "Mean log probability of a key, nats:",
            _by_context(averages, "passkey", "log_probability", lambda value: f"{value:.2f}"),
        ]
    if closed := {label: run for label, run in runs.items() if run.get("closed_ended")}:
        parts += ["## Closed-ended tasks, accuracy in percent", _closed_ended(closed)]
    if asked := {label: run for label, run in runs.items() if run.get("ruler_mean")}:
        parts += _ruler(asked)
    parts += plots_section(_figures_of(results))
    return "\n\n".join(parts) + "\n"


def _by_context(
    runs: Mapping[str, Run], section: str, value: str, show: Callable[[Any], str]
) -> str:
    rows = {
        label: {entry["context"]: show(entry[value]) for entry in run[section]}
        for label, run in runs.items()
    }
    return pivot_table("run", _contexts(runs, section), rows)


def _contexts(runs: Mapping[str, Run], section: str) -> list[int]:
    return sorted({entry["context"] for run in runs.values() for entry in run[section]})


def _difference(differences: Sequence[Mapping[str, Any]]) -> list[str]:
    rows: dict[str, dict[int, str]] = {}
    for entry in differences:
        spread = "" if entry["std"] is None else f" ± {entry['std']:.4f}"
        rows.setdefault(entry["run"], {})[entry["context"]] = (
            f"{entry['loss']:+.4f}{spread} ({entry['lower_in']} of {entry['documents']})"
        )
    return [
        f"Loss minus that of {differences[0]['base']} on the same document, in nats: mean and "
        "sample standard deviation over the documents, and in how many of them it is lower.",
        pivot_table("run", sorted({entry["context"] for entry in differences}), rows),
    ]


def _longppl(runs: Mapping[str, Run]) -> list[str]:
    parts = [
        "## LongPPL",
        "Perplexity of the tokens that need the context:",
        _by_context(runs, "longppl", "longppl", number),
        "Number of these tokens:",
        _by_context(runs, "longppl", "key_tokens", str),
    ]
    evaluators = {run["setting"]["longppl"]["evaluator"] for run in runs.values()}
    if len(runs) > 1 and (len(evaluators) > 1 or None in evaluators):
        parts.append(
            "**Each run has key tokens of its own, as no evaluator is common to all: these numbers "
            "do not compare.**"
        )
    return parts


def _over_depths(run: Run) -> list[dict[str, Any]]:
    """Passkey cells averaged over depths, one per context."""
    by_context: dict[int, list[Mapping[str, Any]]] = {}
    for cell in run["passkey"]:
        by_context.setdefault(cell["context"], []).append(cell)
    return [
        {
            "context": context,
            "accuracy": float(np.mean([cell["accuracy"] for cell in cells])),
            "log_probability": float(np.mean([cell["log_probability"] for cell in cells])),
        }
        for context, cells in by_context.items()
    ]


def _closed_ended(runs: Mapping[str, Run]) -> str:
    rows = {
        label: {entry["task"]: f"{100 * entry['accuracy']:.2f}" for entry in run["closed_ended"]}
        for label, run in runs.items()
    }
    tasks = dict.fromkeys(task for entries in rows.values() for task in entries)
    return pivot_table("run", list(tasks), rows)


def _ruler(runs: Mapping[str, Run]) -> list[str]:
    """The means of all runs in two tables, and the tasks of each run."""
    parts = [
        "## RULER",
        "Score in percent, mean over the tasks:",
        _by_context(runs, "ruler_mean", "score", lambda value: f"{value:.1f}"),
        "Mean negative log likelihood of the tokens of a right answer, nats:",
        _by_context(runs, "ruler_mean", "answer_loss", lambda value: f"{value:.3f}"),
    ]
    asked = {
        frozenset((cell["task"], cell["context"], cell["samples"]) for cell in run["ruler"])
        for run in runs.values()
    }
    if len(asked) > 1:
        parts.append(
            "**The runs have other tasks, contexts or numbers of prompts, so that these means do "
            "not compare; the tables below do where they have the same cells.**"
        )
    for label, run in runs.items():
        table_of_run = ruler_table(run["ruler"], run["ruler_mean"], "score", "{:.1f}")
        parts += [f"### {label}: score by task, percent", table_of_run]
    return parts


def _runs_with(results: Mapping[str, Any], key: str) -> dict[str, Run]:
    return {label: run for label, run in results["runs"].items() if run.get(key)}


def _colours(results: Mapping[str, Any]) -> dict[str, str]:
    return dict(zip(results["runs"], itertools.cycle(PALETTE), strict=False))


def _mark_original(axes: Axes, runs: Mapping[str, Run]) -> None:
    for tokens in sorted({run["original_context"] for run in runs.values()}):
        mark_original_context(axes, tokens)


def _draw_perplexity(results: Mapping[str, Any]) -> Figure:
    runs, colours = _runs_with(results, "perplexity"), _colours(results)
    differences = results["difference"]
    figure = Figure(figsize=(10.4 if differences else 6.4, 4.7))
    panels = figure.subplots(1, 2 if differences else 1, squeeze=False)[0]
    for label, run in runs.items():
        contexts = [entry["context"] for entry in run["perplexity"]]
        means = [entry["perplexity"] for entry in run["perplexity"]]
        panels[0].plot(contexts, means, color=colours[label], marker="o", ms=4, label=label)
    contexts = _contexts(runs, "perplexity")
    context_axis(panels[0], contexts)
    perplexity_axis(panels[0])
    panels[0].set_title("all documents", loc="left")
    legend_below(figure, panels[0].get_lines())
    _mark_original(panels[0], runs)
    if differences:
        base = differences[0]["base"]
        for label, run in runs.items():
            if label != base:
                _draw_difference(panels[1], runs[base], run, colours[label])
        context_axis(panels[1], contexts)
        panels[1].axhline(0, color=INK, lw=1)
        panels[1].set_title(f"loss minus that of {base}, nats", loc="left")
        _mark_original(panels[1], runs)
    return figure


def _draw_difference(axes: Axes, base: Run, run: Run, colour: str) -> None:
    """Draws thin lines for the documents that both runs have and a thick one for their mean."""
    gaps = _gaps(base, run)
    for of_fragment in gaps.values():
        contexts = sorted(of_fragment)
        heights = [of_fragment[context] for context in contexts]
        axes.plot(contexts, heights, color=colour, alpha=0.35, lw=0.8)
    means = {
        context: float(np.mean(each)) for context, each in sorted(_gaps_by_context(gaps).items())
    }
    axes.plot(list(means), list(means.values()), color=colour, marker="o", ms=4, lw=2)


def _draw_position(results: Mapping[str, Any]) -> Figure:
    runs, colours = _runs_with(results, "loss_by_position"), _colours(results)
    figure = Figure(figsize=(7.2, 4.6))
    axes = figure.subplots()
    for label, run in runs.items():
        axes.plot(*position_curve(run), color=colours[label], lw=1.5, label=label)
    axes.set(xlabel="position, tokens", ylabel="loss, nats")
    position_axis(axes)
    legend_below(figure, axes.get_lines())
    _mark_original(axes, runs)
    return figure


def _draw_passkey(results: Mapping[str, Any]) -> Figure:
    runs = _runs_with(results, "passkey")
    depths = {cell["depth"] for run in runs.values() for cell in run["passkey"]}
    figure = Figure(figsize=(max(4.2, 2.9 * len(runs)), 2.4 + 0.6 * len(depths)))
    rows = figure.subplots(2, len(runs), sharex="col", sharey=True, squeeze=False)
    for row, (value, name) in enumerate(
        (("accuracy", "keys repeated, %"), ("log_probability", "log probability, nats"))
    ):
        for axes, (label, run) in zip(rows[row], runs.items(), strict=True):
            draw_passkey(axes, run["passkey"], value)
            axes.set_title(f"{label}\n{name}" if row == 0 else name, loc="left", fontsize=9)
            if axes is not rows[row][0]:
                axes.set_ylabel("")
            if row == 0:
                axes.set_xlabel("")
    return figure


def _draw_ruler(results: Mapping[str, Any]) -> Figure:
    runs, colours = _runs_with(results, "ruler_mean"), _colours(results)
    figure = Figure(figsize=(6.4, 4.4))
    axes = figure.subplots()
    for label, run in runs.items():
        draw_ruler_means(axes, run, colours[label], label)
    context_axis(axes, _contexts(runs, "ruler_mean"))
    axes.set_ylabel("mean score over tasks, %")
    legend_below(figure, axes.get_lines())
    _mark_original(axes, runs)
    return figure


FIGURES: Figures = MappingProxyType(
    {
        "perplexity.png": ReportFigure(
            "Perplexity over the context",
            "Left, over all documents of a run. Right, beside the first run: thin lines are "
            "single documents, thick ones their mean.",
            _draw_perplexity,
            needs="perplexity",
        ),
        "loss_by_position.png": ReportFigure(
            "Loss along the longest context",
            "Mean over documents of the loss of the tokens around each position.",
            _draw_position,
            needs="loss_by_position",
        ),
        "passkey.png": ReportFigure(
            "Passkey",
            "How often the key is repeated, and how probable the model finds it.",
            _draw_passkey,
            needs="passkey",
        ),
        "ruler.png": ReportFigure(
            "RULER", "Mean score over the tasks.", _draw_ruler, needs="ruler_mean"
        ),
    }
)


def _figures_of(results: Mapping[str, Any]) -> Figures:
    return {name: each for name, each in FIGURES.items() if _runs_with(results, each.needs)}


def plots(results: Mapping[str, Any]) -> dict[str, bytes]:
    """File name -> PNG figure, for the sections that at least one run has."""
    return pngs(_figures_of(results), results)
