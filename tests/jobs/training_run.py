"""The small text that tests train on, and what a run has left in its workdir."""

import json
import random
from pathlib import Path
from typing import Any


def write_text(folder: Path) -> None:
    """Three documents of different lengths."""
    words = random.Random(0)
    for name, count in (("a", 60), ("b", 400), ("c", 100)):
        document = " ".join(words.choice(["red", "green", "blue"]) for _ in range(count))
        (folder / f"{name}.txt").write_text(document)


def read_records(workdir: Path) -> list[dict[str, Any]]:
    """The metrics of every step that is logged."""
    file = workdir / "metrics.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def count_lines(workdir: Path) -> int:
    """How many are logged, of which the last one may be half written."""
    file = workdir / "metrics.jsonl"
    return file.read_bytes().count(b"\n") if file.exists() else 0


def saved_steps(workdir: Path) -> list[int]:
    """The steps of the checkpoints."""
    folder = workdir / "checkpoints"
    names = (path.name for path in folder.iterdir()) if folder.is_dir() else ()
    return sorted(int(name) for name in names if name.isdigit())
