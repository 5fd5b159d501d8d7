"""Compiling for devices that are not there: what the compiler says of memory and transfers."""

import dataclasses
import logging
import re
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax

from rrope_jax.planning.quick import TooBigError, assign
from rrope_jax.planning.roofline import collectives
from rrope_jax.planning.roofline.collectives import Collective
from rrope_jax.planning.topology import Topology
from rrope_jax.planning.uncached import uncached
from rrope_jax.planning.workload import Workload

_LOG = logging.getLogger(__name__)
_SAY_EVERY_SECONDS = 15.0
_TOO_BIG = re.compile(r"Used (\S+) of (\S+) hbm|\((\S+)\) exceeds available HBM \((\S+)\)")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Memory:
    """A program's memory on a device in bytes, by XLA's buffer assignment.

    Attributes:
      arguments: the state and a batch.
      outputs: results that do not take the place of donated arguments.
      temporaries: everything in between.
      peak: the most that is alive at a time.
    """

    arguments: int
    outputs: int
    temporaries: int
    peak: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Compilation:
    """What compiling a step told.

    Attributes:
      seconds: it took.
      memory: None where the compiler refused the program for its size.
      refusal: why it did, with the sizes.
      collectives: of the program; None where its text cannot be had.
    """

    seconds: float
    memory: Memory | None
    refusal: str | None
    collectives: tuple[Collective, ...] | None


Keep = Callable[[jax.stages.Compiled], None]
"""What is done with a compiled program."""


def compile_step(
    workload: Workload, topology: Topology, what: str, *, quick: bool, keep: Keep | None = None
) -> Compilation:
    """Compiles a program, saying so while it lasts.

    Args:
      workload, topology: what for which devices.
      what: names it in the log.
      quick: whether to stop when its memory is assigned: see `quick`. Its peak then counts all
        temporaries, which are not alive at the same time.
      keep: gets the compiled program, if there is one in the end: not if `quick`.

    Raises:
      jax.errors.JaxRuntimeError, RuntimeError: the compiler failed, and not for the program's size.
    """
    began = time.monotonic()
    memory: Memory | None = None
    refusal: str | None = None
    found: tuple[Collective, ...] | None = None
    try:
        with _saying(what):
            memory, text = (
                _assigned(workload, topology) if quick else _compiled(workload, topology, keep)
            )
        found = None if text is None else _collectives(text)
    except TooBigError as error:
        sizes = _TOO_BIG.search(str(error))
        parts = [size for size in sizes.groups() if size] if sizes else []
        refusal = " of ".join(parts) or str(error).splitlines()[0]
    return Compilation(
        seconds=time.monotonic() - began, memory=memory, refusal=refusal, collectives=found
    )


def _assigned(workload: Workload, topology: Topology) -> tuple[Memory, str]:
    assigned, text = assign(workload, topology)
    return Memory(**assigned._asdict(), peak=sum(assigned)), text


def _compiled(
    workload: Workload, topology: Topology, keep: Keep | None
) -> tuple[Memory, str | None]:
    lowered = workload.lower(workload.make_mesh(topology.devices()))
    with tempfile.TemporaryDirectory() as dump, uncached():
        try:
            compiled = lowered.compile({"xla_dump_to": dump, "xla_dump_hlo_as_text": True})
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            raise TooBigError(str(error)) from error
        if keep is not None:
            keep(compiled)
        return _memory(compiled, topology.chip.platform), _text(Path(dump))


def _memory(compiled: Any, platform: str) -> Memory:
    analysis = compiled.memory_analysis()
    outputs = analysis.output_size_in_bytes - analysis.alias_size_in_bytes
    total = analysis.argument_size_in_bytes + outputs + analysis.temp_size_in_bytes
    return Memory(
        arguments=analysis.argument_size_in_bytes,
        outputs=outputs,
        temporaries=analysis.temp_size_in_bytes,
        # of other platforms it leaves out temporaries
        peak=analysis.peak_memory_in_bytes if platform == "tpu" else total,
    )


def _text(dump: Path) -> str | None:
    """The optimized HLO that the compiler wrote; `as_text` fails on many programs of TPUs."""
    files = list(dump.glob("*after_optimizations.txt"))
    return max(files, key=lambda path: path.stat().st_size).read_text() if files else None


def _collectives(text: str) -> tuple[Collective, ...]:
    """Those of a program, equal ones as one."""
    times: Counter[Collective] = Counter()
    for collective in collectives.read(text):
        times[dataclasses.replace(collective, times=1)] += collective.times
    return tuple(dataclasses.replace(once, times=count) for once, count in times.items())


@contextmanager
def _saying(what: str) -> Iterator[None]:
    """Logs now and then how long it has been going on."""
    began, over = time.monotonic(), threading.Event()

    def say() -> None:
        while not over.wait(_SAY_EVERY_SECONDS):
            _LOG.info("compiling %s: %.0f s", what, time.monotonic() - began)

    _LOG.info("compiling %s", what)
    thread = threading.Thread(target=say, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
