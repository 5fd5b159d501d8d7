"""Benchmarks as units of work whose results are stored one by one, so a killed run can resume.

A benchmark plans all its units on construction, before anything is computed. `run_units` computes
those missing from a store, and `Benchmark.results` summarizes what the store has.
"""

import abc
import dataclasses
import hashlib
import json
import logging
import re
import time
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Generic, Protocol, TypeVar

import jax

from rrope_jax.reporting.quantities import clock

_LOG = logging.getLogger(__name__)
_POLL_SECONDS = 0.02
SECONDS = "seconds"
"""The key of a result that `run_units` adds, and of entries of results.json made from results."""


Part = TypeVar("Part")
"""What a benchmark needs to know about a unit to summarize its result, such as its document."""


@dataclasses.dataclass(frozen=True)
class Unit(Generic[Part]):
    """One piece of an evaluation, such as one document at one length.

    Attributes:
      name: unique in a workdir under any config, since it covers everything that the result depends
        on besides the model.
      flops: rough cost, for estimating the remaining time.
      compute: computes the results, as JSON values, of several units at once, from their inputs.
      inputs: those of this unit.
      part: the subject of the unit.
      shape: units of the same `compute` and shape can be in one batch; None if this unit has to be
        computed alone.
    """

    name: str
    flops: float
    compute: Callable[[Sequence[Any]], Sequence[dict[str, Any]]]
    inputs: Any
    part: Part
    shape: Hashable = None

    def run(self) -> dict[str, Any]:
        """Computes the result of this unit alone."""
        (result,) = self.compute([self.inputs])
        return result


class UnitStore(Protocol):
    """Stores results by unit name."""

    def get(self, name: str) -> dict[str, Any] | None:
        """The result stored in this process or an earlier one; None if there is no result."""

    def put(self, name: str, result: Mapping[str, Any]) -> None:
        """Stores a result."""


class Benchmark(abc.ABC, Generic[Part]):
    """One kind of evaluation of a decoder.

    Attributes:
      units: its units of work, in execution order.
    """

    units: Sequence[Unit[Part]]

    @abc.abstractmethod
    def results(self, store: UnitStore) -> dict[str, Any]:
        """Its entries of results.json, from the finished units in the store."""

    def finished(self, store: UnitStore) -> Iterator[tuple[Part, dict[str, Any]]]:
        """The parts of the finished units in the store, and their results."""
        for unit in self.units:
            if (result := store.get(unit.name)) is not None:
                yield unit.part, result


def run_units(
    units: Sequence[Unit[Any]],
    store: UnitStore,
    *,
    batch_size: int = 1,
    stopping: Callable[[], bool] = lambda: False,
) -> bool:
    """Runs the units missing from the store, in order, and stores each result as it finishes.

    A result gets the seconds that it took beside it; those of a batch are shared by FLOPs.

    Args:
      units: the units.
      store: where results are looked up and stored.
      batch_size: units of the same shape to compute at once, at most.
      stopping: whether to stop; called before every batch.

    Returns:
      Whether all units are finished.
    """
    left = [unit for unit in units if store.get(unit.name) is None]
    if not left:
        _LOG.info("all units are finished already")
    elif len(left) < len(units):
        _LOG.info("%d of %d units are finished already", len(units) - len(left), len(units))
    flops_left = sum(unit.flops for unit in left)
    flops_done = 0.0
    start = time.monotonic()
    done = 0
    for batch in _batches(left, batch_size):
        if stopping():
            return False
        began = time.monotonic()
        first, others = batch[0], len(batch) - 1
        numbers = f"{done + 1} to {done + len(batch)}" if others else f"{done + 1}"
        more = f" and {others} more" if others else ""
        _LOG.info("%s of %d: %s%s", numbers, len(left), first.name, more)
        results = first.compute([unit.inputs for unit in batch])
        seconds_a_flop = (time.monotonic() - began) / sum(unit.flops for unit in batch)
        for unit, result in zip(batch, results, strict=True):
            store.put(unit.name, {**result, SECONDS: round(seconds_a_flop * unit.flops, 3)})
            flops_done += unit.flops
            flops_left -= unit.flops
        done += len(batch)
        now = time.monotonic()
        remaining = (now - start) / flops_done * flops_left
        _LOG.info("    took %s, about %s left", clock(now - began), clock(remaining))
    return True


def seconds_of(results: Iterable[Mapping[str, Any]]) -> float | None:
    """The seconds that results took, compiling included; None where an earlier release made one."""
    seconds = [result.get(SECONDS) for result in results]
    known = [each for each in seconds if each is not None]
    return round(sum(known), 3) if len(known) == len(seconds) else None


def _batches(units: Sequence[Unit[Any]], batch_size: int) -> list[list[Unit[Any]]]:
    """Puts units of the same shape into batches, in the order of the first unit of each."""
    batches: list[list[Unit[Any]]] = []
    open_batches: dict[Hashable, list[Unit[Any]]] = {}
    for unit in units:
        kind = (unit.compute, unit.shape)
        batch = open_batches.get(kind)
        if batch is None or unit.shape is None or len(batch) == batch_size:
            batch = open_batches[kind] = []
            batches.append(batch)
        batch.append(unit)
    return batches


def unit_name(section: str, parts: Sequence[Any], depends_on: Any) -> str:
    """`section/part-part-digest`, safe as a file name.

    Args:
      section: the kind of evaluation.
      parts: the human-readable parts of the name.
      depends_on: everything that the result depends on besides the model, as JSON values.
    """
    shown = "-".join(re.sub(r"[^A-Za-z0-9._]+", "_", str(part))[:60] for part in parts)
    digest = hashlib.blake2b(json.dumps(depends_on).encode(), digest_size=6).hexdigest()
    return f"{section}/{shown}-{digest}"


def wait(arrays: Any) -> None:
    """Waits until arrays are computed, while still handling signals.

    Python's signal handlers do not run while its main thread is inside the runtime, and a forward
    pass may take minutes.
    """
    for array in jax.tree.leaves(arrays):
        while not array.is_ready():
            time.sleep(_POLL_SECONDS)
