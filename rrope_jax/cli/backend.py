"""What a job says about the machine: quiet libraries, plain logs, one line on the backend."""

import logging
import os
import sys

import absl.logging

# Read by the C++ parts of JAX, libtpu and gRPC when they are loaded. 2 keeps their errors.
_QUIET_ENVIRONMENT = {"TF_CPP_MIN_LOG_LEVEL": "2", "GRPC_VERBOSITY": "ERROR"}

_PACKAGE = "rrope_jax"


def silence() -> None:
    """Keeps the C++ libraries below JAX from printing notices that are not errors.

    Sets only variables that the user has not set. Call it before importing JAX.
    """
    for name, value in _QUIET_ENVIRONMENT.items():
        os.environ.setdefault(name, value)


def silence_orbax() -> None:
    """Keeps Orbax and its threads from logging a traceback of what they also raise."""
    absl.logging.set_verbosity(absl.logging.FATAL)
    for name in ("asyncio", "concurrent.futures"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


def configure_logging(level: int = logging.INFO) -> logging.Logger:
    """Sends this package's log to stderr, one plain line a record.

    Other packages keep Python's defaults (warnings and errors): at INFO, JAX reports each
    accelerator that the machine lacks, and Orbax every step of a save.

    Args:
      level: The least level that is shown.

    Returns:
      The package's logger; `logging.getLogger(__name__)` in any module is a child of it.
    """
    logger = logging.getLogger(_PACKAGE)
    logger.setLevel(level)
    logger.propagate = False
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", datefmt="%H:%M:%S"))
    logger.handlers = [handler]
    return logger


def describe() -> str:
    """The backend in one line, such as `backend cpu, 2 devices, jax 0.10.2`.

    Accelerators are named: `backend gpu, 1 device (NVIDIA H100 80GB HBM3), jax 0.10.2`.
    Initialises the backend if nothing has yet.
    """
    import jax  # here, so that silence() can run first

    devices = jax.devices()
    count = f"{len(devices)} device{'' if len(devices) == 1 else 's'}"
    kind = devices[0].device_kind
    named = "" if kind == devices[0].platform else f" ({kind})"
    return f"backend {jax.default_backend()}, {count}{named}, jax {jax.__version__}"
