"""The paper's PosGen experiment: both protocols, all tasks and methods, five seeds.

`rrope posgen` goes on where it was, whatever ended it. Its finished trainings are carried in the
measurement `grid`, so that a folder of results is enough for another machine to go on with.
"""

import dataclasses
from pathlib import Path
from typing import Any

from tests.accelerator import precision
from tests.accelerator.call import Call

_SECONDS = 90.0  # in which something is gained


def run(call: Call) -> None:
    """One measurement, `grid`, in the mode that `precision` decides for, which comes first."""
    mode = precision.run(dataclasses.replace(call, part="precision"))
    if call.measured("grid") is not None:
        return
    call.check_time("grid", _SECONDS)
    # not as a measurement: what fails goes on in the next call, with what is finished
    outcome = _train(call, mode)
    call.measure("grid", 0.0, lambda: outcome)


def workdir(folder: Path) -> Path:
    """Of `rrope posgen`, in the folder of all parts."""
    return folder / "posgen_paper" / "workdir"


def _train(call: Call, mode: str) -> dict[str, Any]:
    results = call.rrope_posgen(workdir(call.workdir.path), "paper", *precision.MODES[mode])
    seconds = {  # of each training once, whatever it was tested as
        (cell["task"], cell["trained_as"], cell["seed"]): cell["seconds"]
        for cell in results["cells"]
    }
    return {
        "mode": mode,
        "complete": results["complete"],
        "cells": len(results["cells"]),
        "trainings": len(seconds),
        "device_seconds": sum(seconds.values()),
    }
