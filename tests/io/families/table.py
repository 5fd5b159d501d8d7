"""Runs all proofs and writes the table of docs/models.md.

```
python -m tests.io.families.table            # all cases: some minutes
python -m tests.io.families.table qwen3      # only these; the others keep their figures
python -m tests.io.families.table --rows     # the page again, from the figures in docs/models.json
```
"""

import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.io.families.case import Case, all_cases

DOCS = Path(__file__).parents[3] / "docs"
FIGURES, PAGE = DOCS / "models.json", DOCS / "models.md"
BEGIN, END = "<!-- rows of tests/io/families/table.py -->", "<!-- end of the rows -->"
HEADER = (
    "| `model_type` | models like | the tiny model | logits | cached | folded | llama.cpp |",
    "| --- | --- | --- | --- | --- | --- | --- |",
)


def measure(case: Case) -> dict[str, float]:
    """The figures of a case by proof."""
    from tests.io.families import proofs

    figures = {}
    with tempfile.TemporaryDirectory() as name:
        model = proofs.save(case, Path(name) / "model")
        for proof_name, proof in proofs.PROOFS.items():
            if proof.applies(case):
                folder = Path(name) / proof_name
                folder.mkdir()
                figures[proof_name] = proof.measure(model, folder)
                if not proof.holds(figures[proof_name]):
                    raise SystemExit(f"{case}: {proof_name} is {figures[proof_name]}")
    return figures


def rows(figures: Mapping[str, Mapping[str, float]]) -> list[str]:
    """The rows of the table, for cases that have figures."""
    return [_row(case, figures[str(case)]) for case in all_cases() if str(case) in figures]


def _row(case: Case, figures: Mapping[str, float]) -> str:
    llama_cpp = f"no: {case.llama_cpp}"
    if case.llama_cpp is True:
        llama_cpp = f"{figures['llama_cpp']:.1%}"
        if "llama_cpp_extended" in figures:
            llama_cpp += f", resonance YaRN {figures['llama_cpp_extended']:.1%}"
            llama_cpp += f" (as `{case.exported}`)"
        else:
            llama_cpp += "; no list of frequencies"
    cells = (
        f"`{case.family}`",
        case.models,
        case.note,
        *(f"{figures[name]:.1e}" for name in ("logits", "cached", "folded")),
        llama_cpp,
    )
    return f"| {' | '.join(cells)} |"


def write_page(figures: Mapping[str, Mapping[str, float]]) -> None:
    """Replaces the rows of the page."""
    page = PAGE.read_text()
    before, after = page.split(BEGIN)[0], page.split(END)[1]
    lines = "\n".join([BEGIN, "", *HEADER, *rows(figures), "", END])
    PAGE.write_text(f"{before}{lines}{after}")


def _write(figures: Mapping[str, Mapping[str, float]]) -> None:
    FIGURES.write_text(json.dumps(figures, indent=2) + "\n")
    write_page(figures)


def main(arguments: Sequence[str]) -> None:
    """Measures the cases whose family is named, or all, and writes both files."""
    figures: dict[str, Any] = json.loads(FIGURES.read_text()) if FIGURES.exists() else {}
    known = [str(case) for case in all_cases()]
    for case in all_cases():
        if arguments != ["--rows"] and (not arguments or case.family in arguments):
            figures[str(case)] = measure(case)
            print(case, figures[str(case)], flush=True)
            _write({name: figures[name] for name in known if name in figures})
    _write({name: figures[name] for name in known if name in figures})


if __name__ == "__main__":
    main(sys.argv[1:])
