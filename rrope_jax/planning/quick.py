"""Compiles a program only until its memory is assigned.

The compiler lays out a program's memory early. Generating code takes five to ten times as long and
changes neither memory nor transfers. The compiler has no option to stop before that, so it runs in
a process that is killed once the layout is written.
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
_NEXT = "*after_optimizations_after_buffer_assignment.txt"  # written after _ASSIGNED


class Assignment(NamedTuple):
    """A program's memory on a device in bytes, in the main memory space.

    Attributes:
      arguments: the program's parameters; donated ones also hold results.
      outputs: results that do not reuse the memory of donated arguments.
      temporaries: the block of all intermediate values.
    """

    arguments: int
    outputs: int
    temporaries: int


def read_assignment(text: str) -> Assignment:
    """Reads XLA's text form of a buffer assignment.

    Values local to a fused computation take no memory.
    """
    sums = {"parameter": 0, "output": 0, "temporary": 0}
    for size, other_memory, role in _ALLOCATION.findall(text):
        if other_memory or "thread-local" in role:
            continue
        if "parameter" in role:
            sums["parameter"] += int(size)
        elif "maybe-live-out" in role:
            sums["output"] += int(size)
        else:
            sums["temporary"] += int(size)
    return Assignment(sums["parameter"], sums["output"], sums["temporary"])


class TooBigError(Exception):
    """The compiler rejects the program as too big; the message has the sizes."""


def assign(workload: Workload, topology: Topology) -> tuple[Assignment, str]:
    """Returns a program's memory and its optimized HLO.

    Raises:
      TooBigError: the program needs more memory than a device has.
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
    """Waits until the memory assignment is written or the process has ended."""
    size = -1
    while process.is_alive():
        written = sum(path.stat().st_size for path in folder.glob(_NEXT))
        if written and written == size:
            return
        size = written
        time.sleep(_POLL_SECONDS)


def _largest(folder: Path, pattern: str) -> str:
    """The contents of the largest matching file: the step's, as other programs are smaller."""
    files = sorted(folder.glob(pattern), key=lambda path: path.stat().st_size)
    return files[-1].read_text() if files else ""


def _compile(workload: Workload, topology: Topology, folder: str) -> None:
    """Compiles the workload; runs in the other process."""
    silent = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silent, 2)  # hides the compiler's notices; errors are written to files
    try:
        topology.prepare()
        lowered = workload.lower(workload.make_mesh(topology.devices()))
        with uncached():
            lowered.compile({"xla_dump_to": folder, "xla_dump_hlo_as_text": True})
    except Exception as error:
        name = _REFUSAL if "RESOURCE_EXHAUSTED" in str(error) else _FAILURE
        text = str(error) if name == _REFUSAL else traceback.format_exc()
        (Path(folder) / name).write_text(text)
