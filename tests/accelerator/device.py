"""What the device is, and which releases it is run with."""

import importlib.metadata
import os
import platform
import shutil
import subprocess
from typing import Any

import jax
import jax.extend.backend
import jax.numpy as jnp
import numpy as np

from tests.accelerator.call import Call

_PACKAGES = (
    *("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "libtpu"),
    *("jax-cuda12-plugin", "jax-cuda13-plugin", "nvidia-cudnn-cu12", "nvidia-cudnn-cu13"),
    *("torch", "transformers"),
)


def run(call: Call) -> None:
    """One measurement, `device`.

    Raises:
      RuntimeError: the platform is not there, or earlier calls ran on another kind of it.
    """
    found = jax.default_backend()
    if found != call.platform:
        raise RuntimeError(f"JAX has started on {found.upper()}, not on {call.platform.upper()}")
    known, kind = call.measure("device", 0.0, _describe), jax.devices()[0].device_kind
    if known.get("kind", kind) != kind:
        raise RuntimeError(
            f"earlier calls have measured {known['kind']}, and this is {kind}: give another OUT, "
            "and another --work"
        )


def _describe() -> dict[str, Any]:
    device = jax.devices()[0]
    memory = device.memory_stats() or {}
    return {
        "platform": device.platform,
        "kind": device.device_kind,
        "devices": len(jax.devices()),
        "memory_bytes": memory.get("bytes_limit"),
        "backend": jax.extend.backend.get_backend().platform_version,
        "driver": _driver(),
        "cores": os.cpu_count(),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "versions": _versions(),
        # so that a later part does not find out
        "computes": float(jnp.sum(jnp.asarray(np.ones((256, 256), np.float32)) @ jnp.ones((256,)))),
    }


def _versions() -> dict[str, str]:
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _driver() -> str | None:
    """Name, memory and driver of each GPU, as NVIDIA's tool says them."""
    if shutil.which("nvidia-smi") is None:
        return None
    asked = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    said = subprocess.run(asked, capture_output=True, text=True, check=False)
    return said.stdout.strip() or None
