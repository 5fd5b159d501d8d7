"""What a job says about the machine."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from rrope_jax.cli import backend

ROOT = Path(__file__).parents[2]


def test_description_names_backend_devices_and_version() -> None:
    described = backend.describe()
    assert described.startswith(f"backend {jax.default_backend()}, {jax.device_count()} device")
    assert described.endswith(f"jax {jax.__version__}")


def test_one_line_and_nothing_else_without_an_accelerator() -> None:
    code = (
        "from rrope_jax.cli import backend; backend.silence();"
        "backend.configure_logging().info(backend.describe());"
        "import jax.numpy as jnp; print(jnp.ones(3).sum())"
    )
    environment = {k: v for k, v in os.environ.items() if k != "JAX_PLATFORMS"}
    run = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
        env=environment,
    )
    assert run.stdout == "3.0\n"
    (line,) = run.stderr.splitlines()
    assert " backend " in line


def test_silence_leaves_what_the_user_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TF_CPP_MIN_LOG_LEVEL", "0")
    backend.silence()
    assert os.environ["TF_CPP_MIN_LOG_LEVEL"] == "0"
