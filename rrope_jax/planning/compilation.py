"""Compiling for absent devices: what the compiler says about memory and transfers."""

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
"""Makes of a program's optimized HLO what an estimate of its time needs, as JSON values."""


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
    """What compiling a step revealed.

    Attributes:
      seconds: that it took.
      memory: None if the compiler refused the program for its size.
      refusal: why it did, with the sizes.
      summary: of the program's text; None if the text is not available.
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
    """Compiles a program, logging progress meanwhile.

    Args:
      workload: the program.
      topology: the devices.
      title: names it in the log.
      summarize: reads the program's text.
      quick: whether to stop once memory is assigned: see `quick`. The peak then counts all
        temporaries, although they are not alive at the same time.
      keep: receives the compiled program, unless `quick` stops before there is one.

    Raises:
      jax.errors.JaxRuntimeError, RuntimeError: the compiler failed, and not for the program's size.
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
        # on other platforms XLA's peak leaves out temporaries
        peak=analysis.peak_memory_in_bytes if platform == "tpu" else total,
    )


def _text(dump: Path) -> str | None:
    """The optimized HLO that the compiler wrote; `as_text` fails on many TPU programs."""
    files = list(dump.glob("*after_optimizations.txt"))
    return max(files, key=lambda path: path.stat().st_size).read_text() if files else None


@contextmanager
def _logging_progress(title: str) -> Iterator[None]:
    """Logs from time to time how long compiling has taken so far."""
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
