"""Real processes of one job, for tests that stop and kill some of them."""

import contextlib
import dataclasses
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]
PATIENCE = 240  # seconds; a busy machine is no failure


@dataclasses.dataclass
class Job:
    """Processes of one job."""

    processes: "list[subprocess.Popen[bytes]]"
    logs: list[Path]

    def wait(self, seconds: float = PATIENCE) -> list[int]:
        """Their exit codes, once all have ended."""
        deadline = time.monotonic() + seconds
        return [p.wait(max(0.1, deadline - time.monotonic())) for p in self.processes]

    def said(self, index: int) -> str:
        return self.logs[index].read_text()

    def wait_until(self, condition: Callable[[], bool]) -> None:
        """While they run."""
        deadline = time.monotonic() + PATIENCE
        while not condition():
            assert all(p.poll() is None for p in self.processes), [
                log.read_text() for log in self.logs
            ]
            assert time.monotonic() < deadline
            time.sleep(0.002)


class Launcher:
    """Starts the processes of jobs."""

    def __init__(self, logs: Path):
        """Keeps what they print in new folders of a folder."""
        self._logs, self._jobs = logs, list[Job]()

    def start(
        self,
        words: Mapping[int, Sequence[str]],
        *,
        count: int,
        devices: int,
        folders: Sequence[Path] | None = None,
        **environment: str,
    ) -> Job:
        """Starts some processes of a job.

        Args:
          words: the module and the arguments of each process that there is, by its number.
          count: how many processes the job has.
          devices: of each process.
          folders: where each process runs; the clone by default.
          environment: further variables.
        """
        folder = Path(tempfile.mkdtemp(dir=self._logs))
        job, port = Job([], []), free_port()
        self._jobs.append(job)
        paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        for index, arguments in words.items():
            variables = environment_of(
                JAX_NUM_CPU_DEVICES=str(devices), PYTHONPATH=paths, **environment
            )
            if count > 1:
                variables |= {
                    "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
                    "JAX_NUM_PROCESSES": str(count),
                    "JAX_PROCESS_ID": str(index),
                }
            log = folder / f"{index}.log"
            with log.open("wb") as file:
                process = subprocess.Popen(
                    [sys.executable, "-m", *arguments],
                    cwd=folders[index] if folders else ROOT,
                    stdout=file,
                    stderr=file,
                    env=variables,
                )
            job.processes.append(process)
            job.logs.append(log)
        return job

    def kill(self) -> None:
        """Ends what still runs."""
        for process in (process for job in self._jobs for process in job.processes):
            with contextlib.suppress(OSError):
                process.kill()
            process.wait()


def environment_of(**more: str) -> dict[str, str]:
    """The variables of a process that is alone, but for some more."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("JAX_NUM", "JAX_CO"))}
    quick = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}  # all compile alike, and mostly compile
    return {**kept, **quick, "JAX_PLATFORMS": "cpu", "RROPE_HEARTBEAT": "60", **more}


def free_port() -> int:
    """A port that nothing listens on now."""
    with socket.create_server(("", 0)) as server:
        port: int = server.getsockname()[1]
        return port
