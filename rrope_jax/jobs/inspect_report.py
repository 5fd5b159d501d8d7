"""The output of `rrope inspect`: text, markdown and a figure.

Nothing here writes files: `plots` returns PNG bytes by file name.
"""

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from rrope_jax.inspection.runtimes import RELEASES, SAME
from rrope_jax.reporting.table import table

PLOT = "wavelengths.png"
_WIDTH = 100
_DEFAULT = "default"
# Facts in display order: name in `rope` or in the layer type's results, label.
_FACTS: Mapping[str, str] = MappingProxyType(
    {
        "scaling": "scaling",
        "theta": "theta",
        "factor": "factor",
        "resonance": "resonance",
        "attention_factor": "attention factor",
        "llama_4_scaling_beta": "position temperature",
        "position_temperature": "position temperature",
        "temperature_context": "its context",
        "far_positions": "far positions",
        "far_window": "at a distance from",
        "far_group": "in groups of",
        "far_context": "within a context of",
        "original_context": "original context",
        "context": "context",
        "window": "window",
        "head_dim": "rotated dimensions",
    }
)


def text(results: Mapping[str, Any]) -> str:
    """Formats results for the terminal."""
    lines = [f"{results['path']}: {_model(results)}"]
    lines += [line for note in results["notes"] for line in _wrapped(note, "  ")]
    for name, found in results["layer_types"].items():
        lines += ["", f"{name}{_layers(found)}"]
        rows = list(_facts(found))
        widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
        for label, value, key in rows:
            lines.append(f"  {label:{widths[0]}}  {value:{widths[1]}}  {key}".rstrip())
        if found["rope"] is not None:
            lines.append(f"  {'wavelengths':{widths[0]}}  {_wavelengths(found)}")
        lines += [
            line
            for one in found.get("against", ())
            for line in _wrapped(f"{one['file']}: {_comparison(one)}", "  ")
        ]
    lines += ["", *_not_read(results)]
    runtimes = list(_runtimes(results))
    lines += ["", "runtimes"] if runtimes else []
    width = max(map(len, RELEASES))
    for runtime, says in runtimes:
        first, *rest = textwrap.wrap(says, _WIDTH - width - 4)
        lines.append(f"  {runtime:{width}}  {first}")
        lines += [f"  {'':{width}}  {line}" for line in rest]
    return "\n".join(lines)


def markdown(results: Mapping[str, Any]) -> str:
    """Formats results as a report that shows the figure of the same folder."""
    parts = [f"# Positions of {results['path']}\n", f"{_model(results)}\n"]
    parts += [f"- {note}\n" for note in results["notes"]]
    for name, found in results["layer_types"].items():
        parts.append(f"## {name}{_layers(found)}\n")
        parts.append(table(("what", "value", "key"), _facts(found), text_columns=3) + "\n")
        if found["rope"] is not None:
            parts.append(f"Wavelengths: {_wavelengths(found)}.\n")
        parts += [f"- {one['file']}: {_comparison(one)}\n" for one in found.get("against", ())]
    parts += ["## Keys that are not read\n", "\n".join(_not_read(results)) + "\n"]
    parts.append("## Runtimes\n")
    rows = [(runtime, RELEASES[runtime], says) for runtime, says in _runtimes(results)]
    parts.append(table(("runtime", "looked at", "reads these keys"), rows, text_columns=3) + "\n")
    sources = dict.fromkeys(
        f"- {runtime}: {source}"
        for found in results["layer_types"].values()
        for runtime, urls in found["runtime_sources"].items()
        for source in urls
    )
    parts.append("Sources:\n\n" + "\n".join(sources) + "\n")
    parts.append(f"## Wavelengths\n\n![Wavelengths]({PLOT})\n")
    return "\n".join(parts)


def plots(results: Mapping[str, Any]) -> dict[str, bytes]:
    """Returns the figure as PNG bytes by file name, deterministic for given results."""
    from rrope_jax.jobs import inspect_figure  # late: text alone must not wait for matplotlib

    return inspect_figure.plots(results)


def _model(results: Mapping[str, Any]) -> str:
    kind = results["model_type"] or "no model_type"
    words = [f"{results['format']}, {kind}"]
    if results["context"] is not None:
        words.append(f"context {results['context']:,} tokens")
    return ", ".join(words)


def _layers(found: Mapping[str, Any]) -> str:
    layers = found["layers"]
    if layers is None:
        return ""
    noun = "layer" if len(layers) == 1 else "layers"
    return f": {len(layers)} {noun} ({_ranges(layers)})"


def _ranges(numbers: Sequence[int]) -> str:
    """Shortens runs of numbers: `0-3, 5, 7-9`."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def _facts(found: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Label, value and the keys that say so of each fact of a layer type."""
    spec = found["rope"]
    if spec is None:
        yield "rotation", "none", ", ".join(_keys_of(found, "layers"))
    values = {**(spec or {}), **{k: found[k] for k in _FACTS if k in found}}
    for name, label in _FACTS.items():
        value = values.get(name)
        if spec is None and name not in ("context", "window", "original_context"):
            continue
        if value is None and name not in ("window", "original_context"):
            continue
        if name == "resonance" and value in (False, "none"):
            continue
        if name == "head_dim":
            value = f"{found['rotary_dim']:,} of {found['head_dim']:,}"
        yield label, _value(name, value), ", ".join(_keys_of(found, name)) or _source(name, found)


def _source(name: str, found: Mapping[str, Any]) -> str:
    if name == "attention_factor":
        return "of the scaling"
    return _DEFAULT if name in (found["rope"] or ()) or name == "context" else ""


def _keys_of(found: Mapping[str, Any], fact: str) -> list[str]:
    """The keys that determine a fact, without those that only choose a scaling or a family."""
    names = (fact, "partial_rotary_factor") if fact == "head_dim" else (fact,)
    read = found["keys_read"]
    keys = [key for key, says in read.items() if not set(names).isdisjoint(says)]
    if fact != "scaling":
        keys = [key for key in keys if "scaling" not in read[key]]
    return [key for key in keys if key != "model_type"] or keys


def _value(name: str, value: Any) -> str:
    if value is None:
        return "none" if name == "window" else "not stated"
    if isinstance(value, bool | str):
        return str(value)
    if isinstance(value, int) or float(value).is_integer():
        return f"{int(value):,}"
    return f"{value:.6g}"


def _wavelengths(found: Mapping[str, Any]) -> str:
    values = found["wavelengths"]
    turning = [value for value in values if value is not None]
    if not turning:
        return "none"
    said = f"{min(turning):.4g} to {max(turning):,.0f} tokens in {len(values)} features"
    # Within a window, no pair of tokens is further apart.
    length = found["window"] or found["original_context"] or found["context"]
    if length is not None:
        within = sum(value <= length for value in turning)
        said += f", {within} of them turn within {length:,}"
    if still := len(values) - len(turning):
        said += f", {still} never turn"
    return said


def _comparison(one: Mapping[str, Any]) -> str:
    if one["same"]:
        return f"the same frequencies (largest difference {one['largest_difference']:.1g})"
    said = (
        f"differs: by {100 * one['largest_difference']:.3g} % in feature {one['feature']}, the most"
    )
    if one["angle"] is not None:
        said += f"; an angle is off by up to {one['angle']:.4g} radians within the context"
    return said + (f"; it is {one['is_also']}" if one["is_also"] else "")


def _not_read(results: Mapping[str, Any]) -> list[str]:
    (first, *_) = results["layer_types"].values()
    keys = first["keys_not_read"]
    if not keys:
        return ["every key about positions was read"]
    return ["not read:", *(f"  {key} = {str(value)[:60]}" for key, value in keys.items())]


def _runtimes(results: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """What each runtime makes of all types of layers."""
    types = results["layer_types"]
    for runtime in RELEASES:
        by_verdict: dict[str, list[str]] = {}
        for name, found in types.items():
            if runtime in found["runtimes"]:
                by_verdict.setdefault(found["runtimes"][runtime], []).append(name)
        if len(by_verdict) == 1:
            yield runtime, next(iter(by_verdict))
        elif by_verdict:
            ordered = sorted(by_verdict, key=lambda says: says == SAME)
            yield runtime, ". ".join(f"{', '.join(by_verdict[says])}: {says}" for says in ordered)


def _wrapped(sentence: str, indent: str) -> list[str]:
    return textwrap.wrap(sentence, _WIDTH, initial_indent=indent, subsequent_indent=f"{indent}  ")
