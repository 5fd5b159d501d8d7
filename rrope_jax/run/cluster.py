"""The processes of a job as JAX finds them: SLURM, Open MPI, a TPU pod, Kubernetes.

JAX's public `jax.distributed.initialize` finds them as well, but joins them at once and cannot tell
one process from many, so what it asks is asked here. That is private to JAX: where a release has
it no more, a job that runs alone still does, and one of several says what has to be set.
"""

import inspect
import os
import warnings
from collections.abc import Callable, Sequence
from typing import Any

from rrope_jax.run.peers import Place

# What says on clusters how many processes or hosts there are, as a number or as names.
_COUNTS = ("SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MEGASCALE_NUM_SLICES")
_NAMES = ("TPU_WORKER_HOSTNAMES", "TPU_PROCESS_ADDRESSES")


class DetectionError(RuntimeError):
    """There is a cluster, but it cannot be told what its processes are; the message says why."""


def detect(timeout: int) -> Place | None:
    """This process among those that JAX finds; None where it is alone.

    Args:
      timeout: seconds that a cluster has to answer.

    Raises:
      DetectionError: see there.
    """
    ask = _jax_detection()
    if ask is None:
        if (name := _several()) is not None:
            raise DetectionError(
                f"{name}={os.environ[name]}, but this release of JAX does not say how it finds them"
            )
        return None
    with warnings.catch_warnings():
        # in Kubernetes without the package kubernetes, which a single process does not need
        warnings.simplefilter("ignore")
        try:
            address, count, index, devices = ask(None, None, None, None, None, timeout)
        except Exception as error:  # of many libraries
            raise DetectionError(" ".join(str(error).split())[:300]) from error
    if address is None or count is None or index is None or count == 1:
        return None
    return Place(address, count, index, None if devices is None else list(devices))


_Detection = Callable[..., tuple[str | None, int | None, int | None, Sequence[int] | None]]


def _jax_detection() -> _Detection | None:
    """What `jax.distributed.initialize` asks; None where this release of JAX has it no more."""
    try:
        from jax._src.clusters import ClusterEnv

        ask: Any = ClusterEnv.auto_detect_unset_distributed_params
        inspect.signature(ask).bind(None, None, None, None, None, 0)
    except (ImportError, AttributeError, TypeError):
        return None
    found: _Detection = ask
    return found


def _several() -> str | None:
    """The variable that speaks of several processes, if there is one."""
    for name in _COUNTS:
        count = os.environ.get(name, "")
        if count.isdecimal() and int(count) > 1:
            return name
    return next((name for name in _NAMES if "," in os.environ.get(name, "")), None)
