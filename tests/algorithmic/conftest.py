"""All tests of this folder compile fast rather than for speed."""

import pytest

from tests.posgen.conftest import quick_compilation as quick_compilation


@pytest.fixture(autouse=True)
def _quick(quick_compilation: None) -> None:
    """Applies `quick_compilation`."""
