"""Many inputs of one target: in processes of their own, with limits, and so that it goes on.

Input number i of a seed is always the same, whatever came before, so nothing has to be kept but
how far a run has come. A process that ends before its time has met a fault: of which kind, its
exit tells, and the input is then tried alone in a new process. What happens only in company (memory
of earlier inputs, say) does not count.
"""

import contextlib
import dataclasses
import faulthandler
import json
import math
import os
import pickle
import re
import resource
import select
import signal
import sys
import tempfile
import time
import traceback
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from random import Random
from typing import Any

from tests.fuzz.encoding import Files, encode
from tests.fuzz.judging import CRASHED, FAULTS, MEMORY, SLOW, Target, Verdict, judge, place_of
from tests.fuzz.mutation import mutated, mutated_bytes

SECONDS = 2.0
"""Of processor time that an input may take."""
MEMORY_BYTES = 2**30
"""That may be asked for on top of what the process had with valid inputs."""

_SILENT_SECONDS = 60  # without using the processor: waits for something that does not come
_BATCH = 2_000  # inputs of a process, so that what libraries keep does not add up
_OUT_OF_MEMORY, _HARNESS_FAILED = 77, 70  # exit codes


def make_input(target: Target, seeds: Sequence[dict[str, Any]], seed: int, number: int) -> Files:
    """Input `number` of a run."""
    random = Random(f"{target.name} {seed} {number}")
    tree = random.choice(seeds)
    only_bytes = random.random() < 0.2
    files = encode(tree if only_bytes else mutated(random, tree, list(seeds)))
    if files and (only_bytes or random.random() < 0.1):
        name = random.choice(list(files))
        files[name] = mutated_bytes(random, files[name], list(files.values()))
    return files


@dataclasses.dataclass
class Report:
    """How far a run has come, and what it has found.

    Attributes:
      seed: of the run.
      done: inputs tried.
      seconds: it took.
      counts: of verdicts by kind.
      faults: of each that differs, its kind, what, where, count and the number of its first input.
    """

    seed: int
    done: int = 0
    seconds: float = 0.0
    counts: Counter[str] = dataclasses.field(default_factory=Counter)
    faults: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)

    @classmethod
    def read(cls, file: Path, seed: int) -> "Report":
        """The one in a file, or a new one."""
        if not file.exists():
            return cls(seed)
        fields = json.loads(file.read_text())
        if fields["seed"] != seed:
            raise SystemExit(f"{file} is of --seed={fields['seed']}; give another --out")
        return cls(**fields | {"counts": Counter(fields["counts"])})

    def write(self, file: Path) -> None:
        """Puts it there, at once."""
        new = file.with_suffix(".new")
        new.write_text(json.dumps(vars(self), indent=1))
        new.replace(file)


def campaign(target: Target, *, inputs: int, seed: int, out: Path) -> Report:
    """Tries inputs until there are so many (times the target's share), going on from `out`.

    Writes out/TARGET.json, and the first input of each fault as a zip file in out/TARGET.
    """
    out.mkdir(parents=True, exist_ok=True)
    inputs = math.ceil(inputs * target.share)
    file = out / f"{target.name}.json"
    report = Report.read(file, seed)
    if report.done >= inputs:
        return report
    seeds: Sequence[dict[str, Any]] = _in_child(target.seeds)

    def make(number: int) -> Files:
        return make_input(target, seeds, seed, number)

    valid = [encode(tree) for tree in seeds]
    while report.done < inputs:
        began, stop = time.monotonic(), min(report.done + _BATCH, inputs)
        for number, verdict in _verdicts(target, valid, make, range(report.done, stop)):
            if verdict.kind in FAULTS and _key(verdict) not in report.faults:
                verdict = _alone(target, valid, make, number)
            report.done = number + 1
            report.counts[verdict.kind] += 1
            if verdict.kind in FAULTS:
                _add(report, verdict, number)
                if report.faults[_key(verdict)]["count"] == 1:
                    save(target, make(number), out / target.name / f"{verdict.kind}-{number}.zip")
        report.seconds += time.monotonic() - began
        report.write(file)
    return report


def _key(verdict: Verdict) -> str:
    name = verdict.what.partition(":")[0]
    return f"{verdict.kind} {name} {verdict.where}" if verdict.where else verdict.kind


def _add(report: Report, verdict: Verdict, number: int) -> None:
    fault = report.faults.setdefault(
        _key(verdict), {**dataclasses.asdict(verdict), "first": number, "count": 0}
    )
    fault["count"] += 1


def save(target: Target, files: Files, path: Path) -> None:
    """Keeps an input; `load` reads it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.comment = target.name.encode()
        for name, data in files.items():
            archive.writestr(name, data)


def load(path: Path) -> tuple[str, Files]:
    """The name of the target, and the files."""
    with zipfile.ZipFile(path) as archive:
        return archive.comment.decode(), {name: archive.read(name) for name in archive.namelist()}


def try_alone(target: Target, files: Files) -> Verdict:
    """The verdict on one input, in a process of its own."""
    valid = [encode(tree) for tree in _in_child(target.seeds)]
    return _alone(target, valid, lambda number: files, 0)


def _alone(
    target: Target, valid: Sequence[Files], make: Callable[[int], Files], number: int
) -> Verdict:
    ((_, verdict),) = _verdicts(target, valid, make, range(number, number + 1))
    return verdict


def _verdicts(
    target: Target, valid: Sequence[Files], make: Callable[[int], Files], numbers: range
) -> Iterator[tuple[int, Verdict]]:
    """Verdicts on inputs in order, at most up to the first fault that ends the process."""
    with (
        tempfile.TemporaryDirectory(prefix="fuzz", dir=_memory_folder()) as scratch,
        tempfile.TemporaryFile() as last_words,
    ):

        def work(pipe: int) -> None:
            os.dup2(last_words.fileno(), sys.stderr.fileno())  # threads of libraries say much
            faulthandler.enable(last_words, all_threads=False)
            faulthandler.register(signal.SIGPROF, last_words, all_threads=False, chain=True)
            _work(target, valid, make, numbers, pipe, Path(scratch))

        with _child(work) as (pid, pipe):
            expected = numbers.start
            for line in _lines(pid, pipe):
                number, *fields = json.loads(line)
                yield number, Verdict(*fields)
                expected = number + 1
            code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        if expected < numbers.stop and code != 0:
            last_words.seek(0)
            yield expected, _of_exit(code, last_words.read().decode(errors="replace"))


_FRAME = re.compile(r'File "(.*)", line (\d+) in (.*)')


def _of_exit(code: int, last_words: str) -> Verdict:
    """What the end of a process says; `last_words` are those of faulthandler."""
    if code == _HARNESS_FAILED:
        raise RuntimeError(f"the harness failed:\n{last_words[-3000:]}")
    stack = last_words.rpartition("(most recent call first)")[2]
    where = place_of([(f[1], int(f[2]), f[3]) for f in _FRAME.finditer(stack)][::-1])
    if code == -signal.SIGPROF:
        return Verdict(SLOW, f"more than {SECONDS:g} s of processor time", where)
    if code == -signal.SIGKILL:
        return Verdict(SLOW, f"nothing for {_SILENT_SECONDS} s, or killed", where)
    if code == _OUT_OF_MEMORY:
        return Verdict(MEMORY, "MemoryError", where)
    return Verdict(CRASHED, f"the process ended with {code}", where)


def _work(
    target: Target,
    valid: Sequence[Files],
    make: Callable[[int], Files],
    numbers: range,
    pipe: int,
    scratch: Path,
) -> None:
    """In the child: judges inputs, and writes a line for each."""
    folder, home = scratch / "input", scratch / "home"
    home.mkdir()
    os.chdir(home)
    for files in valid:  # so that what libraries do once is not an input's
        judge(target, files, folder)
    _limit_memory()
    for number in numbers:
        files = make(number)
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        verdict = judge(target, files, folder)
        signal.setitimer(signal.ITIMER_PROF, 0)
        line = json.dumps([number, verdict.kind, verdict.what, verdict.where])
        os.write(pipe, line.encode() + b"\n")
        if verdict.kind == MEMORY:
            return  # whatever ran out may be in a bad state


def _memory_folder() -> str | None:
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


def _limit_memory() -> None:
    """Where the system says how much address space there is (Linux)."""
    with contextlib.suppress(OSError):
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + MEMORY_BYTES
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


@contextlib.contextmanager
def _child(work: Callable[[int], None]) -> Iterator[tuple[int, int]]:
    """A fork that runs `work` with the writing end of a pipe, and the reading end here."""
    reading, writing = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of threads, of which this process uses none
        pid = os.fork()
    if pid == 0:
        os.close(reading)
        try:
            work(writing)
            os._exit(0)
        except MemoryError:
            os._exit(_OUT_OF_MEMORY)
        except BaseException:
            traceback.print_exc()
            os._exit(_HARNESS_FAILED)
    os.close(writing)
    try:
        yield pid, reading
    finally:
        os.close(reading)


def _lines(pid: int, pipe: int) -> Iterator[bytes]:
    """Lines as they come; ends the process that gives none for long."""
    rest = b""
    while True:
        ready, _, _ = select.select([pipe], [], [], _SILENT_SECONDS)
        if not ready:
            os.kill(pid, signal.SIGKILL)
            return
        if not (data := os.read(pipe, 65_536)):
            return
        *lines, rest = (rest + data).split(b"\n")
        yield from lines


def _in_child(make: Callable[[], Any]) -> Any:
    """What a function returns, made in a fork: this process must not start threads of JAX."""

    def work(pipe: int) -> None:
        with os.fdopen(pipe, "wb") as file:
            pickle.dump(make(), file)

    with _child(work) as (pid, pipe):
        with os.fdopen(os.dup(pipe), "rb") as file:
            data = file.read()
        if os.waitpid(pid, 0)[1]:
            raise RuntimeError("the seeds cannot be made")
    return pickle.loads(data)
