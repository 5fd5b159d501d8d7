"""Fixtures of the evaluation tests."""

import pytest

from tests.posgen.conftest import quick_compilation as quick_compilation


@pytest.fixture(autouse=True, scope="module")
def _quick(quick_compilation: None) -> None:
    """Compiles quickly: nothing that these tests assert depends on the level."""
