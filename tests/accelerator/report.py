"""The report of what there is: tables, a figure, and the PosGen grid's own report beside it."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from rrope_jax.reporting.style import png, style
from rrope_jax.reporting.table import table
from rrope_jax.run.workdir import Workdir
from tests.accelerator import posgen_paper, precision, results
from tests.accelerator.parts import PARTS

FIGURE = "times.png"
GRID = "posgen_paper.md"
LIMIT = 16 * 2**20
"""Bytes that a folder of results stays below."""


def publish(workdir: Workdir, out: Path) -> list[Path]:
    """Writes results.json, report.md, the figure, and what `rrope posgen` has written.

    Returns:
      The paths, results.json first. The figures of the grid are left out where they would make
      the folder larger than `LIMIT`.
    """
    found = results.collect(workdir)
    content = {results.RESULTS: _json(found), "report.md": markdown(found).encode()}
    if (image := figure(found)) is not None:
        content[FIGURE] = image
    grid = posgen_paper.workdir(workdir.path)
    if (grid / "report.md").exists():
        content[GRID] = (grid / "report.md").read_bytes()
        for path in sorted(grid.glob("*.png")):
            if sum(map(len, content.values())) + path.stat().st_size < LIMIT:
                content[path.name] = path.read_bytes()
    out.mkdir(parents=True, exist_ok=True)
    written = []
    for name, data in content.items():
        temporary = out / f".{name}.tmp"
        temporary.write_bytes(data)
        written.append(temporary.replace(out / name))
    return written


def _json(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, allow_nan=False).encode()


def markdown(found: Mapping[str, Any]) -> str:
    """The text of report.md, of the content of results.json."""
    device = found["parts"]["device"].get("device", {})
    where = device.get("kind", found["platform"])
    sizes = ", small sizes: times mean nothing" if found["small"] else ""
    sections = [f"# rrope_jax on {where}{sizes}", _summary(found)]
    for name, part in PARTS.items():
        measured = {
            key: value for key, value in found["parts"][name].items() if isinstance(value, dict)
        }
        lines = [line for line in _SECTIONS[name](_usable(measured)) if line]
        lines += _left_out(measured)
        if lines:
            sections += [f"## {part.title}", *lines]
    if _bars(found):
        sections.append(f"![Times side by side]({FIGURE})")
    return "\n\n".join(sections) + "\n"


def _summary(found: Mapping[str, Any]) -> str:
    """A row for each part: how it stands, and the time that calls have spent on it."""
    rows = []
    for name, part in PARTS.items():
        ended = [call["parts"][name] for call in found["calls"] if name in call["parts"]]
        state = found["parts"][name].get("outcome") or (
            ended[-1]["state"] if ended else "not begun"
        )
        seconds = sum(each["seconds"] for each in ended)
        reasons = [each["reason"] for each in ended[-1:] if each.get("reason")]
        why = reasons[0].splitlines()[-1][:200] if state != "done" and reasons else ""
        rows.append([part.title, state, why, f"{part.minutes:g}", f"{seconds / 60:.1f}"])
    head = ["part", "", "why", "minutes expected of an H100", "minutes"]
    return table(head, rows, text_columns=3)


def _usable(measured: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in measured.items() if "skipped" not in v and "failed" not in v}


def _left_out(measured: Mapping[str, Any]) -> list[str]:
    """What was skipped or failed, and why."""
    lines = []
    for name, value in measured.items():
        lines += [
            f"- {name} {kind}: {' '.join(value[kind].split())[:500]}"
            for kind in ("skipped", "failed")
            if kind in value
        ]
        absent = value.get("left_out", {})
        lines += [f"- {name}: nothing of {library}: {why}" for library, why in absent.items()]
    return ["\n".join(lines)] if lines else []


def _device(measured: Mapping[str, Any]) -> list[str]:
    if "device" not in measured:
        return []
    found = dict(measured["device"])
    versions = found.pop("versions")
    for name in ("measured_in_seconds", "computes"):
        found.pop(name)
    rows = [(key, str(value).replace("\n", "; ")) for key, value in found.items() if value]
    rows += list(versions.items())
    return [table(("", "is"), rows, text_columns=2)]


def _tests(measured: Mapping[str, Any]) -> list[str]:
    rows, notes = [], []
    for name, value in measured.items():
        skipped = sum(value["skips"].values())
        counts = (value["passed"], len(value["failures"]), skipped)
        rows.append([name, *map(str, counts), f"{value['measured_in_seconds']:.0f}"])
        notes += [f"- {f['test']} failed: {f['message']}" for f in value["failures"]]
        notes += [f"- {name}, {n} skipped: {reason}" for reason, n in value["skips"].items()]
    if not rows:
        return []
    head = ("tests of", "passed", "failed", "skipped", "seconds")
    return [table(head, rows), "\n".join(notes)]


def _precision(measured: Mapping[str, Any]) -> list[str]:
    reference = measured.get(precision.REFERENCE, {}).get("seeds")
    rows = []
    for mode in precision.MODES if reference else ():
        if mode not in measured:
            continue
        seeds = measured[mode]["seeds"]
        compared = precision.compare(seeds, reference)
        seconds = sum(seed["seconds"] for seed in seeds)
        cells = [
            f"{each.mean:.4g}" + (f" ± {each.spread:.2g}" if mode == precision.REFERENCE else "")
            for each in compared.values()
        ]
        rows.append([mode, *cells, f"{seconds:.0f}"])
    lines = [table(("products", *precision.COMPARED, "seconds"), rows)] if rows else []
    if (decided := measured.get("decision")) is not None:
        lines.append(f"The grid is trained with {decided['mode']}.")
        lines += [f"- not {mode}: {why}" for mode, why in decided["why_not"].items()]
    return lines


def _posgen(measured: Mapping[str, Any]) -> list[str]:
    if "grid" not in measured:
        return []
    grid = measured["grid"]
    return [
        f"{grid['cells']} cells, trained with {grid['mode']} products in "
        f"{grid['device_seconds'] / 60:.1f} minutes of the device: [{GRID}]({GRID})."
    ]


def _beside(measured: Mapping[str, Any]) -> list[str]:
    rows = []
    for name, value in measured.items():
        if name == "posgen_step":
            for library, seconds in value["seconds"].items():
                rate = f"{value['gflop'] / seconds / 1e3:.3g} TFLOP/s"
                rows.append([f"step of {value['config']}", library, _ms(seconds), rate, ""])
            continue
        for library, found in value["libraries"].items():
            rate = f"{value['tokens'] / found['seconds']:.4g} tokens/s"
            task = f"{value['preset']}, {value['dtype']}: {name}"
            rows.append([task, library, _ms(found["seconds"]), rate, f"{found['peak_gib']:.2f}"])
    if not rows:
        return []
    return [table(("task", "library", "ms", "", "peak GiB"), rows, text_columns=2)]


def _planned(measured: Mapping[str, Any]) -> list[str]:
    rows = []
    for value in measured.values():
        shape = f"{value['name']}: {value['rows']} x {value['length']:,}, {value['attention']}"
        peak = value["peak_bytes"]
        rows.append(
            [
                shape,
                _ms(value["planned_seconds"]),
                value["bound_by"],
                _ms(value["seconds"]),
                f"{value['seconds'] / value['planned_seconds']:.2f}",
                f"{100 * value['mfu']:.0f} %",
                f"{value['planned_peak_bytes'] / 2**30:.2f}",
                "" if peak is None else f"{peak / 2**30:.2f}",
            ]
        )
    if not rows:
        return []
    head = ("step", "planned ms", "bound by", "measured ms", "over planned", "MFU")
    return [table((*head, "planned GiB", "measured GiB, the largest so far"), rows)]


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:.4g}"


def _weights(measured: Mapping[str, Any]) -> list[str]:
    rows = []
    reference = measured.get("float32", {}).get("losses")
    for name, value in measured.items():
        difference = ""
        if reference is not None:
            difference = f"{np.mean(value['losses']) - np.mean(reference):+.5f}"
        rows.append(
            [
                name,
                f"{value['parameter_bytes'] / 2**30:.2f}",
                f"{value['prompt_tokens_per_second']:,.0f}",
                f"{value['answer_tokens_per_second']:,.0f}",
                difference,
            ]
        )
    if not rows:
        return []
    head = ("weights", "GiB", "tokens/s of a prompt", "of an answer", "loss over float32, nats")
    return [table(head, rows)]


def _ruler(measured: Mapping[str, Any]) -> list[str]:
    rows = []
    for value in sorted(measured.values(), key=lambda each: (each["context"], each["batch_size"])):
        planned, peak = value["planned"], value["peak_bytes"]
        rates = []
        for name, shown in (
            ("prompt_tokens_per_second", "{:,.0f}"),
            ("answers_per_minute", "{:.4g}"),
        ):
            rates += [
                shown.format(value[name]),
                "" if planned is None else shown.format(planned[name]),
            ]
        rows.append(
            [
                value["model"],
                f"{value['context']:,}",
                str(value["batch_size"]),
                *rates,
                "" if peak is None else f"{peak / 2**30:.2f}",
            ]
        )
    if not rows:
        return []
    head = ("bfloat16 weights of", "context", "at once", "tokens/s of a prompt", "planned")
    head += ("answers a minute", "planned", "GiB, the largest so far")
    return [
        table(head, rows),
        "Prompts are read alone, and answers counted with all that belongs to them: writing and "
        "reading the prompt, scoring the right answer, and as many tokens as the task allows. The "
        "plan has the prompt and the written tokens.",
    ]


def _store(measured: Mapping[str, Any]) -> list[str]:
    rows = []
    for name, value in measured.items():
        size = value["bytes"]
        rates = [
            f"{value[key]:.3g} s, {size / value[key] / 1e6:,.0f} MB/s"
            for key in ("write_seconds", "read_seconds")
        ]
        where = value["store"] if name == "bucket" else f"{value['store']} on loopback"
        cells = [where, f"{size / 1e6:,.1f}", str(value["arrays"]), f"{value['held_seconds']:.3g}"]
        rows.append([*cells, *rates])
    if not rows:
        return []
    head = ("store", "MB", "arrays", "seconds that training waits", "written in", "read in")
    return [
        table(head, rows),
        "What was read equals what was written, and the next step from it has the same loss, bit "
        "for bit.",
    ]


_SECTIONS = {
    "device": _device,
    "tests": _tests,
    "precision": _precision,
    "posgen_paper": _posgen,
    "beside": _beside,
    "plan": _planned,
    "weights": _weights,
    "ruler": _ruler,
    "store": _store,
}


def _bars(found: Mapping[str, Any]) -> list[tuple[str, Sequence[tuple[str, float]]]]:
    """Group -> (name, time over that of the first), as far as there is something to compare."""
    groups: list[tuple[str, Sequence[tuple[str, float]]]] = []
    for name, value in _usable(_dicts(found["parts"]["beside"])).items():
        seconds = value.get("seconds") or {k: v["seconds"] for k, v in value["libraries"].items()}
        groups.append((name, list(seconds.items())))
    for value in _usable(_dicts(found["parts"]["plan"])).values():
        times = [("measured", value["seconds"]), ("planned", value["planned_seconds"])]
        groups.append((value["name"], times))
    return [
        (name, [(what, seconds / times[0][1]) for what, seconds in times])
        for name, times in groups
        if len(times) > 1
    ]


def _dicts(part: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in part.items() if isinstance(value, dict)}


def figure(found: Mapping[str, Any]) -> bytes | None:
    """Times of the same work side by side, over ours or the measured one; None without any."""
    groups = _bars(found)
    if not groups:
        return None
    with style():
        drawn = Figure(figsize=(7, 0.5 + 0.28 * sum(len(times) + 1 for _, times in groups)))
        axes = drawn.subplots()
        labels, place = [], 0.0
        for index, (name, times) in enumerate(groups):
            for what, ratio in times:
                axes.barh(place, ratio, color=f"C{index % 10}", alpha=1.0 if ratio == 1 else 0.5)
                axes.text(ratio, place, f" {ratio:.2f}", va="center")
                labels.append((place, f"{name}: {what}"))
                place += 1
            place += 1
        axes.set_yticks([at for at, _ in labels], [text for _, text in labels])
        axes.invert_yaxis()
        axes.grid(visible=False)
        axes.margins(x=0.12)
        axes.set_xlabel("time over the first of each group; shorter is faster")
        return png(drawn)
