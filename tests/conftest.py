"""Settings that every test needs, made before JAX is imported."""

import hashlib
import importlib.util
import os
import platform
import shutil
import signal
from pathlib import Path

import hypothesis
import pytest

# Tolerances are those of the CPU; JAX_PLATFORMS=cuda or tpu runs the tests there all the same.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("MPLBACKEND", "agg")

# Where the tests run in the background of a script, SIGINT is ignored, and in what they start, too.
signal.signal(signal.SIGINT, signal.default_int_handler)

# No deadline: the first example of a property pays for compilation. The same examples in each run:
# a property that fails by chance would stop a change that has nothing to do with it.
hypothesis.settings.register_profile("steady", deadline=None, derandomize=True)
hypothesis.settings.load_profile("steady")

_PEERS = ("torch", "transformers")
_LARGEST_CACHE = 1 << 30  # bytes of compiled programs; a run of all tests makes a tenth of that


def pytest_configure(config: pytest.Config) -> None:
    """One cache of compiled programs for all tests, the processes that they start, and later runs.

    It lies with pytest's own (`--cache-clear` empties both), apart for each processor: programs are
    compiled for the one at hand. Without pytest's (`-p no:cacheprovider`) there is none.
    """
    if not hasattr(config, "cache"):
        return
    folder = Path(config.cache.mkdir(f"compiled-{_processor()}"))
    if not hasattr(config, "workerinput"):  # once, before workers of pytest-xdist use it
        size = sum(path.stat().st_size for path in folder.iterdir())
        if size > _LARGEST_CACHE:
            shutil.rmtree(folder)
            folder.mkdir()
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(folder))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")


def _processor() -> str:
    """A name for what programs are compiled for, as far as the system tells."""
    described = platform.machine() + platform.processor()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        lines = cpuinfo.read_text(errors="replace").splitlines()
        told = {line for line in lines if line.startswith(("model name", "flags", "Features"))}
        described += "".join(sorted(told))
    return hashlib.sha256(described.encode()).hexdigest()[:8]


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skips comparisons with other implementations where those are not installed."""
    missing = [name for name in _PEERS if importlib.util.find_spec(name) is None]
    if missing and item.get_closest_marker("peers"):
        pytest.skip(f"needs the peers extra ({', '.join(missing)} not installed)")
