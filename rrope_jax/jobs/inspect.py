"""`rrope inspect`: what the positions of a checkpoint are, and which runtimes agree."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import flags

from rrope_jax.cli.command_line import parse
from rrope_jax.cli.errors import UsageError, refusing
from rrope_jax.inspection import against
from rrope_jax.inspection.positions import unscaled
from rrope_jax.inspection.sources import Inspection, inspect
from rrope_jax.io.paths import any_path
from rrope_jax.io.stores import is_store
from rrope_jax.io.target import write_file
from rrope_jax.reporting.writing import print_written, write_results
from rrope_jax.rope import frequencies
from rrope_jax.run.workdir import Workdir

SUMMARY = (
    "Prints what the positions of a checkpoint are: for each type of layer the rotary embedding, "
    "its scaling and temperature, the window and the contexts, which key of the file says so, "
    "which keys about positions are not read, and which runtimes read the file in the same way. "
    "PATH is a checkpoint of any format, or only its config.json, of any architecture."
)


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns its exit code."""
    values = parse("inspect", SUMMARY, argv, _define, config=False, positional="path")
    if values.plot is not None and not values.plot.endswith(".png"):
        raise UsageError(f"--plot={values.plot}: its name has to end in .png")
    with refusing("--path"):
        found = inspect(values.path)
    results = results_of(found, values.against)
    from rrope_jax.jobs import inspect_report  # late: errors must not wait for matplotlib

    if values.workdir is not None:
        path = values.path if is_store(values.path) else str(Path(values.path).absolute())
        identity = {"path": path, "against": values.against}
        with Workdir.claim(values.workdir, identity) as workdir:
            text = inspect_report.markdown(results)
            written = write_results(workdir, results, text, inspect_report.plots(results))
    print(
        json.dumps(results, indent=2, allow_nan=False)
        if values.json
        else inspect_report.text(results)
    )
    if values.plot is not None:
        (data,) = inspect_report.plots(results).values()
        try:
            write_file(any_path(values.plot), data)
        except OSError as error:
            raise UsageError(f"--plot={values.plot}: {error.strerror or error}") from error
    if values.workdir is not None and not values.json:
        print_written(written)
    return 0


def results_of(found: Inspection, against_files: Sequence[str] = ()) -> dict[str, Any]:
    """Returns the content of `--json` and of results.json.

    Args:
      found: The inspection.
      against_files: Files with frequencies to compare with.

    Raises:
      UsageError: A file cannot be read, or fits no type of layer.
    """
    compared = _compare(found, against_files)
    positions = found.positions
    results: dict[str, Any] = _finite(
        {
            "path": found.path,
            "format": found.format,
            "model_type": found.model_type,
            "context": positions.context,
            "original_context": positions.original_context,
            "notes": list(found.notes),
            "layer_types": {
                name: _layer_type(found, name) | ({"against": compared[name]} if compared else {})
                for name in positions.by_type
            },
        }
    )
    return results


def _layer_type(found: Inspection, name: str) -> dict[str, Any]:
    positions, part = found.positions, found.positions.by_type[name]
    spec = part.rope
    embedding: dict[str, Any] = {
        "scaling": None,
        "theta": None,
        "rotary_dim": 0,
        "head_dim": None,
        "attention_factor": None,
        "wavelengths": [],
    }
    if spec is not None:
        table = frequencies(spec, positions.context)
        within = frequencies(spec).wavelengths.tolist()
        embedding = {
            "scaling": spec.scaling,
            "theta": spec.theta,
            "rotary_dim": spec.rotary_dim,
            "head_dim": spec.head_dim,
            "attention_factor": table.attention_factor,
            "wavelengths": table.wavelengths.tolist(),
        }
        if within != table.wavelengths.tolist():
            embedding["wavelengths_within_original_context"] = within
        if spec.scaling != "none":
            plain = frequencies(unscaled(spec)).wavelengths.tolist()
            embedding["wavelengths_without_scaling"] = plain
    verdicts = found.runtimes.get(name, {})
    return {
        **embedding,
        "original_context": positions.original_of(name),
        "context": positions.context,
        "window": part.window,
        "layers": None if part.layers is None else list(part.layers),
        "rope": None if spec is None else spec.fields(),
        "keys_read": {key: list(says) for key, says in found.keys.read[name].items()},
        "keys_not_read": dict(found.keys.not_read),
        "runtimes": {runtime: says for runtime, (says, _) in verdicts.items()},
        "runtime_sources": {runtime: list(sources) for runtime, (_, sources) in verdicts.items()},
    }


def _finite(value: Any) -> Any:
    """Replaces numbers that JSON cannot say by None: wavelengths of features that never turn."""
    if isinstance(value, Mapping):
        return {str(key): _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _compare(found: Inspection, files: Sequence[str]) -> Mapping[str, list[dict[str, Any]]]:
    compared: dict[str, list[dict[str, Any]]] = {name: [] for name in found.positions.by_type}
    for file in files:
        with refusing("--against"):
            vector = against.load(file)
            mismatches = []
            for name in found.positions.by_type:
                try:
                    comparison = against.compare(vector, found.positions, name)
                except ValueError as error:
                    mismatches.append(error)
                    continue
                if comparison is not None:
                    compared[name].append({"file": file, **vars(comparison)})
            if mismatches:
                raise ValueError(f"{file}: {mismatches[0]}")
    return compared if files else {}


def _define(values: flags.FlagValues) -> None:
    flags.DEFINE_string(
        "path",
        None,
        "GGUF file, Hugging Face folder, model folder, training workdir, or a config.json alone",
        flag_values=values,
        required=True,
    )
    flags.DEFINE_bool("json", False, "print JSON instead of text", flag_values=values)
    flags.DEFINE_multi_string(
        "against",
        [],
        ".npy file with the inv_freq of another implementation to compare; may be repeated",
        flag_values=values,
    )
    flags.DEFINE_string("workdir", None, "folder for the report with a plot", flag_values=values)
    flags.DEFINE_string("plot", None, "PNG file for the plot alone", flag_values=values)
