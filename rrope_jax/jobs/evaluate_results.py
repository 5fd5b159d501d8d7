"""Writes the results of an evaluation."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from rrope_jax.evaluation import plots, report
from rrope_jax.evaluation.report import method_label as method_label
from rrope_jax.evaluation.units import SECONDS, Benchmark, UnitStore, seconds_of
from rrope_jax.io.stores import AnyPath
from rrope_jax.reporting.writing import write_results
from rrope_jax.run.workdir import Workdir

_LOG = logging.getLogger(__name__)


def write_finished(
    workdir: Workdir,
    constant: Mapping[str, Any],
    sections: Sequence[Benchmark[Any]],
    store: UnitStore,
) -> list[AnyPath]:
    """Writes the results of all finished units; returns the paths of the files.

    Args:
      workdir: The folder.
      constant: What the results begin with: what was run.
      sections: The benchmarks.
      store: Their finished units.
    """
    cost = [
        _cost(name, section, store)
        for name, section in zip(constant["setting"], sections, strict=True)
    ]
    missing = sum(len(section.units) for section in sections) - sum(each["units"] for each in cost)
    results = {**constant, "complete": missing == 0, "missing_units": missing, "cost": cost}
    for section in sections:
        results |= section.results(store)
    written = write_results(workdir, results, report.markdown(results), plots.plots(results))
    if missing == 0:
        _LOG.info("%s", report.headline(results))
    return written


def _cost(name: str, section: Benchmark[Any], store: UnitStore) -> dict[str, Any]:
    """The finished units of a section, and the seconds that they took."""
    finished = [result for _, result in section.finished(store)]
    return {"section": name, "units": len(finished), SECONDS: seconds_of(finished)}
