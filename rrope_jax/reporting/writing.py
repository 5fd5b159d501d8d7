"""Writes a job's results: results.json, report.md and the figures."""

import importlib.metadata
from collections.abc import Mapping, Sequence
from typing import Any

import rrope_jax
from rrope_jax.io.stores import AnyPath
from rrope_jax.run.workdir import Workdir


def write_results(
    workdir: Workdir, results: Mapping[str, Any], report: str, figures: Mapping[str, bytes]
) -> list[AnyPath]:
    """Writes results.json, report.md and PNG files.

    Args:
      workdir: The folder.
      results: The content of results.json.
      report: The content of report.md.
      figures: PNG bytes by file name.

    Returns:
      The paths of the files, results.json first.
    """
    written = [
        workdir.write_json("results.json", results),
        workdir.write_text("report.md", report),
    ]
    return written + [workdir.write_bytes(name, data) for name, data in figures.items()]


def print_written(paths: Sequence[AnyPath]) -> None:
    """Prints the paths to stdout."""
    for path in paths:
        print(f"wrote {path}")


def versions(*distributions: str) -> dict[str, str]:
    """Returns the versions of this package (even if not installed) and of the distributions."""
    return {
        "rrope_jax": rrope_jax.__version__,
        **{name: importlib.metadata.version(name) for name in distributions},
    }
