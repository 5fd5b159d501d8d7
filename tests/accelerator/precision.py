"""Whether PosGen may be trained with faster products: one cell in each, beside float32.

The cell is Chain-of-Thought with plain RoPE, five seeds, in a whole training of 780 steps: the same
data, initial parameters and batches in every mode. A mode agrees where the means of what is
measured differ from those of float32 by no more than the spread of float32 between its seeds.
"""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from tests.accelerator.call import Call

REFERENCE = "float32"
MODES = {
    # the fastest first: bfloat16 halves what is read and written, too
    "bfloat16": ("--config.model.compute_dtype=bfloat16",),
    "tensorfloat32": ("--config.matmul_precision=tensorfloat32",),
    REFERENCE: ("--config.matmul_precision=float32",),
}
"""Mode -> flags of `rrope posgen`. On TPUs, `tensorfloat32` is three passes of bfloat16."""

COMPARED = ("train_loss", "id_accuracy", "ood_accuracy", "ood_loss")
_SECONDS = 100.0  # a mode's


class Comparison(NamedTuple):
    """One quantity of a mode beside that of float32.

    Attributes:
      mean, reference: over the seeds.
      spread: sample standard deviation of the reference.
    """

    mean: float
    reference: float
    spread: float

    @property
    def agrees(self) -> bool:
        """Whether the difference stays within the spread."""
        return abs(self.mean - self.reference) <= self.spread


def run(call: Call) -> str:
    """A measurement for each mode, float32 first, and `decision`; returns the mode decided for."""
    measured = {}
    for mode in sorted(MODES, key=lambda mode: mode != REFERENCE):
        measured[mode] = call.measure(mode, _SECONDS, lambda mode=mode: _train(call, mode))
    mode: str = call.measure("decision", 0.0, lambda: decide(measured))["mode"]
    return mode


def _train(call: Call, mode: str) -> dict[str, Any]:
    workdir = call.folder / f"{mode}_workdir"
    cells = call.rrope_posgen(workdir, "cell", *MODES[mode])["cells"]
    return {"seeds": [_of_seed(cell) for cell in sorted(cells, key=lambda cell: cell["seed"])]}


def _of_seed(cell: Mapping[str, Any]) -> dict[str, float]:
    """What is compared, and the time of its share of the device."""
    names = [name for name in COMPARED if name != "train_loss"]
    return {
        "seed": cell["seed"],
        "train_loss": cell["train_loss"][-1],
        **{name: cell[name] for name in names},
        "seconds": cell["seconds"],
    }


def compare(mode: Sequence[Mapping[str, float]], reference: Sequence[Mapping[str, float]]) -> Any:
    """Quantity -> `Comparison`, of two lists of seeds."""
    made = {}
    for name in COMPARED:
        values, expected = ([seed[name] for seed in seeds] for seeds in (mode, reference))
        made[name] = Comparison(
            statistics.fmean(values), statistics.fmean(expected), statistics.stdev(expected)
        )
    return made


def decide(measured: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The fastest mode that agrees with float32, and why the others are not taken."""
    reference = measured[REFERENCE].get("seeds")
    why = {}
    for mode in MODES:
        seeds = measured[mode].get("seeds")
        if mode == REFERENCE:
            return {"mode": mode, "why_not": why}
        if reference is None or seeds is None:
            why[mode] = "it was not measured beside float32"
            continue
        differing = [
            f"{name} {found.mean:.4g} for {found.reference:.4g} ± {found.spread:.2g}"
            for name, found in compare(seeds, reference).items()
            if not found.agrees
        ]
        if not differing:
            return {"mode": mode, "why_not": why}
        why[mode] = "it differs by more than the spread: " + ", ".join(differing)
    raise AssertionError("float32 is one of the modes")
