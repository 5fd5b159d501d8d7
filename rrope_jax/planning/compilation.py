"""Compiling for devices that are not there: what the compiler says of memory and transfers."""

import dataclasses
import logging
import re
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax

from rrope_jax.planning import collectives
from rrope_jax.planning.collectives import Collective

_LOG = logging.getLogger(__name__)
_SAY_EVERY_SECONDS = 15.0
_TOO_BIG = re.compile(r"Used (\S+) of (\S+) hbm")


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


def compile_step(lowered: jax.stages.Lowered, what: str) -> tuple[Compilation, Any]:
    """Compiles a step, saying so while it lasts.

    Args:
      lowered: the step for its devices.
      what: names it in the log.

    Returns:
      What is known of it, and the compiled step, None where it was refused for its size.

    Raises:
      jax.errors.JaxRuntimeError: the compiler failed for another reason.
    """
    began = time.monotonic()
    try:
        with _saying(what), tempfile.TemporaryDirectory() as dump:
            compiled = lowered.compile({"xla_dump_to": dump, "xla_dump_hlo_as_text": True})
            text = _text(Path(dump))
    except jax.errors.JaxRuntimeError as error:
        message = str(error)
        if "RESOURCE_EXHAUSTED" not in message:
            raise
        sizes = _TOO_BIG.search(message)
        refusal = f"{sizes[1]} of {sizes[2]}" if sizes else message.splitlines()[0]
        seconds = time.monotonic() - began
        return Compilation(seconds=seconds, memory=None, refusal=refusal, collectives=None), None
    seconds = time.monotonic() - began
    return (
        Compilation(
            seconds=seconds,
            memory=_memory(compiled),
            refusal=None,
            collectives=None if text is None else _collectives(text),
        ),
        compiled,
    )


def _memory(compiled: Any) -> Memory:
    analysis = compiled.memory_analysis()
    outputs = analysis.output_size_in_bytes - analysis.alias_size_in_bytes
    total = analysis.argument_size_in_bytes + outputs + analysis.temp_size_in_bytes
    return Memory(
        arguments=analysis.argument_size_in_bytes,
        outputs=outputs,
        temporaries=analysis.temp_size_in_bytes,
        peak=getattr(analysis, "peak_memory_in_bytes", 0) or total,
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
