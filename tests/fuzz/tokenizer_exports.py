"""Tokenizers of Hugging Face folders as the metadata of a GGUF file, and back."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rrope_jax.io.gguf import tokenizer as gguf_tokenizer
from rrope_jax.io.tokenizer.files import TokenizerFiles
from tests.fuzz import tokenizer_files
from tests.fuzz.judging import Target, UnfitError

_VOCAB_SIZE = 40


def _seeds() -> Sequence[dict[str, Any]]:
    """Those that GGUF has a form for."""
    return [
        tree for tree in tokenizer_files.folders() if "merges" in tree["tokenizer.json"]["model"]
    ]


def _run(folder: Path) -> None:
    files = TokenizerFiles.of_folder(folder)
    if files is None:
        raise UnfitError
    again = gguf_tokenizer.tokenizer_files(gguf_tokenizer.metadata_of(files, _VOCAB_SIZE))
    if again is not None:
        tokenizer_files.use(again)


TARGET = Target("tokenizer_exports", _seeds, _run, share=0.05)
