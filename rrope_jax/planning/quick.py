"""Compiling as far as memory is assigned, and no further.

The compiler lays out a program's memory early on; generating code for it afterwards takes five to
ten times as long and changes neither its memory nor what it sends. It cannot be told to stop there,
so it runs in a process of its own that is ended once the layout is written.
"""

import multiprocessing
import os
import re
import tempfile
import time
import traceback
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import NamedTuple

from rrope_jax.planning.topology import Topology
from rrope_jax.planning.uncached import uncached
from rrope_jax.planning.workload import Workload

_POLL_SECONDS = 0.2
_ALLOCATION = re.compile(
    r"^allocation \d+: size (\d+)(, color [1-9]\d*)?, page \d+,? ?(.*?):$", re.M
)
_REFUSAL, _FAILURE = "refusal.txt", "failure.txt"
_ASSIGNED = "*after_optimizations-buffer-assignment.txt"
_NEXT = "*after_optimizations_after_buffer_assignment.txt"  # what is written after it


class Assignment(NamedTuple):
    """A program's memory on a device in bytes, in its main memory space.

    Attributes:
      arguments: its parameters; donated ones hold results, too.
      outputs: results that have a place of their own.
      temporaries: everything in between, which is one block.
    """

    arguments: int
    outputs: int
    temporaries: int


def read_assignment(text: str) -> Assignment:
    """Reads XLA's text form of a buffer assignment.

    What is local to a fused computation is in no memory of its own.
    """
    sums = {"parameter": 0, "output": 0, "temporary": 0}
    for size, elsewhere, role in _ALLOCATION.findall(text):
        if elsewhere or "thread-local" in role:
            continue
        if "parameter" in role:
            sums["parameter"] += int(size)
        elif "maybe-live-out" in role:
            sums["output"] += int(size)
        else:
            sums["temporary"] += int(size)
    return Assignment(sums["parameter"], sums["output"], sums["temporary"])


class TooBigError(Exception):
    """The compiler refuses the program for its size; its message says the sizes."""


def assign(workload: Workload, topology: Topology) -> tuple[Assignment, str]:
    """A program's memory, and its optimized HLO.

    Raises:
      TooBigError: see there.
      RuntimeError: the compiler failed for another reason.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        context = multiprocessing.get_context("spawn")
        process = context.Process(target=_compile, args=(workload, topology, name), daemon=True)
        process.start()
        try:
            _wait(process, folder)
        finally:
            process.kill()
            process.join()
        if (refusal := folder / _REFUSAL).exists():
            raise TooBigError(refusal.read_text())
        texts = [_largest(folder, each) for each in (_ASSIGNED, "*after_optimizations.txt")]
        if not all(texts):
            failure = folder / _FAILURE
            raise RuntimeError(failure.read_text() if failure.exists() else "compiling has failed")
        return read_assignment(texts[0]), texts[1]


def _wait(process: BaseProcess, folder: Path) -> None:
    """Until memory is assigned and written, or the process has ended."""
    size = -1
    while process.is_alive():
        written = sum(path.stat().st_size for path in folder.glob(_NEXT))
        if written and written == size:
            return
        size = written
        time.sleep(_POLL_SECONDS)


def _largest(folder: Path, pattern: str) -> str:
    """The file of the step among those of smaller programs."""
    files = sorted(folder.glob(pattern), key=lambda path: path.stat().st_size)
    return files[-1].read_text() if files else ""


def _compile(workload: Workload, topology: Topology, folder: str) -> None:
    """What the other process does."""
    silent = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silent, 2)  # the compiler's notices; errors are written to files
    try:
        topology.prepare()
        lowered = workload.lower(workload.make_mesh(topology.devices()))
        with uncached():
            lowered.compile({"xla_dump_to": folder, "xla_dump_hlo_as_text": True})
    except Exception as error:
        name = _REFUSAL if "RESOURCE_EXHAUSTED" in str(error) else _FAILURE
        text = str(error) if name == _REFUSAL else traceback.format_exc()
        (Path(folder) / name).write_text(text)
