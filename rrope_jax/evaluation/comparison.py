"""Several evaluations in one table and one plot."""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePath
from types import MappingProxyType
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rrope_jax.evaluation.plots import (
    FigureKind,
    context_axis,
    draw_passkey,
    mark_original_context,
    perplexity_axis,
    position_axis,
    position_curve,
)
from rrope_jax.evaluation.report import method_label, number
from rrope_jax.reporting.markdown import table
from rrope_jax.reporting.style import INK, legend_below, png, style

_NOT_THERE = "n/a"
# Okabe and Ito's palette, darkened so that thin lines stand on white.
_COLOURS = (
    "#4a4a4a", "#0060a0", "#c04a00", "#00705a", "#a8407c", "#7a6a00", "#5b3fa0", "#8a1c1c",
)  # fmt: skip

Results = Mapping[str, Any]


def label_runs(runs: Mapping[str, Results]) -> dict[str, Results]:
    """Runs by the names of their folders, with as many parents as tell them apart.

    Args:
      runs: results by the path of their workdir.
    """
    paths = {folder: PurePath(folder).parts for folder in runs}
    for count in range(1, max(map(len, paths.values()), default=1) + 1):
        names = {folder: "/".join(parts[-count:]) for folder, parts in paths.items()}
        if len(set(names.values())) == len(names):
            break
    return {names[folder]: results for folder, results in runs.items()}


def summarise(runs: Mapping[str, Results]) -> dict[str, Any]:
    """The content of results.json: the runs, and their losses beside the first one's.

    Args:
      runs: results by label, in the order in which they are shown.

    Returns:
      `runs`: label -> results; `difference`: one entry for each run after the first and each
      context that both have, over the documents that both have: `loss` is the mean over documents
      of the run's loss minus the first run's, `std` the sample standard deviation of these
      differences (None for one document), `lower_in` the number of documents in which the run is
      better.
    """
    (base, first), *others = runs.items()
    differences = []
    for label, results in others:
        for context, pairs in sorted(_pairs(first, results).items()):
            gaps = np.array([theirs - ours for ours, theirs in pairs])
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


def _pairs(first: Results, other: Results) -> dict[int, list[tuple[float, float]]]:
    """Losses of two runs on the same fragments, by context."""
    found: dict[int, list[tuple[float, float]]] = {}
    for losses in _shared(first, other).values():
        for context, pair in losses.items():
            found.setdefault(context, []).append(pair)
    return found


def _shared(first: Results, other: Results) -> dict[Any, dict[int, tuple[float, float]]]:
    """Losses of two runs by fragment, then by context, where both predicted the same tokens."""
    theirs = {_measured(entry): entry["loss"] for entry in other.get("perplexity_by_document", [])}
    found: dict[Any, dict[int, tuple[float, float]]] = {}
    for entry in first.get("perplexity_by_document", []):
        if (loss := theirs.get(_measured(entry))) is not None:
            fragment = entry["document"], entry["start"]
            found.setdefault(fragment, {})[entry["context"]] = entry["loss"], loss
    return found


def _measured(entry: Mapping[str, Any]) -> tuple[Any, ...]:
    """What a loss is of. Other texts, tokenizers or protocols have other tokens."""
    return tuple(entry.get(key) for key in ("context", "document", "start", "tokens", "crc32"))


def _same_text(runs: Iterable[Results]) -> bool:
    """Whether the runs, at each context that several have, predicted the same tokens."""
    by_context: dict[int, set[frozenset[Any]]] = {}
    for run in runs:
        entries = run["perplexity_by_document"]
        for context in {entry["context"] for entry in entries}:
            measured = frozenset(_measured(e) for e in entries if e["context"] == context)
            by_context.setdefault(context, set()).add(measured)
    return all(len(different) == 1 for different in by_context.values())


def markdown(results: Mapping[str, Any]) -> str:
    """The text of report.md."""
    runs: Mapping[str, Results] = results["runs"]
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
            parts += _difference(results["difference"], list(runs))
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
    shown = [(name, kind) for name, kind in FIGURES.items() if _runs_with(results, kind.needs)]
    if shown:
        parts.append("## Plots")
    for name, kind in shown:
        parts += [f"![{kind.title}]({name})", f"*{kind.title}.* {kind.caption}"]
    return "\n\n".join(parts) + "\n"


def _by_context(runs: Mapping[str, Results], section: str, value: str, show: Any) -> str:
    contexts = sorted({entry["context"] for run in runs.values() for entry in run[section]})
    rows = []
    for label, run in runs.items():
        found = {entry["context"]: entry[value] for entry in run[section]}
        rows.append((label, *(show(found[c]) if c in found else _NOT_THERE for c in contexts)))
    return table(("run", *map(str, contexts)), rows)


def _difference(differences: Sequence[Mapping[str, Any]], order: Sequence[str]) -> list[str]:
    contexts = sorted({entry["context"] for entry in differences})
    found = {(entry["run"], entry["context"]): entry for entry in differences}

    def show(label: str, context: int) -> str:
        entry = found.get((label, context))
        if entry is None:
            return _NOT_THERE
        spread = "" if entry["std"] is None else f" ± {entry['std']:.4f}"
        return f"{entry['loss']:+.4f}{spread} ({entry['lower_in']} of {entry['documents']})"

    return [
        f"Loss minus that of {differences[0]['base']} on the same document, in nats: mean and "
        "sample standard deviation over the documents, and in how many of them it is lower.",
        table(
            ("run", *map(str, contexts)),
            [
                (label, *(show(label, context) for context in contexts))
                for label in order
                if any(label == run for run, _ in found)
            ],
        ),
    ]


def _over_depths(run: Results) -> list[dict[str, Any]]:
    """Passkey cells averaged over depths, by context."""
    cells = sorted(run["passkey"], key=lambda cell: cell["context"])
    averages = []
    for context, group in itertools.groupby(cells, key=lambda cell: cell["context"]):
        entries = list(group)
        averages.append(
            {
                "context": context,
                **{
                    value: float(np.mean([entry[value] for entry in entries]))
                    for value in ("accuracy", "log_probability")
                },
            }
        )
    return averages


def _closed_ended(runs: Mapping[str, Results]) -> str:
    tasks = list(dict.fromkeys(e["task"] for run in runs.values() for e in run["closed_ended"]))
    rows = []
    for label, run in runs.items():
        found = {entry["task"]: f"{100 * entry['accuracy']:.2f}" for entry in run["closed_ended"]}
        rows.append((label, *(found.get(task, _NOT_THERE) for task in tasks)))
    return table(("run", *tasks), rows)


def _runs_with(results: Mapping[str, Any], key: str) -> dict[str, Results]:
    return {label: run for label, run in results["runs"].items() if run.get(key)}


def _colours(results: Mapping[str, Any]) -> dict[str, str]:
    return dict(zip(results["runs"], itertools.cycle(_COLOURS), strict=False))


def _mark_original(axes: Axes, runs: Mapping[str, Results]) -> None:
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
    contexts = sorted({e["context"] for run in runs.values() for e in run["perplexity"]})
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


def _draw_difference(axes: Axes, base: Results, run: Results, colour: str) -> None:
    """Thin lines for the documents that both have, a thick one for their mean."""
    by_context: dict[int, list[float]] = {}
    for losses in _shared(base, run).values():
        contexts = sorted(losses)
        gaps = [losses[c][1] - losses[c][0] for c in contexts]
        axes.plot(contexts, gaps, color=colour, alpha=0.35, lw=0.8)
        for context, gap in zip(contexts, gaps, strict=True):
            by_context.setdefault(context, []).append(gap)
    contexts = sorted(by_context)
    means = [float(np.mean(by_context[context])) for context in contexts]
    axes.plot(contexts, means, color=colour, marker="o", ms=4, lw=2)


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


FIGURES: Mapping[str, FigureKind] = MappingProxyType(
    {
        "perplexity.png": FigureKind(
            "Perplexity over the context",
            "Left, over all documents of a run. Right, beside the first run: thin lines are "
            "single documents, thick ones their mean.",
            "perplexity",
            _draw_perplexity,
        ),
        "loss_by_position.png": FigureKind(
            "Loss along the longest context",
            "Mean over documents of the loss of the tokens around each position.",
            "loss_by_position",
            _draw_position,
        ),
        "passkey.png": FigureKind(
            "Passkey",
            "How often the key is repeated, and how probable the model finds it.",
            "passkey",
            _draw_passkey,
        ),
    }
)


def plots(results: Mapping[str, Any]) -> dict[str, bytes]:
    """The figures as PNG files: name -> bytes, of those sections that some run has."""
    with style():
        return {
            name: png(kind.draw(results))
            for name, kind in FIGURES.items()
            if _runs_with(results, kind.needs)
        }
