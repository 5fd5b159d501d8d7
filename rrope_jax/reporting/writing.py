"""The files of a job's results: results.json, report.md and the figures."""

import importlib.metadata
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import rrope_jax
from rrope_jax.run.workdir import Workdir


def write_results(
    workdir: Workdir, results: Mapping[str, Any], report: str, figures: Mapping[str, bytes]
) -> list[Path]:
    """Writes results.json, report.md and PNG files.

    Args:
      workdir: the folder.
      results: the content of results.json.
      report: the markdown of report.md.
      figures: PNG files by name.

    Returns:
      The paths, results.json first.
    """
    written = [
        workdir.write_json("results.json", results),
        workdir.write_text("report.md", report),
    ]
    return written + [workdir.write_bytes(name, data) for name, data in figures.items()]


def print_written(paths: list[Path]) -> None:
    """Names the files on stdout."""
    for path in paths:
        print(f"wrote {path}")


def versions(*distributions: str) -> dict[str, str]:
    """Releases of this package, which need not be installed, and of installed distributions."""
    return {
        "rrope_jax": rrope_jax.__version__,
        **{name: importlib.metadata.version(name) for name in distributions},
    }
