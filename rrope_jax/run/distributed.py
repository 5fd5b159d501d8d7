"""Multi-process jobs: how the processes agree, and how they exit together.

All processes exit with the same code: that of the job, that of the first failure in any process, or
42 if a process was preempted or lost. Single-process jobs need none of this.
"""

import contextlib
import json
import os
import secrets
import sys
import traceback
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

import jax

from rrope_jax.cli.errors import UsageError
from rrope_jax.io.orbax.checkpoint import SaveError
from rrope_jax.io.stores import AnyPath, StoreError, remove
from rrope_jax.run import cluster
from rrope_jax.run.cluster import Process
from rrope_jax.run.identity import difference
from rrope_jax.run.joining import JoinError
from rrope_jax.run.peers import RETRYABLE, End, Group, join
from rrope_jax.run.workdir import Workdir

_MEETING = ".processes"


class JobError(RuntimeError):
    """A job cannot continue (exit code 1); its one-line message is printed without a traceback."""


class Peers:
    """The processes of a job, including this one; there may be only one.

    Attributes:
      index: Index of this process.
      count: Number of processes.
    """

    def __init__(self, group: Group | None = None) -> None:
        """Do not call this directly: `run` passes an instance to the job."""
        self._group = group
        self.index = group.process.index if group else 0
        self.count = group.process.count if group else 1

    @property
    def first(self) -> bool:
        """Whether this is process 0, which prints, logs and writes."""
        return self.index == 0

    def gather(self, name: str, value: Any) -> list[Any]:
        """Waits for all processes and returns their JSON-serializable values, by process index.

        The values travel over the host network, not between devices. All processes must gather the
        same things, identified by `name`, in the same order.
        """
        return self._group.gather(name, value) if self._group else [value]

    def barrier(self, name: str) -> None:
        """Waits for all processes."""
        self.gather(name, None)

    def check_same(self, values: Mapping[str, Any]) -> None:
        """Checks that values, such as the config, are the same in all processes.

        Args:
          values: The values, possibly nested; messages name a value by its keys. Values that are
            not JSON-serializable are compared by their repr.

        Raises:
          UsageError: A value differs from that of process 0.
        """
        here = json.loads(json.dumps(values, default=repr))
        first = self.gather("what has to be the same", here if self.first else None)[0]
        if (differing := difference(first, here)) is not None:
            key, in_first, in_this = differing
            raise UsageError(
                f"{key} is {in_first} in process 0 and {in_this} in process {self.index}; start "
                "all processes with the same config, flags and files"
            )
        self.barrier("the same")  # keeps others from continuing if one process raises

    @contextlib.contextmanager
    def claim(
        self,
        path: str | os.PathLike[str],
        identity: Mapping[str, Any],
        *,
        free: Collection[str] = (),
    ) -> Iterator[Workdir]:
        """Claims the job's folder, in process 0 on behalf of all processes.

        Args:
          path: The folder, on a disk that all processes share or in an object store.
          identity, free: As for `Workdir.claim`.

        Yields:
          The claimed folder.

        Raises:
          UsageError: The folder cannot be claimed, or is not the same in all processes.
        """
        claimed = Workdir.claim(path, identity, free=free) if self.first else None
        self.barrier("workdir claimed")
        with claimed or Workdir.joined(path) as workdir:
            if self.count > 1:
                self._check_shared(workdir.path)
            yield workdir

    def _check_shared(self, folder: AnyPath) -> None:
        """Has every process create a file, all of which process 0 must find."""
        meeting = folder / _MEETING
        token = secrets.token_hex(8)  # a name that no network disk can have cached
        if self.first:
            remove(meeting)
            if isinstance(meeting, Path):
                (meeting / token).mkdir(parents=True)
        token = self.gather("token", token)[0]
        with contextlib.suppress(OSError):
            (meeting / token / str(self.index)).write_bytes(b"")
        self.barrier("token seen")
        if self.first:
            present = {path.name for path in (meeting / token).iterdir()}
            missing = [str(i) for i in range(self.count) if str(i) not in present]
            remove(meeting)
            if missing:
                plural = "es" if len(missing) > 1 else ""
                mend = (
                    "give one on a disk that all machines share, such as NFS"
                    if isinstance(folder, Path)
                    else "let all machines write the bucket, through the same server"
                )
                raise UsageError(
                    f"--workdir={folder} is another folder, or cannot be written, in "
                    f"process{plural} {', '.join(missing)}; {mend}"
                )
        self.barrier("workdir shared")


def run(command: str, job: Callable[[Peers], int], *, preemption: bool) -> int:
    """Runs a job in all its processes and makes them exit together.

    Args:
      command: The command's name, such as `train`, for messages.
      job: Takes the processes and returns the exit code. If it raises, `__main__` reports the
        error; with several processes, the first one to fail does.
      preemption: Whether the job calls `multihost_utils.reached_preemption_sync_point` at every
        step. If so, JAX handles SIGTERM for all processes; otherwise SIGTERM ends the process that
        receives it, and the others with it, with exit code 42.

    Returns:
      The exit code. If a multi-process job fails, this function does not return but exits the
      process, as its devices may never respond.

    Raises:
      UsageError: The environment variables that describe the processes are incomplete or wrong.
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
            # JAX aborts after this, so it is only a fallback in case our own thread has stopped
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
    except (JobError, StoreError) as error:
        print(f"rrope {command}: {error}", file=sys.stderr)
        return 1


def _silence_stdout() -> None:
    """Discards everything this process prints, including output of C++ code."""
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 1)


def _follow(command: str, process: Process, end: End) -> NoReturn:
    """Exits because another process ended the job, even if the main thread is stuck."""
    if process.index == 0 or (end.lost and end.process in (0, process.index)):
        if end.code == RETRYABLE:
            reason = f"{end.reason}; the same command goes on from the last checkpoint"
        else:
            reason = f"process {end.process}: {end.reason}"
        os.write(2, f"rrope {command}: {reason}\n".encode())
    os._exit(end.code)


def _leave(command: str, group: Group, error: BaseException, heartbeat: float) -> NoReturn:
    """Ends all processes after an error here, which another process may have caused."""
    if isinstance(error, UsageError):
        code, reason = 2, str(error)
    elif isinstance(error, JobError | StoreError):
        code, reason = 1, str(error)
    elif isinstance(error, Exception):
        code, reason = 1, f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    else:  # a signal
        code, reason = RETRYABLE, f"process {group.process.index} is told to stop"
    if _may_come_from_another(error):
        group.wait_for_end(heartbeat + 5)
    end = group.finish(code, reason)
    if end.process == group.process.index:
        if code == 1 and not isinstance(error, JobError | StoreError):
            traceback.print_exception(error)
        else:
            print(f"rrope {command}: {reason}", file=sys.stderr)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(end.code)


def _may_come_from_another(error: BaseException | None) -> bool:
    """Whether the death of another process could have caused this error (JAX and Orbax)."""
    while error is not None:
        if isinstance(error, SaveError):
            return not error.own
        if isinstance(error, jax.errors.JaxRuntimeError):
            return True
        error = error.__cause__
    return False
