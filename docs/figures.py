"""Figures and tables of docs/idea.md, computed by `rrope_jax.rope`.

    python docs/figures.py        # writes docs/idea/*.png and docs/idea/*.md

Every figure carries the numbers that it shows, as JSON in the PNG's text. A test computes them anew
and compares, so that a figure cannot differ from what the code says.
"""

import io
import itertools
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from rrope_jax import rope
from rrope_jax.model.presets import PRESETS
from rrope_jax.reporting.style import style
from rrope_jax.rope import RopeSpec, analysis

FOLDER = Path(__file__).parent / "idea"
PLAIN, RESONANT, LIGHT = "#c04a00", "#0060a0", "#b9b9b9"

# A head of LLaMA 2, and one of the small PosGen models (configs/posgen_quick.py).
LLAMA, LLAMA_LENGTH, LLAMA_TEST = RopeSpec(head_dim=128), 4096, 32_768
LLAMA_RESONANT = RopeSpec(head_dim=128, resonance=True)
LLAMA_YARN = RopeSpec(head_dim=128, scaling="yarn", factor=8.0, original_context=4096)
SMALL, SMALL_LENGTH, SMALL_TEST = RopeSpec(head_dim=32), 32, 128
SMALL_RESONANT = RopeSpec(head_dim=32, resonance=True)

Numbers = dict[str, list[Any]]


def wavelengths() -> Numbers:
    """Wavelength of every feature of a LLaMA 2 head, in tokens: plain, YaRN and Resonance."""
    specs = {"plain": LLAMA, "yarn": LLAMA_YARN, "resonance": LLAMA_RESONANT}
    numbers = {name: rope.frequencies(spec).wavelengths.tolist() for name, spec in specs.items()}
    return {**numbers, "training length": [LLAMA_LENGTH]}


def phase_slip() -> Numbers:
    """The second feature of a small head: its angles, in turns, and the slip after whole turns."""
    numbers: Numbers = {}
    for name, spec in {"plain": SMALL, "resonance": SMALL_RESONANT}.items():
        cos, sin = rope.cos_sin(spec, jnp.arange(SMALL_TEST))
        turns = np.arctan2(np.asarray(sin[:, 1]), np.asarray(cos[:, 1])) / (2 * math.pi)
        numbers[name] = np.round(turns % 1, 5).tolist()
    # After each eleven tokens the rounded feature is where it was; the plain one is not yet.
    for name in ("plain", "resonance"):
        slip = np.array(numbers[name])[::11]
        numbers[f"{name} slip"] = np.round((slip + 0.5) % 1 - 0.5, 5).tolist()
    return numbers


def gap() -> Numbers:
    """Feature gap of a LLaMA 2 head between 4,096 and 32,768 tokens."""
    specs = {"plain": LLAMA, "resonance": LLAMA_RESONANT}
    return {
        name: analysis.feature_gap(spec, LLAMA_LENGTH, LLAMA_TEST).tolist()
        for name, spec in specs.items()
    }


def repeats() -> Numbers:
    """Where rounded features repeat, and after how many tokens several of them do together."""
    small = rope.frequencies(SMALL_RESONANT).wavelengths
    llama = rope.frequencies(LLAMA_RESONANT).wavelengths.astype(int).tolist()
    count = analysis.critical_dimension(LLAMA_RESONANT, LLAMA_LENGTH)
    return {
        "periods": small[small <= SMALL_LENGTH].astype(int).tolist(),
        "together": [analysis.uniqueness(SMALL_RESONANT, SMALL_LENGTH)],
        "log10 of LCM": [math.log10(math.lcm(*llama[:most])) for most in range(1, count + 1)],
    }


def coincidences() -> Numbers:
    """How much each unseen distance looks like a near one to a small head."""
    specs = {"plain": SMALL, "resonance": SMALL_RESONANT}
    return {
        name: analysis.coincidence(spec, SMALL_LENGTH, SMALL_TEST, near=6).tolist()
        for name, spec in specs.items()
    }


def critical_dimension() -> Numbers:
    """Pre-critical features of a head of 128 by training length, for three bases."""
    lengths = [2**exponent for exponent in range(4, 21)]
    numbers: Numbers = {"lengths": lengths}
    for theta in (1e4, 5e5, 1e7):
        spec = RopeSpec(head_dim=128, theta=theta)
        numbers[f"{theta:g}"] = [analysis.critical_dimension(spec, length) for length in lengths]
    return numbers


def _draw_wavelengths(figure: Figure, numbers: Numbers) -> None:
    axes = figure.add_subplot()
    axes.semilogy(numbers["plain"], color=PLAIN, label="RoPE")
    axes.semilogy(numbers["yarn"], color=PLAIN, linestyle="--", label="YaRN, factor 8")
    axes.semilogy(numbers["resonance"], ".", color=RESONANT, markersize=4, label="Resonance RoPE")
    (length,) = numbers["training length"]
    axes.axhline(length, color=LIGHT)
    axes.text(0, length * 1.15, f"training length, {length:,} tokens")
    seen = int(np.sum(np.array(numbers["plain"]) <= length))
    axes.axvline(seen - 0.5, color=LIGHT, linestyle=":")
    axes.text(seen - 1, 8, f"{seen} pre-critical features ", ha="right")
    axes.set(xlabel="feature", ylabel="wavelength (tokens)")
    axes.legend(loc="lower right", bbox_to_anchor=(1, 0.12))


def _draw_phase_slip(figure: Figure, numbers: Numbers) -> None:
    panels = figure.subplots(1, 3, width_ratios=[1, 1, 1.5])
    titles = {"plain": "RoPE, λ = 11.17", "resonance": "Resonance RoPE, λ = 11"}
    for axes, (name, title) in zip(panels[:2], titles.items(), strict=True):
        angles = 2 * math.pi * np.array(numbers[name])
        seen, unseen = angles[:SMALL_LENGTH], angles[SMALL_LENGTH:]
        axes.plot(1.12 * np.cos(unseen), 1.12 * np.sin(unseen), ".", color=PLAIN, markersize=4)
        axes.plot(np.cos(seen), np.sin(seen), ".", color=RESONANT, markersize=6)
        axes.set(title=title, aspect="equal", xlim=(-1.35, 1.35), ylim=(-1.35, 1.35))
        axes.axis("off")
    axes = panels[2]
    rounds = np.arange(len(numbers["plain slip"]))
    axes.plot(rounds, 360 * np.array(numbers["plain slip"]), "o-", color=PLAIN, markersize=3)
    axes.plot(rounds, 360 * np.array(numbers["resonance slip"]), "o-", color=RESONANT, markersize=3)
    axes.set(title="Slip every 11 tokens", xlabel="times 11 tokens", ylabel="degrees")
    axes.set_xticks(rounds[::2])


def _draw_gap(figure: Figure, numbers: Numbers) -> None:
    axes = figure.add_subplot()
    axes.plot(numbers["plain"], "o", color=PLAIN, markersize=4, label="RoPE")
    axes.plot(numbers["resonance"], ".", color=RESONANT, markersize=5, label="Resonance RoPE")
    axes.set_yscale("symlog", linthresh=1e-4)
    axes.set(xlabel="feature", ylabel="feature gap, 4,096 to 32,768 tokens", ylim=(-2e-5, 3))
    axes.legend(loc="upper left")


def _draw_repeats(figure: Figure, numbers: Numbers) -> None:
    left, right = figure.subplots(1, 2, width_ratios=[1.6, 1])
    periods = numbers["periods"]
    for row, period in enumerate(periods):
        returns = np.arange(0, 133, period)
        left.plot(returns, np.full(returns.size, row), "|", color=RESONANT, markersize=14)
    for (row, first), (other, second) in itertools.combinations(enumerate(periods), 2):
        both = math.lcm(first, second)
        for distance in range(both, 133, both):
            left.plot([distance] * 2, [row, other], "o-", color=PLAIN, markersize=4, linewidth=1)
    left.set_yticks(range(len(periods)), [f"λ = {period}" for period in periods])
    left.set(xlabel="distance (tokens)", ylim=(-0.6, len(periods) - 0.4))
    left.set_title(f"PosGen head: all three repeat after {numbers['together'][0]} tokens")
    left.grid(visible=False)
    exponents = numbers["log10 of LCM"]
    right.plot(np.arange(1, len(exponents) + 1), exponents, color=RESONANT)
    right.set(xlabel="fastest features", ylabel="log10 of their LCM", title="LLaMA 2 head")


def _draw_coincidences(figure: Figure, numbers: Numbers) -> None:
    axes = figure.add_subplot()
    distances = np.arange(SMALL_LENGTH, SMALL_TEST)
    labels = {"plain": ("RoPE", PLAIN), "resonance": ("Resonance RoPE", RESONANT)}
    for name, (label, color) in labels.items():
        axes.plot(distances, numbers[name], color=color, label=label)
        peak = int(np.argmax(numbers[name]))
        where = (distances[peak], numbers[name][peak])
        axes.plot(*where, "o", color=color, markersize=5)
        axes.annotate(f"{distances[peak]}", where, (0, 5), textcoords="offset points", color=color)
    axes.set(xlabel="distance (tokens)", ylabel="mean cosine", ylim=(None, 1.3))
    axes.legend(loc="upper left", ncols=2)


def _draw_critical_dimension(figure: Figure, numbers: Numbers) -> None:
    axes = figure.add_subplot()
    colors = (RESONANT, PLAIN, "#5b3fa0")
    for color, theta in zip(colors, ("10000", "500000", "1e+07"), strict=True):
        axes.semilogx(numbers["lengths"], numbers[theta], color=color, base=2, label=f"θ = {theta}")
    axes.axhline(64, color=LIGHT)
    axes.set(xlabel="training length (tokens)", ylabel="pre-critical features of 64")
    axes.legend()


FIGURES: dict[str, tuple[Callable[[], Numbers], Callable[[Figure, Numbers], None], float]] = {
    "wavelengths": (wavelengths, _draw_wavelengths, 3.3),
    "phase_slip": (phase_slip, _draw_phase_slip, 2.6),
    "gap": (gap, _draw_gap, 3.0),
    "repeats": (repeats, _draw_repeats, 2.6),
    "coincidences": (coincidences, _draw_coincidences, 3.0),
    "critical_dimension": (critical_dimension, _draw_critical_dimension, 3.0),
}


def models_table() -> str:
    """What rounding does to the heads of the presets, as a Markdown table."""
    rows = [
        "| model | head, base, context | pre-critical | distinct after rounding "
        "| largest move | all repeat after |",
        "| --- | --- | ---: | ---: | ---: | ---: |",
    ]
    for name in ("posgen_paper", "smollm2_135m", "llama2_7b", "llama3_8b"):
        preset = PRESETS[name]
        spec = preset.rope
        rounded = np.rint(rope.frequencies(spec).wavelengths)
        move = np.abs(rounded / rope.frequencies(spec).wavelengths - 1).max()
        together = analysis.uniqueness(spec, preset.context)
        rows.append(
            f"| `{name}` | {spec.head_dim}, {spec.theta:,.0f}, {preset.context:,} "
            f"| {analysis.critical_dimension(spec, preset.context)} of {rounded.size} "
            f"| {len(set(rounded.tolist()))} | {100 * move:.1f} % | {together:.2g} tokens |"
        )
    return "\n".join(rows) + "\n"


TABLES: dict[str, Callable[[], str]] = {"models": models_table}


def draw(name: str) -> bytes:
    """One figure as PNG, with its numbers in the text of the file."""
    compute, paint, height = FIGURES[name]
    numbers = compute()
    buffer = io.BytesIO()
    with style():
        figure = Figure(figsize=(7.2, height))
        paint(figure, numbers)
        # Without the Software entry the bytes do not name the matplotlib release.
        figure.savefig(
            buffer, format="png", metadata={"Software": None, "numbers": json.dumps(numbers)}
        )
    return buffer.getvalue()


def main() -> None:
    """Writes all figures and tables."""
    FOLDER.mkdir(exist_ok=True)
    for name in FIGURES:
        (FOLDER / f"{name}.png").write_bytes(draw(name))
    for name, table in TABLES.items():
        (FOLDER / f"{name}.md").write_text(table())


if __name__ == "__main__":
    main()
