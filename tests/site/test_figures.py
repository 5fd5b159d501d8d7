"""docs/figures.py: the committed figures and tables are what the code computes."""

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

DOCS = Path(__file__).parents[2] / "docs"


def _load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_figures", DOCS / "figures.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["docs_figures"] = module
    spec.loader.exec_module(module)
    return module


FIGURES = _load()


@pytest.mark.parametrize("name", FIGURES.FIGURES)
def test_figure_shows_what_the_code_computes(name: str) -> None:
    with Image.open(FIGURES.FOLDER / f"{name}.png") as image:
        committed = json.loads(image.text["numbers"])
    computed = FIGURES.FIGURES[name][0]()
    assert committed.keys() == computed.keys()
    for key, values in computed.items():
        # Angles come from float32, in turns; one close to a whole turn is also close to none.
        apart = np.abs(np.subtract(committed[key], values))
        if name == "phase_slip":
            apart = np.minimum(apart, 1 - apart)
        np.testing.assert_allclose(apart, 0, atol=2e-5 * max(1, np.max(np.abs(values))))


@pytest.mark.parametrize("name", FIGURES.TABLES)
def test_table_is_what_the_code_computes(name: str) -> None:
    assert (FIGURES.FOLDER / f"{name}.md").read_text() == FIGURES.TABLES[name]()


def test_every_figure_is_drawn_and_shown() -> None:
    page = (DOCS / "idea.md").read_text()
    files = sorted(path.name for path in FIGURES.FOLDER.iterdir())
    assert files == sorted(
        [*(f"{name}.png" for name in FIGURES.FIGURES), *(f"{name}.md" for name in FIGURES.TABLES)]
    )
    assert all(f"idea/{name}" in page for name in files)
    assert FIGURES.draw("gap").startswith(b"\x89PNG")
