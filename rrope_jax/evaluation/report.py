"""The Markdown report of `rrope evaluate`, from the results of a run.

Nothing here writes files; figures come from `rrope_jax.evaluation.plots`.
"""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from rrope_jax.evaluation.plots import figures_of, length_text
from rrope_jax.reporting import methods
from rrope_jax.reporting.figure import plots_section
from rrope_jax.reporting.table import NOT_AVAILABLE, pivot_table, table


def method_label(results: Mapping[str, Any]) -> str:
    """The method of a run in words, such as `Resonance YaRN, factor 4`."""
    factor = results["rope"].get("factor")
    label = methods.method_label(results["method"])
    return f"{label}, factor {factor:g}" if factor is not None else label


def headline(results: Mapping[str, Any]) -> str:
    """The result in one line."""
    parts = [
        f"{length_text(entry['context'])} {number(entry['perplexity'])}"
        for entry in results.get("perplexity", ())
    ]
    said = [f"perplexity at {', '.join(parts)}"] if parts else []
    if entries := [entry for entry in results.get("longppl", ()) if entry["key_tokens"]]:
        shown = (f"{length_text(e['context'])} {number(e['longppl'])}" for e in entries)
        said.append(f"LongPPL at {', '.join(shown)}")
    if cells := results.get("passkey"):
        accuracy = sum(cell["accuracy"] for cell in cells) / len(cells)
        said.append(f"passkey {100 * accuracy:.0f} % over {len(cells)} cells")
    said += [
        f"{entry['task']} {100 * entry['accuracy']:.1f} %"
        for entry in results.get("closed_ended", ())
    ]
    if means := results.get("ruler_mean"):
        scores = (f"{length_text(mean['context'])} {mean['score']:.1f}" for mean in means)
        said.append(f"RULER at {', '.join(scores)}")
    return f"{method_label(results)}: {'; '.join(said) or 'nothing is finished'}"


def markdown(results: Mapping[str, Any]) -> str:
    """The text of report.md, which links to the figures by file name.

    Args:
      results: the contents of results.json of `rrope evaluate`, complete or partial.
    """
    parts = [f"# {method_label(results)}", f"{headline(results)}."]
    if not results["complete"]:
        parts.append(
            f"**Partial run: {results['missing_units']} units of work are missing.** The same "
            "command resumes from here."
        )
    parts.append(table(("setting", "value"), _setting_rows(results), text_columns=2))
    if results.get("perplexity"):
        parts += _perplexity(results)
    if results.get("longppl"):
        parts += _longppl(results)
    if results.get("passkey"):
        parts += _passkey(results["passkey"])
    if results.get("closed_ended"):
        parts += _closed_ended(results["closed_ended"])
    if results.get("ruler"):
        parts += _ruler(results)
    if results.get("cost"):  # absent in results of earlier releases
        parts += _cost(results["cost"])
    parts += plots_section(figures_of(results))
    return "\n\n".join(parts) + "\n"


def _setting_rows(results: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [
        ("checkpoint", results["checkpoint"]),
        ("original context", f"{results['original_context']} tokens"),
        ("context", f"{results['context']} tokens"),
        ("rope", _pairs(results["rope"])),
        ("model", _pairs(results["model"])),
        *((name, _pairs(setting)) for name, setting in results["setting"].items()),
        ("backend", results["backend"]),
        ("versions", _pairs(results["versions"])),
    ]


def _perplexity(results: Mapping[str, Any]) -> list[str]:
    rows = [
        (
            str(entry["context"]),
            number(entry["perplexity"]),
            f"{entry['loss']:.4f}",
            NOT_AVAILABLE if entry["loss_std"] is None else f"{entry['loss_std']:.4f}",
            number(entry["lowest"]),
            number(entry["highest"]),
            str(entry["documents"]),
            str(entry["tokens"]),
        )
        for entry in results["perplexity"]
    ]
    header = (
        "context",
        "perplexity",
        "loss, nats",
        "std over documents",
        "lowest",
        "highest",
        "documents",
        "tokens",
    )
    setting = results["setting"]["perplexity"]
    last_tokens = setting.get("last_tokens")  # absent in results of earlier releases
    predicted = "all tokens but the first" if last_tokens is None else f"the last {last_tokens}"
    said = {
        "fragments": "A context of c tokens is the beginning of each document, of which "
        f"{predicted} are predicted.",
        "sliding": "A context of c tokens is a window that moves over the document; every token is "
        "predicted once.",
    }
    parts = [
        "## Perplexity",
        f"{said[setting['protocol']]} Perplexity is exp of the loss, the "
        "mean negative log likelihood over the tokens of all documents; lowest and highest are "
        "those of single documents.",
        table(header, rows, text_columns=0),
        "### Every document",
        _documents_table(results["perplexity_by_document"]),
    ]
    if results.get("perplexity_by_position"):  # absent in results of earlier releases
        parts += ["### By position in the longest context", _positions_table(results)]
    if results["too_short"]:
        names = ", ".join(f"{e['document']} ({e['tokens']})" for e in results["too_short"])
        parts.append(f"Left out, with fewer tokens than the longest context: {names}.")
    return parts


def _positions_table(results: Mapping[str, Any]) -> str:
    rows = [
        (f"{each['begin']} to {each['end']}", number(each["perplexity"]), f"{each['loss']:.4f}")
        for each in results["perplexity_by_position"]
    ]
    return table(("tokens", "perplexity", "loss, nats"), rows)


def _documents_table(entries: Sequence[Mapping[str, Any]]) -> str:
    several = any(entry["start"] for entry in entries)
    rows: dict[str, dict[int, str]] = {}
    for entry in entries:
        name = entry["document"]
        if several:
            name += f", from token {entry['start']}"
        rows.setdefault(name, {})[entry["context"]] = number(entry["perplexity"])
    return pivot_table("document", sorted({entry["context"] for entry in entries}), rows)


def _longppl(results: Mapping[str, Any]) -> list[str]:
    setting = results["setting"]["longppl"]
    rows = [
        (
            str(entry["context"]),
            number(entry["longppl"]),
            str(entry["key_tokens"]),
            number(entry["perplexity"]),
            str(entry["tokens"]),
            str(entry["documents"]),
        )
        for entry in results["longppl"]
    ]
    return [
        "## LongPPL",
        "Perplexity of the key tokens: those whose loss, by "
        f"{setting['evaluator'] or 'the model'}, falls by more "
        f"than {setting['alpha']:g} nats from {setting['short_context']} tokens of "
        f"context to all of it, to less than {-setting['beta']:g}.",
        table(
            ("context", "LongPPL", "key tokens", "perplexity", "tokens", "documents"),
            rows,
            text_columns=0,
        ),
    ]


def _passkey(cells: Sequence[Mapping[str, Any]]) -> list[str]:
    rows: dict[str, dict[int, str]] = {}
    for cell in sorted(cells, key=lambda cell: cell["depth"]):
        rows.setdefault(f"{100 * cell['depth']:g} %", {})[cell["context"]] = (
            f"{100 * cell['accuracy']:.0f} ({cell['log_probability']:.1f})"
        )
    return [
        "## Passkey",
        "Percent of the keys that the model repeats when asked, and in brackets the mean log "
        "probability, in nats, that it gives to a key when the key is put in its mouth. The key is "
        "hidden at a depth (0 % is the beginning) of a prompt that fills the context.",
        pivot_table("depth", sorted({cell["context"] for cell in cells}), rows),
    ]


def _closed_ended(entries: Sequence[Mapping[str, Any]]) -> list[str]:
    rows = [
        (
            entry["task"],
            entry["metric"],
            f"{100 * entry['accuracy']:.2f}",
            str(entry["questions"]),
            str(entry["documents"]),
            str(entry["cut_documents"]),
        )
        for entry in entries
    ]
    return [
        "## Closed-ended tasks",
        "Accuracy in percent. A document that does not fit the context is cut at its end.",
        table(
            ("task", "metric", "accuracy", "questions", "documents", "of them cut"),
            rows,
            text_columns=2,
        ),
    ]


def _ruler(results: Mapping[str, Any]) -> list[str]:
    cells, means = results["ruler"], results["ruler_mean"]
    samples = sorted({cell["samples"] for cell in cells})
    prompts = " to ".join(map(str, dict.fromkeys((samples[0], samples[-1]))))
    return [
        "## RULER",
        "Percent of the expected strings that are in the answers (for qa_1 and qa_2, of answers "
        "with one of them), by task and context, and the mean over the tasks; "
        f"{prompts} {'prompt' if samples[-1] == 1 else 'prompts'} each.",
        ruler_table(cells, means, "score", "{:.1f}"),
        "Mean negative log likelihood, in nats, of the tokens of a right answer that is put in the "
        "model's mouth:",
        ruler_table(cells, means, "answer_loss", "{:.2f}"),
    ]


def _cost(sections: Sequence[Mapping[str, Any]]) -> list[str]:
    rows = []
    for each in sections:
        seconds, units = each["seconds"], each["units"]
        known = seconds is not None and units
        shown = (f"{seconds:.1f}", f"{seconds / units:.2f}") if known else (NOT_AVAILABLE,) * 2
        rows.append((each["section"], str(units), *shown))
    return [
        "## Cost",
        "Seconds of all runs in this folder, compiling included; a unit is stored when it is "
        "finished.",
        table(("", "units", "seconds", "seconds a unit"), rows),
    ]


def ruler_table(
    cells: Sequence[Mapping[str, Any]], means: Sequence[Mapping[str, Any]], value: str, shown: str
) -> str:
    """A table of one value of RULER's results by task and context, with the mean in its last row.

    Args:
      cells: the entries of `ruler`.
      means: the entries of `ruler_mean`.
      value: `score` or `answer_loss`.
      shown: the format of a value.
    """
    rows: dict[str, dict[int, str]] = {}
    for cell in cells:
        rows.setdefault(cell["task"], {})[cell["context"]] = shown.format(cell[value])
    rows["**mean**"] = {mean["context"]: shown.format(mean[value]) for mean in means}
    return pivot_table("task", sorted(mean["context"] for mean in means), rows)


def number(value: float | None) -> str:
    """A perplexity with at least four digits; `NOT_AVAILABLE` for None."""
    if value is None or math.isnan(value):
        return NOT_AVAILABLE
    return f"{value:.3f}" if value < 100 else f"{value:.0f}"


def _pairs(values: Mapping[str, Any]) -> str:
    def show(value: Any) -> str:
        if isinstance(value, str) and " " in value:
            return json.dumps(value, ensure_ascii=False)
        return " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)

    return ", ".join(f"{key} {show(value)}" for key, value in values.items() if value is not None)
