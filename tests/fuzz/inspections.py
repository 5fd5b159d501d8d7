"""`rrope inspect`: config.json and GGUF files, all that is printed of them."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rrope_jax.inspection.sources import inspect
from rrope_jax.jobs import inspect_report
from rrope_jax.jobs.inspect import results_of
from tests.fuzz import gguf_files, rope_keys
from tests.fuzz.judging import Target


def _seeds() -> Sequence[dict[str, Any]]:
    return [*rope_keys.TARGET.seeds(), *gguf_files.TARGET.seeds()]


def _run(folder: Path) -> None:
    ggufs = sorted(folder.glob("*.gguf"))
    results = results_of(inspect(ggufs[0] if ggufs else folder))
    json.dumps(results, allow_nan=False)
    assert inspect_report.text(results)
    assert inspect_report.markdown(results)


TARGET = Target("inspections", _seeds, _run)
