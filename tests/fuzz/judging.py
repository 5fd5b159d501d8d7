"""What became of one input: accepted, refused in our own words, or something that must not be."""

import contextlib
import dataclasses
import dis
import os
import shutil
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import rrope_jax
from tests.fuzz.encoding import Files

ACCEPTED, REFUSED = "accepted", "refused"
# Faults. The last three are seen from outside of the process.
FOREIGN, MESSAGE, MEMORY, WRITES = "foreign", "message", "memory", "writes"
SLOW, CRASHED = "slow", "crashed"
FAULTS = (FOREIGN, MESSAGE, SLOW, MEMORY, WRITES, CRASHED)

_OURS = str(Path(rrope_jax.__file__).parent) + os.sep
_KEPT = 2_000  # characters of a message
_RAISE = dis.opmap["RAISE_VARARGS"]
# What changes files or reaches outside, as the interpreter tells of it.
_OUTSIDE = {
    *("os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.link", "os.symlink", "os.truncate"),
    *("os.chmod", "os.chown", "os.utime", "subprocess.Popen", "os.system", "os.exec", "os.spawn"),
    *("os.posix_spawn", "socket.connect", "socket.bind", "pickle.find_class"),
}
_TWO_PATHS = {"os.rename", "os.link", "os.symlink"}
_IN_FOLDER = {"os.remove", "os.rmdir"}
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


class UnfitError(Exception):
    """An input that is not of the kind that the function takes: nobody would call it with that."""


@dataclasses.dataclass(frozen=True)
class Target:
    """A part of the project that reads what others wrote.

    Attributes:
      name: in the table.
      seeds: makes trees of valid inputs ({file name: content}); see `encoding`.
      run: reads the files of the folder that it is given; what it raises is judged.
      target: name of what `run` may write into its folder; None for nothing.
      share: of the inputs that are asked for, where one takes longer than elsewhere.
    """

    name: str
    seeds: Callable[[], Sequence[dict[str, Any]]]
    run: Callable[[Path], None]
    target: str | None = None
    share: float = 1.0


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What became of an input.

    Attributes:
      kind: ACCEPTED, REFUSED or one of FAULTS.
      what: the exception and its message, or what was written.
      where: the innermost lines, which tell faults from each other.
    """

    kind: str
    what: str = ""
    where: str = ""


def judge(target: Target, files: Files, folder: Path) -> Verdict:
    """Gives the files to a target, in a folder that is emptied first, and judges what it does."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    _write(files, folder)
    allowed = None if target.target is None else folder / target.target
    before = _snapshot(folder, allowed)
    with _watched(folder, allowed) as written:
        verdict = _verdict(target, folder)
    if verdict.kind in (ACCEPTED, REFUSED):
        changed = sorted(_snapshot(folder, allowed) ^ before)
        written += [f"changed {name}" for name, *_ in changed]
        if written:
            return Verdict(WRITES, "; ".join(written[:3]))
    return verdict


def _verdict(target: Target, folder: Path) -> Verdict:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # of a library: the user would see it
            target.run(folder)
    except UnfitError:
        return Verdict(REFUSED)
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        return _of_error(error, folder)
    return Verdict(ACCEPTED)


def _of_error(error: BaseException, folder: Path) -> Verdict:
    what = f"{type(error).__name__}: {error}".replace(str(folder), "FOLDER")
    where = _where(error.__traceback__)
    if any(isinstance(each, MemoryError) for each in _chain(error)) or "bad_alloc" in what:
        return Verdict(MEMORY, what[:_KEPT], where)
    if not _is_ours(error):
        return Verdict(FOREIGN, what[:_KEPT], where)
    message = str(error)
    if not message.strip() or "\n" in message:
        return Verdict(MESSAGE, what[:_KEPT], where)
    return Verdict(REFUSED, what[:_KEPT], where)


def _is_ours(error: BaseException) -> bool:
    """Whether a `raise` of the package made it; the system's errors say what they mean."""
    if isinstance(error, OSError):
        return True
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None or not trace.tb_frame.f_code.co_filename.startswith(_OURS):
        return False
    raised = trace.tb_frame.f_code.co_code[trace.tb_lasti] == _RAISE
    known = type(error) is ValueError or type(error).__module__.startswith("rrope_jax.")
    return isinstance(error, ValueError) and known and raised


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _where(trace: TracebackType | None) -> str:
    frames = traceback.extract_tb(trace)
    return place_of([(frame.filename, frame.lineno or 0, frame.name) for frame in frames])


def place_of(frames: Sequence[tuple[str, int, str]]) -> str:
    """The innermost of (file, line, function) in the package, and what it called."""
    ours = [frame for frame in frames if frame[0].startswith(_OURS)]
    chosen = [*ours[-1:], *(frames[-1:] if frames and frames[-1] not in ours else [])]
    return " > ".join(f"{Path(file).name}:{line} {name}" for file, line, name in chosen)


def _write(files: Files, folder: Path) -> None:
    for name, data in files.items():
        path = folder / name
        with contextlib.suppress(OSError):  # a file where another one needs a folder
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)


def _snapshot(folder: Path, allowed: Path | None) -> set[tuple[str, int, int]]:
    found: set[tuple[str, int, int]] = set()
    for place, folders, names in os.walk(folder):
        if allowed is not None:
            folders[:] = [name for name in folders if Path(place, name) != allowed]
        for name in [*folders, *names]:
            path = Path(place, name)
            if path != allowed:
                status = path.lstat()
                size, changed = status.st_size, status.st_mtime_ns
                is_folder = name in folders  # whose time changes with the target inside
                found.add((str(path), 0, 0) if is_folder else (str(path), size, changed))
    return found


class _Watch:
    """The interpreter's audit hook, which cannot be taken away again."""

    def __init__(self) -> None:
        self.written: list[str] | None = None
        self.allowed: Path | None = None
        self.installed = False

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.written is None:
            return
        if event == "open":
            path, _, flags = arguments
            changes = isinstance(flags, int) and flags & _WRITING
            paths = [path] if changes else []
        elif event == "os.mkdir":
            paths = [] if os.path.isdir(arguments[0]) else [arguments[0]]  # which then fails
        elif event in _IN_FOLDER and arguments[1] != -1:
            paths = []  # below a descriptor; whether it may, the snapshots tell
        else:
            paths = list(arguments[:2] if event in _TWO_PATHS else arguments[:1])
            paths = paths if event in _OUTSIDE else []
        if any(not self._may(path) for path in paths):
            self.written.append(f"{event} {paths!r}"[:200])

    def _may(self, path: Any) -> bool:
        if isinstance(path, int):  # a descriptor, which something opened before
            return True
        if not isinstance(path, str | bytes | os.PathLike):
            return False
        name = os.path.abspath(os.fsdecode(path))
        if name == os.devnull:
            return True
        if self.allowed is None:
            return False
        partial = self.allowed.with_name(f".{self.allowed.name}.partial")
        return any(Path(name).is_relative_to(each) for each in (self.allowed, partial))


_WATCH = _Watch()


@contextlib.contextmanager
def _watched(folder: Path, allowed: Path | None) -> Iterator[list[str]]:
    """Collects what is written meanwhile, other than to what is allowed."""
    if not _WATCH.installed:
        sys.addaudithook(_WATCH)
        _WATCH.installed = True
    written: list[str] = []
    _WATCH.written, _WATCH.allowed = written, allowed
    try:
        yield written
    finally:
        _WATCH.written = None
