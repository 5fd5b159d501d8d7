"""The parts of `launch/accelerator.sh`, in order of value."""

import importlib
from collections.abc import Callable
from typing import NamedTuple

from tests.accelerator.call import Call


class Part(NamedTuple):
    """Some measurements.

    Attributes:
      title: what the report calls it.
      minutes: what it should take on one H100, compiling included.
      least: seconds without which nothing of it is worth beginning.
      module: whose `run` measures.
      once: whether it is done once for all calls; the device is looked at in each.
    """

    title: str
    minutes: float
    least: float
    module: str
    once: bool = True

    @property
    def run(self) -> Callable[[Call], object]:
        """Makes what is missing of its measurements; raises OutOfTimeError for what it leaves."""
        return importlib.import_module(f"tests.accelerator.{self.module}").run


PARTS = {
    "device": Part("Device and versions", 0.3, 10, "device", once=False),
    "tests": Part("Tests on the device", 3.0, 60, "device_tests"),
    "precision": Part("PosGen in fast products, beside float32", 3.5, 60, "precision"),
    "posgen_paper": Part("The paper's PosGen experiment", 12.0, 90, "posgen_paper"),
    "beside": Part("Beside PyTorch and transformers", 5.0, 40, "beside"),
    "plan": Part("Measured steps beside planned ones", 3.0, 40, "planned"),
    "weights": Part("Weights in float32, bfloat16 and int8", 2.0, 40, "weights"),
    "ruler": Part("RULER by length and batch", 6.0, 60, "ruler"),
    "store": Part("A checkpoint to an object store and back", 1.5, 60, "stored"),
}
