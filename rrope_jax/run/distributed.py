"""Jobs of several processes: how they agree, and end.

All processes end with the same exit code: that of the job, or of what went wrong first in any of
them, or 42 where one was preempted or is lost. A process that is alone needs none of this.
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

from rrope_jax.cli.errors import UsageError
from rrope_jax.io.orbax.checkpoint import SaveError
from rrope_jax.run import cluster
from rrope_jax.run.cluster import Process
from rrope_jax.run.identity import difference
from rrope_jax.run.joining import JoinError
from rrope_jax.run.peers import RETRYABLE, End, Group, join
from rrope_jax.run.workdir import Workdir

_MEETING = ".processes"


class JobError(RuntimeError):
    """A job cannot continue; the message is one line and says all. Exit code 1."""


class Peers:
    """The processes of a job, including this one; a process that is alone is the only one.

    Attributes:
      index: Of this process.
      count: Number of processes.
    """

    def __init__(self, group: Group | None = None) -> None:
        """Use `run`, which gives one to the job."""
        self._group = group
        self.index = group.process.index if group else 0
        self.count = group.process.count if group else 1

    @property
    def first(self) -> bool:
        """Whether this is the process that prints, logs and writes."""
        return self.index == 0

    def gather(self, name: str, value: Any) -> list[Any]:
        """The JSON-able values of all processes, in their order; waits for all of them.

        They travel over the network of the hosts, not over the devices. All processes gather the
        same things in the same order; `name` says what they are.
        """
        return self._group.gather(name, value) if self._group else [value]

    def barrier(self, name: str) -> None:
        """Waits for all processes."""
        self.gather(name, None)

    def check_same(self, values: Mapping[str, Any]) -> None:
        """Refuses what differs between processes, such as their configs.

        Args:
          values: Maybe nested; messages call a value by its keys. What is not JSON-able is compared
            by its repr.

        Raises:
          UsageError: A value is not that of process 0.
        """
        here = json.loads(json.dumps(values, default=repr))
        first = self.gather("what has to be the same", here if self.first else None)[0]
        if (differing := difference(first, here)) is not None:
            key, in_first, in_this = differing
            raise UsageError(
                f"{key} is {in_first} in process 0 and {in_this} in process {self.index}; start "
                "all processes with the same config, flags and files"
            )
        self.barrier("the same")  # or the others continue while this one is about to refuse

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
          path: The folder, on a disk that all processes share.
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
        meeting = folder / _MEETING
        token = secrets.token_hex(8)  # a name that no cache of a network disk knows of
        if self.first:
            shutil.rmtree(meeting, ignore_errors=True)
            (meeting / token).mkdir(parents=True)
        token = self.gather("token", token)[0]
        with contextlib.suppress(OSError):
            (meeting / token / str(self.index)).touch()
        self.barrier("token seen")
        if self.first:
            present = os.listdir(meeting / token)
            missing = [str(i) for i in range(self.count) if str(i) not in present]
            shutil.rmtree(meeting)
            if missing:
                plural = "es" if len(missing) > 1 else ""
                raise UsageError(
                    f"--workdir={folder} is another folder, or cannot be written, in "
                    f"process{plural} {', '.join(missing)}; give one on a disk that all machines "
                    "share, such as NFS"
                )
        self.barrier("workdir shared")


def run(command: str, job: Callable[[Peers], int], *, preemption: bool) -> int:
    """Runs a job in all its processes, and ends them together.

    Args:
      command: Such as train, for messages.
      job: Takes the processes and returns its exit code. `__main__` prints what it raises; of
        several processes, the one that raises first does.
      preemption: Whether the job asks `multihost_utils.reached_preemption_sync_point` at every
        step. JAX then takes SIGTERM for all processes; otherwise SIGTERM ends the process that gets
        it, and thereby all of them with 42.

    Returns:
      The exit code. Where a job of several processes does not come to an end, the process ends here
      instead, as devices may never answer.

    Raises:
      UsageError: The environment describes the processes incompletely or wrongly.
    """
    process = cluster.find_process()
    if process is None:
        return _alone(command, job)
    timeout, heartbeat = map(cluster.seconds, ("RROPE_JOIN_TIMEOUT", "RROPE_HEARTBEAT"))
    try:
        group = join(process, timeout=timeout, heartbeat=heartbeat)
    except JoinError as error:
        print(f"rrope {command}: {error}", file=sys.stderr)
        return RETRYABLE
    group.start(lambda end: _follow(command, process, end))
    peers = Peers(group)
    try:
        jax.config.update("jax_enable_preemption_service", preemption)
        jax.distributed.initialize(
            process.address,
            process.count,
            process.index,
            process.devices,
            initialization_timeout=int(timeout),
            # JAX would abort; this is for the case that our own thread has stopped
            heartbeat_timeout_seconds=int(2 * heartbeat) + 10,
        )
        if not peers.first:
            _silence_stdout()
        code: int = max(peers.gather("exit code", job(peers)))
        jax.distributed.shutdown()
    except BaseException as error:
        _leave(command, group, error, heartbeat)
    group.close()
    return code


def _alone(command: str, job: Callable[[Peers], int]) -> int:
    try:
        return job(Peers())
    except JobError as error:
        print(f"rrope {command}: {error}", file=sys.stderr)
        return 1


def _silence_stdout() -> None:
    """Discards what this process prints, from whatever language."""
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 1)


def _follow(command: str, process: Process, end: End) -> NoReturn:
    """Ends this process because of the others, beside a main thread that may be stuck."""
    if process.index == 0 or (end.lost and end.process in (0, process.index)):
        if end.code == RETRYABLE:
            reason = f"{end.reason}; the same command goes on from the last checkpoint"
        else:
            reason = f"process {end.process}: {end.reason}"
        os.write(2, f"rrope {command}: {reason}\n".encode())
    os._exit(end.code)


def _leave(command: str, group: Group, error: BaseException, heartbeat: float) -> NoReturn:
    """Ends all processes because of an error in this one, or in another that has caused it."""
    if isinstance(error, UsageError):
        code, reason = 2, str(error)
    elif isinstance(error, JobError):
        code, reason = 1, str(error)
    elif isinstance(error, Exception):
        code, reason = 1, f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    else:  # a signal
        code, reason = RETRYABLE, f"process {group.process.index} is told to stop"
    if _may_come_from_another(error):
        group.wait_for_end(heartbeat + 5)
    end = group.finish(code, reason)
    if end.process == group.process.index:
        if code == 1 and not isinstance(error, JobError):
            traceback.print_exception(error)
        else:
            print(f"rrope {command}: {reason}", file=sys.stderr)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(end.code)


def _may_come_from_another(error: BaseException | None) -> bool:
    """Whether devices and Orbax also raise such an error when another process has died."""
    while error is not None:
        if isinstance(error, SaveError):
            return not error.own
        if isinstance(error, jax.errors.JaxRuntimeError):
            return True
        error = error.__cause__
    return False
