"""`rrope table`: joins ablations and evaluations to one table of methods."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from absl import flags

from rrope_jax.cli import backend
from rrope_jax.cli.command_line import one_flag_a_word, parse
from rrope_jax.cli.errors import UsageError, refusing
from rrope_jax.io import json_text
from rrope_jax.io.paths import any_path
from rrope_jax.posgen.results import Results
from rrope_jax.reporting.writing import print_written, write_results
from rrope_jax.run.workdir import Workdir

SUMMARY = (
    "Joins the results of rrope posgen and of rrope evaluate to one table and one plot, with a row "
    "for each method: accuracy on PosGen, and loss on text beside that of the base method. A row "
    "of text is named by the folder of its evaluation, which should be the method's name."
)

_RUNS = "--runs"


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns its exit code."""
    words = one_flag_a_word(argv, _RUNS)
    values = parse("table", SUMMARY, words, _define, config=False)
    ablations: dict[str, Results] = {}
    evaluations: dict[str, dict[str, Any]] = {}
    for folder in values.runs:
        found = _read(folder)
        if "cells" in found:
            with refusing(f"{_RUNS}: {folder}"):
                ablations[folder] = Results.from_json(found)
        else:
            evaluations[folder] = found
    from rrope_jax.jobs import table_report, table_rows  # late, as they import matplotlib

    with refusing(_RUNS):
        rows = table_rows.join(ablations, evaluations, values.base)
    if not rows:
        raise UsageError(f"{_RUNS}: no run has finished anything; run them on, then make the table")
    with Workdir.claim(values.workdir, {"table": values.base}) as workdir:
        backend.configure_logging()
        results = {
            "base": values.base,
            "runs": list(values.runs),
            "rows": [dataclasses.asdict(row) for row in rows],
        }
        print_written(
            write_results(workdir, results, table_report.markdown(rows), table_report.plots(rows))
        )
    return 0


def _read(folder: str) -> dict[str, Any]:
    path = any_path(folder) / "results.json"
    try:
        found = json_text.parse(path.read_bytes())
    except (OSError, ValueError) as error:
        raise UsageError(
            f"{_RUNS}: {path} cannot be read ({error}); give workdirs of rrope posgen and of "
            "rrope evaluate"
        ) from error
    if not isinstance(found, dict) or not ("cells" in found or "perplexity_by_document" in found):
        raise UsageError(
            f"{_RUNS}: {path} has neither cells of rrope posgen nor perplexities of rrope evaluate"
        )
    return found


def _define(values: flags.FlagValues) -> None:
    about = "workdirs, after one another"
    flags.DEFINE_multi_string("runs", None, about, flag_values=values, required=True)
    values["runs"].help = about  # absl adds that the flag can be repeated, which is not needed
    flags.DEFINE_string(
        "base", "yarn", "the method whose loss others are compared with", flag_values=values
    )
    flags.DEFINE_string("workdir", None, "folder of the results", flag_values=values, required=True)
