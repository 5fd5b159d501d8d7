"""Settings that every test needs, made before JAX is imported."""

import importlib.util
import os
import signal

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


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skips comparisons with other implementations where those are not installed."""
    missing = [name for name in _PEERS if importlib.util.find_spec(name) is None]
    if missing and item.get_closest_marker("peers"):
        pytest.skip(f"needs the peers extra ({', '.join(missing)} not installed)")
