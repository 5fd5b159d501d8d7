"""`rrope convert` from every format to another: whole, or not at all."""

import contextlib
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rrope_jax.jobs import convert
from tests.fuzz import gguf_files, model_folders, own_folders
from tests.fuzz.judging import Target

_SOURCE, _RESULT, _FORMAT = "model", "result", "format.txt"
_FORMATS = ("gguf", "hf", "orbax")


def _seeds() -> Sequence[dict[str, Any]]:
    folders = [
        {f"{_SOURCE}/{name}": content for name, content in tree.items()}
        for tree in model_folders.seeds()
    ]
    files = gguf_files.seeds()
    own = [
        {name.replace(own_folders.NAME, _SOURCE, 1): content for name, content in tree.items()}
        for tree in own_folders.seeds()
    ]
    return [tree | {_FORMAT: target} for tree in (*folders, *files, *own) for target in _FORMATS]


def _run(folder: Path) -> None:
    asked = (folder / _FORMAT).read_text(errors="replace") if (folder / _FORMAT).exists() else ""
    wanted = asked if asked in _FORMATS else "hf"
    source = gguf_files.NAME if (folder / gguf_files.NAME).exists() else _SOURCE
    words = [f"--from={folder / source}", f"--to={folder / _RESULT}", f"--format={wanted}"]
    said = io.StringIO()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(said):
        try:
            code = convert.main(words)
        except ValueError:
            assert not (folder / _RESULT).exists(), "refused, and something is at the target"
            raise
    if code == 1:
        raise OSError(said.getvalue().strip())
    assert code == 0, code
    assert (folder / _RESULT).exists(), "done, and nothing is at the target"


TARGET = Target("conversions", _seeds, _run, target=_RESULT, share=0.25)
