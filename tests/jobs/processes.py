"""Real processes of one job, for tests that stop and kill some of them."""

import dataclasses
import os
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

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
