"""Jobs of several processes: how they find each other, agree, and end.

Processes find each other by JAX_COORDINATOR_ADDRESS (host:port of process 0), JAX_NUM_PROCESSES and
JAX_PROCESS_ID, else by what JAX itself finds: SLURM, Open MPI, a TPU pod, Kubernetes. Alone, a job
runs as if this module were not there.

All processes end with the same exit code: that of the job, or of what went wrong first in any of
them, or 42 where one was preempted or is lost.
"""

import contextlib
import json
import os
import secrets
import shutil
import sys
import traceback
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

import jax

from rrope_jax.cli.configuration import UsageError
from rrope_jax.io.orbax.checkpoint import SaveError
from rrope_jax.run import cluster
from rrope_jax.run.peers import RETRYABLE, End, Group, JoinError, Place, join
from rrope_jax.run.workdir import Workdir, difference

_ADDRESS, _COUNT, _INDEX = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"
_JOIN_TIMEOUT, _HEARTBEAT = "RROPE_JOIN_TIMEOUT", "RROPE_HEARTBEAT"
_DEFAULTS = {_JOIN_TIMEOUT: 300.0, _HEARTBEAT: 60.0}  # seconds
_MEETING = ".processes"

Gather = Callable[[str, Any], list[Any]]


class JobError(RuntimeError):
    """A job cannot go on; the message is one line and says all. Exit code 1."""


class Peers:
    """The processes of a job, this one included; one alone is the only one.

    Attributes:
      index: of this process.
      count: how many there are.
    """

    def __init__(self, group: Group | None = None) -> None:
        """Use `run`, which gives one to the job."""
        self._group = group
        self.index = group.place.index if group else 0
        self.count = group.place.count if group else 1

    @property
    def first(self) -> bool:
        """Whether this is the process that prints, logs and writes."""
        return self.index == 0

    def gather(self, name: str, value: Any) -> list[Any]:
        """What each process gives, JSON-able, in their order; waits for all of them.

        It goes over the network of the hosts, not over the devices. All processes gather the same
        things in the same order; `name` says what it is.
        """
        return self._group.gather(name, value) if self._group else [value]

    def barrier(self, name: str) -> None:
        """Waits for all processes."""
        self.gather(name, None)

    def check_same(self, what: Mapping[str, Any]) -> None:
        """Refuses what differs between processes, such as their configs.

        Args:
          what: maybe nested; its keys are what messages call its parts. What is not JSON-able is
            compared by its repr.

        Raises:
          UsageError: it is not that of process 0.
        """
        own = json.loads(json.dumps(what, default=repr))
        first = self.gather("what has to be the same", own if self.first else None)[0]
        if (found := difference(first, own)) is not None:
            key, there, here = found
            raise UsageError(
                f"{key} is {there} in process 0 and {here} in process {self.index}; start all "
                "processes with the same config, flags and files"
            )
        self.barrier("the same")  # or the others go on while this one is about to refuse

    @contextlib.contextmanager
    def claim(
        self,
        path: str | os.PathLike[str],
        identity: Mapping[str, Any],
        *,
        free: Collection[str] = (),
    ) -> Iterator[Workdir]:
        """The folder of the job, claimed by process 0 for all.

        Args:
          path: The folder, which all processes have to see.
          identity, free: As for `Workdir.claim`.

        Raises:
          UsageError: It cannot be claimed, or is not the same folder in all processes.
        """
        claimed = Workdir.claim(path, identity, free=free) if self.first else None
        self.barrier("workdir claimed")
        with claimed or Workdir.joined(path) as workdir:
            if self.count > 1:
                self._check_shared(workdir.path)
            yield workdir

    def _check_shared(self, folder: Path) -> None:
        """Every process leaves a file; process 0 has to find them all."""
        room = folder / _MEETING
        token = secrets.token_hex(8)  # a name that no cache of a network disk knows of
        if self.first:
            shutil.rmtree(room, ignore_errors=True)
            (room / token).mkdir(parents=True)
        token = self.gather("token", token)[0]
        with contextlib.suppress(OSError):
            (room / token / str(self.index)).touch()
        self.barrier("token seen")
        if self.first:
            found = os.listdir(room / token)
            missing = [str(i) for i in range(self.count) if str(i) not in found]
            shutil.rmtree(room)
            if missing:
                raise UsageError(
                    f"--workdir={folder} is another folder, or cannot be written, in process"
                    f"{'es' * (len(missing) > 1)} {', '.join(missing)}; give one on a disk that "
                    "all machines share, such as NFS"
                )
        self.barrier("workdir shared")


def run(command: str, job: Callable[[Peers], int], *, preemption: bool) -> int:
    """Runs a job in all its processes, and ends them together.

    Args:
      command: such as train, for messages.
      job: gets the processes, returns its exit code. `__main__` prints what it raises; among
        several processes, the one that raises first does.
      preemption: whether the job asks `multihost_utils.reached_preemption_sync_point` at every
        step. JAX then takes SIGTERM for all of them; otherwise it stays as it is, and ends all with
        42 once it ends one.

    Returns:
      The exit code. Where a job of several processes does not come to an end, the process ends here
      instead, as devices may never answer.

    Raises:
      UsageError: the environment says who the processes are, but not well.
    """
    place = find_place()
    if place is None:
        return _alone(command, job)
    settings = {name: _seconds(name) for name in _DEFAULTS}
    try:
        group = join(place, timeout=settings[_JOIN_TIMEOUT], heartbeat=settings[_HEARTBEAT])
    except JoinError as error:
        print(f"rrope {command}: {error}", file=sys.stderr)
        return RETRYABLE
    group.start(lambda end: _follow(command, place, end))
    peers = Peers(group)
    try:
        jax.config.update("jax_enable_preemption_service", preemption)
        jax.distributed.initialize(
            place.address,
            place.count,
            place.index,
            place.devices,
            initialization_timeout=int(settings[_JOIN_TIMEOUT]),
            # JAX would abort; it is for the case that our own thread has stopped
            heartbeat_timeout_seconds=int(2 * settings[_HEARTBEAT]) + 10,
        )
        if not peers.first:
            _print_nothing()
        code: int = max(peers.gather("exit code", job(peers)))
        jax.distributed.shutdown()
    except BaseException as error:
        _leave(command, group, error, settings[_HEARTBEAT])
    group.close()
    return code


def _alone(command: str, job: Callable[[Peers], int]) -> int:
    try:
        return job(Peers())
    except JobError as error:
        print(f"rrope {command}: {error}", file=sys.stderr)
        return 1


def find_place() -> Place | None:
    """This process among those of its job; None where it is alone.

    Raises:
      UsageError: the environment is incomplete or not well-formed.
    """
    given = {name: os.environ.get(name, "") for name in (_ADDRESS, _COUNT, _INDEX)}
    if not any(given.values()):
        return _detected()
    for name, value in given.items():
        if not value:
            others = ", ".join(f"{other}={there}" for other, there in given.items() if there)
            raise UsageError(
                f"{name} is not set, but {others}: several processes need {_ADDRESS} (host:port of "
                f"process 0), {_COUNT} and {_INDEX}"
            )
    host, _, port = given[_ADDRESS].rpartition(":")
    if not host or not port.isdecimal():
        raise UsageError(f"{_ADDRESS}={given[_ADDRESS]} has to be host:port of process 0")
    for name in (_COUNT, _INDEX):
        if not given[name].isdecimal():
            raise UsageError(f"{name}={given[name]} has to be a whole number")
    count, index = int(given[_COUNT]), int(given[_INDEX])
    if index >= count:
        raise UsageError(f"{_INDEX}={index} has to be below {_COUNT}={count}")
    return Place(given[_ADDRESS], count, index) if count > 1 else None


def _detected() -> Place | None:
    try:
        return cluster.detect(int(_seconds(_JOIN_TIMEOUT)))
    except cluster.DetectionError as error:
        raise UsageError(
            f"JAX finds a cluster here, but not its processes; set {_ADDRESS}, {_COUNT} and "
            f"{_INDEX}, to localhost:1234, 1 and 0 where this is the only one ({error})"
        ) from error


def _seconds(name: str) -> float:
    text = os.environ.get(name, "")
    if not text:
        return _DEFAULTS[name]
    with contextlib.suppress(ValueError):
        if 1 <= float(text) < float("inf"):
            return float(text)
    raise UsageError(f"{name}={text} has to be a number of seconds, 1 or more")


def _print_nothing() -> None:
    """On stdout, whatever language prints."""
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 1)


def _follow(command: str, place: Place, end: End) -> NoReturn:
    """Ends this process because of the others; runs beside a main thread that may be stuck."""
    if place.index == 0 or (end.lost and end.process in (0, place.index)):
        own = "" if end.code == RETRYABLE else f"process {end.process}: "
        after = "; the same command goes on from the last checkpoint"
        text = f"rrope {command}: {own}{end.reason}{after * (end.code == RETRYABLE)}\n"
        os.write(2, text.encode())
    os._exit(end.code)


def _leave(command: str, group: Group, error: BaseException, heartbeat: float) -> NoReturn:
    """Ends all processes because of an error in this one, unless it comes from another."""
    if isinstance(error, UsageError):
        code, reason = 2, str(error)
    elif isinstance(error, JobError):
        code, reason = 1, str(error)
    elif isinstance(error, Exception):
        code, reason = 1, f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    else:  # a signal
        code, reason = RETRYABLE, f"process {group.place.index} is told to stop"
    if _may_be_anothers(error):
        group.wait_for_end(heartbeat + 5)
    end = group.finish(code, reason)
    if end.process == group.place.index:
        if code == 1 and not isinstance(error, JobError):
            traceback.print_exception(error)
        else:
            print(f"rrope {command}: {reason}", file=sys.stderr)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(end.code)


def _may_be_anothers(error: BaseException | None) -> bool:
    """Whether an error is what devices and Orbax say, too, when another process has died."""
    while error is not None:
        if isinstance(error, SaveError):
            return not error.own
        if isinstance(error, jax.errors.JaxRuntimeError):
            return True
        error = error.__cause__
    return False
