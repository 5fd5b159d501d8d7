"""The notebooks: committed without outputs, and one of them only run where its model is."""

import json
import sys
from pathlib import Path, PurePosixPath

import pytest

DOCS = Path(__file__).parents[2] / "docs"
NOTEBOOKS = sorted((DOCS / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_no_outputs_are_committed(path: Path) -> None:
    cells = [c for c in json.loads(path.read_text())["cells"] if c["cell_type"] == "code"]
    assert cells
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in cells)


def test_ten_cells() -> None:
    cells = json.loads((DOCS / "notebooks" / "rope_to_resonance.ipynb").read_text())["cells"]
    assert sum(cell["cell_type"] == "code" for cell in cells) == 10


def test_without_the_model_its_notebook_is_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("sphinx")
    monkeypatch.setattr(sys, "path", [str(DOCS), *sys.path])
    from site_extension import notebooks_without_their_model

    (pattern,) = notebooks_without_their_model(tmp_path)
    assert [path.stem for path in NOTEBOOKS if PurePosixPath(path).match(pattern)] == [
        "extend_smollm2"
    ]
    assert "bash launch/smollm2.sh fetches it" in capsys.readouterr().out
    model = tmp_path / "models" / "SmolLM2-135M-Instruct.Q4_1.gguf"
    model.parent.mkdir()
    model.touch()
    assert notebooks_without_their_model(tmp_path) == []
