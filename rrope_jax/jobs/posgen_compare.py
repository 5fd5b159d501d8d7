"""`rrope posgen --compare`: predictions beside the results of finished or partial runs."""

from collections.abc import Sequence

from rrope_jax.cli import backend
from rrope_jax.cli.errors import UsageError
from rrope_jax.io import json_text
from rrope_jax.io.paths import absolute, any_path
from rrope_jax.jobs.rope_fields import spec_of_method
from rrope_jax.jobs.rope_groups import merge
from rrope_jax.posgen.results import Results
from rrope_jax.reporting.writing import print_written, write_results
from rrope_jax.rope import RopeSpec
from rrope_jax.run.workdir import Workdir

FLAG = "--compare"


def compare(folders: Sequence[str], workdir_path: str) -> int:
    """Writes the report of several runs; returns the exit code.

    Raises:
      UsageError: A folder has no results of `rrope posgen`, or two contradict each other.
    """
    from rrope_jax.posgen import comparison, comparison_report  # late: imports matplotlib

    runs = [_read(folder) for folder in folders]
    try:
        rows = comparison.table_rows(runs, spec_of)
    except ValueError as error:
        raise UsageError(f"{FLAG}: {error}") from error
    if not rows:
        raise UsageError(f"{FLAG}: no run has a result that is predicted; finish a training first")
    with Workdir.claim(workdir_path, {"compare": [str(absolute(f)) for f in folders]}) as workdir:
        backend.configure_logging()
        written = write_results(
            workdir,
            comparison.to_json(rows),
            comparison_report.markdown(rows),
            comparison_report.plots(rows),
        )
        print_written(written)
    return 0


def spec_of(results: Results, protocol: str, method: str) -> RopeSpec:
    """Returns the embedding of a method in a run, as `PosgenSetting` builds it."""
    setting = results.setting
    fields, model = setting["rope"], setting["model"]
    if protocol == "scaled_at_test":
        fields = merge(fields, setting["rope_at_test"])
    head_dim = model.get("head_dim") or model["d_model"] // model["num_heads"]
    return spec_of_method(fields, "rope", method, head_dim=head_dim)


def _read(folder: str) -> Results:
    path = any_path(folder) / "results.json"
    try:
        return Results.from_json(json_text.parse(path.read_bytes()))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(
            f"{FLAG}: {path} cannot be read ({error}); give workdirs of rrope posgen"
        ) from error
