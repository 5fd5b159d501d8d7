"""docs/howto/use_in_your_model.md: every snippet runs where its library is installed."""

import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest

PAGE = (Path(__file__).parents[2] / "docs" / "howto" / "use_in_your_model.md").read_text()
SNIPPETS = re.findall(r"^## ([^\n]*)\n.*?```python\n# needs: (\w+)\n(.*?)```", PAGE, re.S | re.M)


def test_each_section_has_one() -> None:
    assert [title for title, _, _ in SNIPPETS] == re.findall(r"^## (.*)$", PAGE, re.M)
    assert PAGE.count("```python") == len(SNIPPETS)
    assert {library for _, library, _ in SNIPPETS} == {"jax", "flax", "equinox"}


@pytest.mark.parametrize(
    ("library", "code"), [pytest.param(*rest, id=title) for title, *rest in SNIPPETS]
)
def test_snippet_runs(library: str, code: str) -> None:
    pytest.importorskip(library)
    scope: dict[str, Any] = {"__name__": "snippet"}
    exec(code, scope)
    assert isinstance(scope["result"], jax.Array)
    assert bool(jnp.all(jnp.isfinite(scope["result"])))
    assert scope["result"].shape[0] in (1, 2)
