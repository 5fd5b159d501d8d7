"""The report of `rrope plan`: Markdown and figures from its results.

Nothing here writes files: `markdown` returns text and `plots` returns PNG bytes by file name.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from rrope_jax.reporting.colours import BLUE, INK, VERMILLION
from rrope_jax.reporting.quantities import gib, seconds_text
from rrope_jax.reporting.style import png, style
from rrope_jax.reporting.table import table

_COLOURS = (BLUE, "#5aa0d0", VERMILLION, "#e6b04a", "#7a7a7a")


def headline(results: Mapping[str, Any]) -> str:
    """The result in one sentence."""
    if not results["fits"]:
        return f"does not fit: {results['why_not']}"
    return (
        f"fits: {gib(results['peak_bytes_per_device'])} of "
        f"{gib(results['hbm_bytes_per_device'])} on each of {results['devices']} devices; about "
        f"{seconds_text(results['estimated_step_seconds'])} a step, MFU "
        f"{results['estimated_mfu']:.0%}, bound by {results['roofline']['bound_by']}"
    )


_FIGURE = (
    "\n![Memory and time](plan.png)\n",
    "Dotted: what a program may use, and the estimate.\n",
)


def markdown(results: Mapping[str, Any], *, figures: bool = True) -> str:
    """The report as Markdown; `figures` says whether it links to the figure."""
    parts = [
        f"# {results['workload']} on {_where(results)}\n",
        f"{headline(results)[0].upper()}{headline(results)[1:]}.\n",
        _summary(results),
        "\n## Memory of a device\n",
        _memory(results),
        "\n## Time of a step\n",
        _time(results),
        *(_FIGURE if figures else [""]),
        f"## Sent by a device in a step, by {results['collectives_from']}\n",
        _collectives(results),
    ]
    if results.get("phases"):
        parts += ["\n## Programs\n", _phases(results["phases"])]
    if "least_devices" in results:
        parts += ["\n## What would fit\n", *_smaller_evaluations(results)]
    elif results.get("nearest"):
        parts += ["\n## Changes tried\n", comparison(results["nearest"])]
    if results.get("sweep"):
        parts += ["\n## Meshes and remat policies\n", comparison(results["sweep"])]
        chosen = results["recommended"]
        parts.append(
            "\nNone of them fits.\n"
            if chosen is None
            else f"\nRecommended: `{' '.join(chosen) or 'the config as it is'}`.\n"
        )
    return "\n".join([*parts, ""])


def _phases(plans: Sequence[Mapping[str, Any]]) -> str:
    is_posgen = "trainings of a device at a time" in plans[0]["details"]
    unit = "trainings of a device" if is_posgen else "tokens"
    rows = [
        (
            " ".join(plan["details"][key] for key in ("task", "phase") if key in plan["details"]),
            f"{plan['details'][f'{unit} at a time']:,}",
            "refused"
            if plan["peak_bytes_per_device"] is None
            else gib(plan["peak_bytes_per_device"]),
            f"{plan['calls']:,}",
            seconds_text(plan["estimated_run_seconds"]),
        )
        for plan in plans
    ]
    at_a_time = f"{unit.split()[0]} at a time"
    return table(("program", at_a_time, "peak", "calls", "time of all"), rows)


def comparison(rows: Sequence[Mapping[str, Any]]) -> str:
    """A table of plans, each with its `overrides`."""
    header = ("mesh", "remat", "parts", "fits", "peak GiB", "step", "MFU", "bound by")
    return table(
        header,
        [
            (
                " x ".join(f"{name} {size}" for name, size in row["mesh"].items() if size > 1),
                row["remat"],
                str(row["accumulation"]),
                *_whether_it_fits(row),
                seconds_text(row["estimated_step_seconds"]),
                f"{row['estimated_mfu']:.1%}",
                row["bound_by"],
            )
            for row in rows
        ],
        text_columns=2,
    )


def _whether_it_fits(row: Mapping[str, Any]) -> tuple[str, str]:
    """The cells below `fits` and `peak GiB`."""
    peak = row["peak_bytes_per_device"]
    return "yes" if row["fits"] else "no", "-" if peak is None else f"{peak / 2**30:.2f}"


def _smaller_evaluations(results: Mapping[str, Any]) -> list[str]:
    """The changes of an evaluation that were tried, and what is left if none fits."""
    rows = [
        (
            f"`{' '.join(row['overrides'])}`",
            *_whether_it_fits(row),
            seconds_text(row["estimated_run_seconds"]),
        )
        for row in results["nearest"]
    ]
    header = ("change", "fits", "peak GiB", "time of a batch")
    parts = [table(header, rows)] if rows else []
    devices = results["least_devices"]
    if devices > 1:
        parts.append(
            "\nNeither smaller batches and chunks nor weights of fewer bits make it fit one "
            "device. Shorter contexts would, or `config.mesh` with `tensor`: the weights and the "
            f"cache of the smallest have room on {devices} devices, work space not counted.\n"
        )
    return parts


def _where(results: Mapping[str, Any]) -> str:
    slices = f", {results['num_slices']} slices" if results["num_slices"] > 1 else ""
    return f"{results['topology']}{slices}"


def _summary(results: Mapping[str, Any]) -> str:
    mesh = " x ".join(f"{name} {size}" for name, size in results["mesh"].items() if size > 1)
    shown = {
        "devices": f"{results['devices']} ({results['chip']})",
        "mesh": mesh or "one device",
        **{
            name: f"{value:,}" if isinstance(value, int) else str(value)
            for name, value in results["details"].items()
        },
        "model FLOPs of a device": f"{results['model_flops_per_device']:.3g}",
        "executed FLOPs of a device": f"{results['flops_per_device']:.3g}",
        "tokens per second": f"{results['estimated_tokens_per_second']:,.0f}",
        "the whole run": seconds_text(results["estimated_run_seconds"]),
        "compiled in": seconds_text(results["compile_seconds"]),
    }
    return table(("", ""), shown.items())


def _memory(results: Mapping[str, Any]) -> str:
    rows = [(name, gib(size)) for name, size in results["bytes_per_device"].items()]
    peak = results["peak_bytes_per_device"]
    rows.append(("peak", "refused by the compiler" if peak is None else gib(peak)))
    rows.append(("what a program may use", gib(results["hbm_bytes_per_device"])))
    return table(("what", "size"), rows)


def _time(results: Mapping[str, Any]) -> str:
    roofline = results["roofline"]
    rows = [
        ("products", seconds_text(roofline["compute_seconds"])),
        ("memory", seconds_text(roofline["memory_seconds"])),
        *(
            (f"transfers over {axes}", seconds_text(seconds))
            for axes, seconds in roofline["interconnect_seconds"].items()
        ),
        ("estimate", seconds_text(results["estimated_step_seconds"])),
        ("everything overlapped", seconds_text(roofline["step_seconds_all_overlapped"])),
        ("nothing overlapped", seconds_text(roofline["step_seconds_nothing_overlapped"])),
    ]
    return table(("at the chip's published rates", "time"), rows)


def _collectives(results: Mapping[str, Any]) -> str:
    rows = [
        (kind, axes.replace("+", ", "), f"{size / 1e9:.2f}")
        for kind, by_axes in results["collective_bytes_by_kind_and_axis"].items()
        for axes, size in by_axes.items()
    ]
    return table(("kind", "over", "GB"), rows, text_columns=2) if rows else "Nothing.\n"


def plots(results: Mapping[str, Any]) -> dict[str, bytes]:
    """The figure: memory and time, each as a bar of its parts."""
    with style():
        figure = Figure(figsize=(7.5, 2.6))
        memory, time = figure.subplots(2, 1)
        sizes = {name: size / 2**30 for name, size in results["bytes_per_device"].items()}
        _bar(memory, sizes, "GiB of a device")
        memory.axvline(results["hbm_bytes_per_device"] / 2**30, color=INK, linestyle=":")
        roofline = results["roofline"]
        times = {
            "products": roofline["compute_seconds"],
            "memory": roofline["memory_seconds"],
            "transfers beside products": roofline["hidden_interconnect_seconds"],
            "transfers alone": roofline["exposed_interconnect_seconds"],
        }
        _bar(time, times, "seconds of a step, one after another")
        time.axvline(results["estimated_step_seconds"], color=INK, linestyle=":")
        return {"plan.png": png(figure)}


def _bar(axes: Any, parts: Mapping[str, float], label: str) -> None:
    left = 0.0
    for (name, size), colour in zip(parts.items(), _COLOURS, strict=False):
        axes.barh(0, size, left=left, color=colour, label=name)
        left += size
    axes.set_yticks([])
    axes.set_xlabel(label)
    axes.grid(visible=False)
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=8)
