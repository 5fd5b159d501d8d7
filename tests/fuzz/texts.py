"""Folders of text: plain, JSONL, gzipped, found by path, folder and glob."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rrope_jax.data.text import TextConfig, documents, split
from tests.fuzz.judging import Target, UnfitError

_ASKED = "asked.json"  # what a config says of the text


def _seeds() -> Sequence[dict[str, Any]]:
    lines = [{"text": "one two", "title": "a"}, {"text": "three\u00e9"}]
    files = {
        "texts/a.txt": "one two three\r\n\u00e9",
        "texts/b.jsonl": lines,
        "texts/deep/c.txt.gz": "four " * 50,
        "texts/deep/d.jsonl.gz": lines,
        "texts/.hidden.txt": "no",
        "texts/e.md": "five",
    }
    every: list[dict[str, Any]] = [
        {"source": "texts"},
        {"source": "texts", "heldout": ["a.txt", "b*"], "heldout_share": 0.25},
        {"source": "texts/**/*.jsonl*", "text_key": "text"},
        {"source": "texts/*.[tm]*"},
        {"source": "texts/deep/c.txt.gz"},
        {"source": "texts/deep/d.jsonl.gz", "text_key": "text"},
    ]
    return [{_ASKED: asked} | files for asked in every]


def _run(folder: Path) -> None:
    try:
        asked = json.loads((folder / _ASKED).read_bytes())
        source = folder / asked["source"]
        keys = {key: asked[key] for key in ("heldout_share", "text_key") if key in asked}
        heldout = tuple(map(str, asked.get("heldout", ())))
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        raise UnfitError from None
    share, key = keys.get("heldout_share", 0.0), keys.get("text_key")
    # the types are those of the dataclass: `from_config` has seen to that
    if not isinstance(share, float) or not isinstance(key, str | None) or ".." in source.parts:
        raise UnfitError
    if not source.is_relative_to(folder):
        raise UnfitError  # any file of this machine
    config = TextConfig(source=str(source), text_key=key, heldout=heldout, heldout_share=share)
    found = documents(config)
    split(config, found.names)
    for document in found:
        document.text.encode()


TARGET = Target("texts", _seeds, _run)
