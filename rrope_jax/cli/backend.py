"""Console output of a job: quiet libraries, plain logs, and a one-line backend description."""

import logging
import os
import sys

import absl.logging

# The C++ parts of JAX, libtpu and gRPC read these when they are loaded. Level 2 keeps errors.
_QUIET_ENVIRONMENT = {"TF_CPP_MIN_LOG_LEVEL": "2", "GRPC_VERBOSITY": "ERROR"}

_PACKAGE = "rrope_jax"


def silence() -> None:
    """Silences the C++ libraries underneath JAX, except for errors.

    Variables that the user has set are left alone. Call this before importing JAX.
    """
    for name, value in _QUIET_ENVIRONMENT.items():
        os.environ.setdefault(name, value)


def silence_orbax() -> None:
    """Keeps Orbax and its threads from logging tracebacks of errors that they also raise."""
    absl.logging.set_verbosity(absl.logging.FATAL)
    for name in ("asyncio", "concurrent.futures"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


def configure_logging(level: int = logging.INFO) -> logging.Logger:
    """Sends this package's log to stderr, one plain line per record.

    Other packages keep Python's defaults (warnings and errors): at INFO, JAX reports every
    accelerator that the machine lacks, and Orbax every step of a save.

    Args:
      level: The lowest level to show.

    Returns:
      The package's logger, the parent of `logging.getLogger(__name__)` in its modules.
    """
    logger = logging.getLogger(_PACKAGE)
    logger.setLevel(level)
    logger.propagate = False
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", datefmt="%H:%M:%S"))
    logger.handlers = [handler]
    return logger


def describe() -> str:
    """Describes the backend in one line, such as `backend cpu, 2 devices, jax 0.10.2`.

    Accelerators are named: `backend gpu, 1 device (NVIDIA H100 80GB HBM3), jax 0.10.2`.
    Initializes the backend if nothing else has.
    """
    import jax  # imported late so that silence() can run first

    devices = jax.devices()
    count = f"{len(devices)} device{'' if len(devices) == 1 else 's'}"
    kind = devices[0].device_kind
    named = "" if kind == devices[0].platform else f" ({kind})"
    return f"backend {jax.default_backend()}, {count}{named}, jax {jax.__version__}"
