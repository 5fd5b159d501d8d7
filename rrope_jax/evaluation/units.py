"""Benchmarks as units of work that are kept one by one, so that a killed run can resume.

A benchmark plans all its units when it is made, before anything is computed; `run_units` computes
those that a store does not have; and `Benchmark.results` sums up what the store has.
"""

import abc
import dataclasses
import hashlib
import json
import logging
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Generic, Protocol, TypeVar

import jax

from rrope_jax.reporting.quantities import clock

_LOG = logging.getLogger(__name__)
_POLL_SECONDS = 0.02


Part = TypeVar("Part")
"""What a benchmark has to know of a unit to sum up its result, such as its document."""


@dataclasses.dataclass(frozen=True)
class Unit(Generic[Part]):
    """One piece of an evaluation, such as a document at a length.

    Attributes:
      name: unique among all units that a workdir may see, whatever the config asks for: it holds
        what the result depends on besides the model.
      flops: rough cost, for the time left.
      run: computes the result, JSON-able.
      part: what the unit is of.
    """

    name: str
    flops: float
    run: Callable[[], dict[str, Any]]
    part: Part


class UnitStore(Protocol):
    """Where results are kept, by unit name."""

    def get(self, name: str) -> dict[str, Any] | None:
        """What `put` kept, in this process or an earlier one; None when there is nothing."""

    def put(self, name: str, result: Mapping[str, Any]) -> None:
        """Keeps a result."""


class Benchmark(abc.ABC, Generic[Part]):
    """One kind of evaluation of a decoder.

    Attributes:
      units: its units of work, in the order in which they should run.
    """

    units: Sequence[Unit[Part]]

    @abc.abstractmethod
    def results(self, store: UnitStore) -> dict[str, Any]:
        """Its entries of results.json, from the units that the store has."""

    def finished(self, store: UnitStore) -> Iterator[tuple[Part, dict[str, Any]]]:
        """The parts that the store has, and their results."""
        for unit in self.units:
            if (result := store.get(unit.name)) is not None:
                yield unit.part, result


def run_units(units: Sequence[Unit[Any]], store: UnitStore) -> None:
    """Runs the units that the store does not have, in order, and keeps each as it finishes."""
    left = [unit for unit in units if store.get(unit.name) is None]
    if not left:
        _LOG.info("all units are finished already")
    elif len(left) < len(units):
        _LOG.info("%d of %d units are finished already", len(units) - len(left), len(units))
    flops_left = sum(unit.flops for unit in left)
    flops_done = 0.0
    start = time.monotonic()
    for number, unit in enumerate(left, start=1):
        began = time.monotonic()
        _LOG.info("%d of %d: %s", number, len(left), unit.name)
        store.put(unit.name, unit.run())
        flops_done += unit.flops
        flops_left -= unit.flops
        now = time.monotonic()
        remaining = (now - start) / flops_done * flops_left
        _LOG.info("    took %s, about %s left", clock(now - began), clock(remaining))


def unit_name(section: str, parts: Sequence[Any], depends_on: Any) -> str:
    """`section/part-part-digest`, safe as a file name.

    Args:
      section: the kind of evaluation.
      parts: what a reader should see.
      depends_on: JSON-able; all that the result depends on besides the model.
    """
    shown = "-".join(re.sub(r"[^A-Za-z0-9._]+", "_", str(part))[:60] for part in parts)
    digest = hashlib.blake2b(json.dumps(depends_on).encode(), digest_size=6).hexdigest()
    return f"{section}/{shown}-{digest}"


def wait(arrays: Any) -> None:
    """Waits until arrays are computed, letting signals through meanwhile.

    A thread inside the runtime does not run Python's signal handlers, and one forward pass may take
    minutes.
    """
    for array in jax.tree.leaves(arrays):
        while not array.is_ready():
            time.sleep(_POLL_SECONDS)
