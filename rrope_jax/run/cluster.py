"""Finds the processes of a job from environment variables or JAX's cluster detection.

JAX detects SLURM, Open MPI, TPU pods and Kubernetes. Its public `jax.distributed.initialize` joins
the processes right away and cannot tell a single process from many, so this module calls JAX's
private detection. With a JAX release that lacks it, single-process jobs still run, and
multi-process jobs raise an error that says which variables to set.
"""

import contextlib
import dataclasses
import inspect
import os
import warnings
from collections.abc import Callable, Sequence
from typing import Any

from rrope_jax.cli.errors import UsageError

_ADDRESS, _COUNT, _INDEX = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"
_DEFAULTS = {  # seconds
    "RROPE_JOIN_TIMEOUT": 300.0,
    "RROPE_HEARTBEAT": 25.0,
    "RROPE_LOCK_SECONDS": 60.0,
}
# Cluster variables that give the processes or hosts: their number, or their names.
_COUNTS = ("SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MEGASCALE_NUM_SLICES")
_NAMES = ("TPU_WORKER_HOSTNAMES", "TPU_PROCESS_ADDRESSES")


@dataclasses.dataclass(frozen=True)
class Process:
    """A process of a multi-process job.

    Attributes:
      address: HOST:PORT of process 0.
      count: Number of processes.
      index: Index of this process.
      devices: Local indices of this process's devices; None for all devices of the machine.
    """

    address: str
    count: int
    index: int
    devices: list[int] | None = None


def find_process() -> Process | None:
    """Returns this process's place in its job, or None for a single-process job.

    Raises:
      UsageError: The environment variables are incomplete or malformed.
    """
    variables = {name: os.environ.get(name, "") for name in (_ADDRESS, _COUNT, _INDEX)}
    if not any(variables.values()):
        return _detect()
    for name, value in variables.items():
        if not value:
            others = ", ".join(f"{other}={text}" for other, text in variables.items() if text)
            raise UsageError(
                f"{name} is not set, but {others}: several processes need {_ADDRESS} (host:port of "
                f"process 0), {_COUNT} and {_INDEX}"
            )
    host, _, port = variables[_ADDRESS].rpartition(":")
    if not host or not port.isdecimal():
        raise UsageError(f"{_ADDRESS}={variables[_ADDRESS]} has to be host:port of process 0")
    for name in (_COUNT, _INDEX):
        if not variables[name].isdecimal():
            raise UsageError(f"{name}={variables[name]} has to be a whole number")
    count, index = int(variables[_COUNT]), int(variables[_INDEX])
    if index >= count:
        raise UsageError(f"{_INDEX}={index} has to be below {_COUNT}={count}")
    return Process(variables[_ADDRESS], count, index) if count > 1 else None


def seconds(name: str) -> float:
    """Returns a time limit in seconds: a key of `_DEFAULTS`, from the environment.

    Raises:
      UsageError: The variable is not a number of at least 1.
    """
    text = os.environ.get(name, "")
    if not text:
        return _DEFAULTS[name]
    with contextlib.suppress(ValueError):
        if 1 <= float(text) < float("inf"):
            return float(text)
    raise UsageError(f"{name}={text} has to be a number of seconds, 1 or more")


def _detect() -> Process | None:
    """Returns this process's place among those that JAX detects, or None if there is only one."""
    detect = _jax_detection()
    if detect is None:
        if (name := _variable_of_several()) is not None:
            raise _undetected(
                f"{name}={os.environ[name]}, but this release of JAX does not say how it finds them"
            )
        return None
    timeout = int(seconds("RROPE_JOIN_TIMEOUT"))
    with warnings.catch_warnings():
        # JAX warns on Kubernetes if the package kubernetes, which a single process does not need,
        # is not installed
        warnings.simplefilter("ignore")
        try:
            address, count, index, devices = detect(None, None, None, None, None, timeout)
        except Exception as error:  # many libraries take part in the detection
            raise _undetected(" ".join(str(error).split())[:300]) from error
    if address is None or count is None or index is None or count == 1:
        return None
    return Process(address, count, index, None if devices is None else list(devices))


_Detection = Callable[..., tuple[str | None, int | None, int | None, Sequence[int] | None]]


def _jax_detection() -> _Detection | None:
    """Returns the function that `jax.distributed.initialize` calls; None if JAX lacks it."""
    try:
        from jax._src.clusters import ClusterEnv

        detect: Any = ClusterEnv.auto_detect_unset_distributed_params
        inspect.signature(detect).bind(None, None, None, None, None, 0)
    except (ImportError, AttributeError, TypeError):
        return None
    detection: _Detection = detect
    return detection


def _variable_of_several() -> str | None:
    """Returns the name of a variable that indicates several processes, or None."""
    for name in _COUNTS:
        count = os.environ.get(name, "")
        if count.isdecimal() and int(count) > 1:
            return name
    return next((name for name in _NAMES if "," in os.environ.get(name, "")), None)


def _undetected(reason: str) -> UsageError:
    return UsageError(
        f"JAX finds a cluster here, but not its processes; set {_ADDRESS}, {_COUNT} and "
        f"{_INDEX}, to localhost:1234, 1 and 0 where this is the only one ({reason})"
    )
