"""One call of the script: its time, its sizes, and the measurements that outlive it.

A part consists of measurements. Each is written when it is made, so that a call that is cut off
loses one at most, and the next call makes only those that are missing.
"""

import dataclasses
import json
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rrope_jax.run.workdir import Workdir
from tests.benchmarks import platforms

ROOT = Path(__file__).parents[2]
UNFINISHED = 75
"""Exit code of a part that leaves something to the next call (EX_TEMPFAIL)."""
STORE = "RROPE_ACCELERATOR_STORE"
"""Variable with a folder of a real bucket for the part `store`, which removes what it writes."""

_SAVING = 60.0  # seconds that `rrope posgen` is given to save and report after a signal
RUNNING = ".running"
"""File of a part with the name of the measurement that is being made."""

_SMALL = 5.0  # seconds of a small measurement
_LINES = 12  # of a failed command that are kept


class OutOfTimeError(Exception):
    """What is left does not fit the rest of the call."""


@dataclasses.dataclass(frozen=True)
class Call:
    """What a part knows of the call that it is run by.

    Attributes:
      part: its name.
      platform: a key of `platforms.JAX_PLATFORMS`.
      small: whether to do with sizes that a CPU computes in minutes.
      workdir: of all calls.
      deadline: by `time.time`.
      lock: descriptor that stays locked while anything that the part has started is alive.
    """

    part: str
    platform: str
    small: bool
    workdir: Workdir
    deadline: float
    lock: int | None = None

    @property
    def folder(self) -> Path:
        """Of what the part keeps between calls."""
        return self.workdir.path / self.part

    @property
    def left(self) -> float:
        """Seconds until the deadline."""
        return self.deadline - time.time()

    def measure(self, name: str, seconds: float, made: Callable[[], Mapping[str, Any]]) -> Any:
        """A measurement of this call or an earlier one.

        What goes wrong in one measurement is its result, and leaves the others alone.

        Args:
          name: unique in the part.
          seconds: what it should take; it is not begun with less time than this.
          made: makes it.

        Returns:
          What it gave, or what an earlier call wrote: a dict with `skipped` or `failed`, the
          reason, where there is nothing.

        Raises:
          OutOfTimeError: it was not begun.
        """
        if (known := self.measured(name)) is not None:
            return known
        self.check_time(name, seconds)
        began = time.perf_counter()
        self.workdir.write_text(f"{self.part}/{RUNNING}", name)  # should the process crash
        try:
            result = dict(made())
        except SkippedError as reason:
            result = {"skipped": str(reason)}
        except (OutOfTimeError, KeyboardInterrupt):
            raise
        except Exception as error:
            traceback.print_exc()
            result = {"failed": f"{type(error).__name__}: {error}".strip()[:2000]}
        finally:
            (self.folder / RUNNING).unlink(missing_ok=True)
        result["measured_in_seconds"] = time.perf_counter() - began
        self.workdir.write_json(f"{self.part}/{name}.json", result)
        return self.measured(name)

    def measured(self, name: str) -> Any | None:
        """What `measure` gave in an earlier call or this one."""
        try:
            return self.workdir.read_json(f"{self.part}/{name}.json")
        except FileNotFoundError:
            return None

    def check_time(self, name: str, seconds: float) -> None:
        """Raises OutOfTimeError where less is left of the call."""
        if self.left < (min(seconds, _SMALL) if self.small else seconds):
            raise OutOfTimeError(
                f"{name} takes some {seconds:.0f} s, and {self.left:.0f} s are left"
            )

    def rrope_posgen(self, workdir: Path, size: str, *flags: str) -> dict[str, Any]:
        """Runs or continues `rrope posgen` in `posgen_config`; returns its results.

        Raises:
          OutOfTimeError, RuntimeError: as `run`.
        """
        config = Path(__file__).with_name("posgen_config.py")
        size = f"small_{size}".removesuffix("_paper") if self.small else size
        words = ["posgen", f"--config={config}:{size}", f"--workdir={workdir}", *flags]
        self.run(["-m", "rrope_jax", *words])
        results: dict[str, Any] = json.loads((workdir / "results.json").read_bytes())
        return results

    def run(self, words: Sequence[str], **environment: str) -> "subprocess.CompletedProcess[str]":
        """Runs a command of Python from the root of the repository, until the deadline.

        Raises:
          OutOfTimeError: it was told to end, and did.
          RuntimeError: it failed; the message is the end of what it said.
        """
        process = subprocess.Popen(
            python(*words),
            cwd=ROOT,
            env=self.environment | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            pass_fds=() if self.lock is None else (self.lock,),
        )
        try:
            out, err = process.communicate(timeout=max(1.0, self.left - self._saving))
        except subprocess.TimeoutExpired:
            process.terminate()
            try:
                process.communicate(timeout=max(5.0, self.left))
            except subprocess.TimeoutExpired:
                process.kill()
                process.communicate()
            raise OutOfTimeError(f"{' '.join(words[:3])} goes on in the next call") from None
        except BaseException:
            process.terminate()
            process.communicate()
            raise
        if process.returncode:
            said = "\n".join((err or out).strip().splitlines()[-_LINES:])
            raise RuntimeError(f"{' '.join(words[:3])} ended with {process.returncode}: {said}")
        return subprocess.CompletedProcess(words, 0, out, err)

    @property
    def environment(self) -> dict[str, str]:
        """Of every command: the platform, and programs that are compiled once for all calls."""
        return os.environ | {
            "JAX_PLATFORMS": platforms.JAX_PLATFORMS[self.platform],
            "JAX_COMPILATION_CACHE_DIR": str(self.workdir.path / "compiled"),
            "PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH")))),
            "MPLBACKEND": "agg",
        }

    @property
    def _saving(self) -> float:
        return min(_SAVING, self.left / 4)


class SkippedError(Exception):
    """A measurement cannot be made here; the message says why."""


def python(*words: str) -> list[str]:
    """The words of a Python command that ends with this process."""
    return [sys.executable, str(Path(__file__).with_name("bound.py")), *words]
