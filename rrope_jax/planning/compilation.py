"""Compiles for absent devices and collects the compiler's data on memory and transfers."""

import dataclasses
import logging
import re
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import jax

from rrope_jax.planning.quick import TooBigError, assign
from rrope_jax.planning.topology import Topology
from rrope_jax.planning.uncached import uncached
from rrope_jax.planning.workload import Workload

_LOG = logging.getLogger(__name__)
_LOG_EVERY_SECONDS = 15.0
_TOO_BIG = re.compile(r"Used (\S+) of (\S+) hbm|\((\S+)\) exceeds available HBM \((\S+)\)")

Keep = Callable[[jax.stages.Compiled], None]
"""Receives the compiled program."""

Summarize = Callable[[str], Any]
"""Extracts what a time estimate needs from a program's optimized HLO, as JSON values."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Memory:
    """A program's memory on a device in bytes, from XLA's buffer assignment.

    Attributes:
      arguments: the state and a batch.
      outputs: results that do not reuse the memory of donated arguments.
      temporaries: all intermediate values.
      peak: the maximum in use at any time.
    """

    arguments: int
    outputs: int
    temporaries: int
    peak: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Compilation:
    """The result of compiling a step.

    Attributes:
      seconds: compile time.
      memory: the program's memory; None if the compiler rejected the program as too big.
      refusal: the compiler's reason for that, with sizes.
      summary: summary of the program's text; None if the text is not available.
    """

    seconds: float
    memory: Memory | None
    refusal: str | None
    summary: Any | None

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Self:
        """The inverse of `dataclasses.asdict`."""
        memory = fields["memory"]
        return cls(**{**fields, "memory": None if memory is None else Memory(**memory)})


def compile_step(
    workload: Workload,
    topology: Topology,
    title: str,
    summarize: Summarize,
    *,
    quick: bool,
    keep: Keep | None = None,
) -> Compilation:
    """Compiles a program, logging progress.

    Args:
      workload: the program.
      topology: the devices.
      title: the program's name in the log.
      summarize: summarizes the program's text.
      quick: whether to stop once memory is assigned; see the module `quick`. The peak then counts
        all temporaries, although they are not alive at the same time.
      keep: receives the compiled program, unless `quick` stops the compiler before it exists.

    Raises:
      jax.errors.JaxRuntimeError, RuntimeError: the compiler failed for a reason other than the
        program's size.
    """
    start = time.monotonic()
    memory: Memory | None = None
    refusal: str | None = None
    text: str | None = None
    try:
        with _logging_progress(title):
            if quick:
                assigned, text = assign(workload, topology)
                memory = Memory(**assigned._asdict(), peak=sum(assigned))
            else:
                memory, text = _compile(workload, topology, keep)
    except TooBigError as error:
        sizes = _TOO_BIG.search(str(error))
        parts = [size for size in sizes.groups() if size] if sizes else []
        refusal = " of ".join(parts) or str(error).splitlines()[0]
    return Compilation(
        seconds=time.monotonic() - start,
        memory=memory,
        refusal=refusal,
        summary=None if text is None else summarize(text),
    )


def _compile(
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
        # on other platforms XLA's peak excludes temporaries
        peak=analysis.peak_memory_in_bytes if platform == "tpu" else total,
    )


def _text(dump: Path) -> str | None:
    """The optimized HLO dumped by the compiler; `as_text` fails for many TPU programs."""
    files = list(dump.glob("*after_optimizations.txt"))
    return max(files, key=lambda path: path.stat().st_size).read_text() if files else None


@contextmanager
def _logging_progress(title: str) -> Iterator[None]:
    """Periodically logs how long compilation has taken so far."""
    start, finished = time.monotonic(), threading.Event()

    def log() -> None:
        while not finished.wait(_LOG_EVERY_SECONDS):
            _LOG.info("compiling %s: %.0f s", title, time.monotonic() - start)

    _LOG.info("compiling %s", title)
    thread = threading.Thread(target=log, daemon=True)
    thread.start()
    try:
        yield
    finally:
        finished.set()
        thread.join()
