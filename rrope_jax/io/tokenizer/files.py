"""Tokenizer files, which are copied unchanged from checkpoint to checkpoint."""

import dataclasses
from collections.abc import Mapping

from rrope_jax.io.stores import AnyPath
from rrope_jax.io.target import write_file

SCORES = "sentencepiece_scores.json"
"""The file with token scores for vocabularies that need them; see `io.tokenizer.sentencepiece`."""
MORE_TEMPLATES = "additional_chat_templates/"
"""The subfolder of additional chat templates, each in a file NAME.jinja."""
# The tokenizer files of Hugging Face folders, and our own SCORES. transformers' `generate` needs
# generation_config.json to stop at the right tokens.
NAMES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "chat_template.jinja",
    "chat_template.json",
    SCORES,
    "generation_config.json",
)


@dataclasses.dataclass(frozen=True)
class TokenizerFiles:
    """The files of a tokenizer.

    Attributes:
      files: content by name; the names are in `NAMES` or start with `MORE_TEMPLATES`.
    """

    files: Mapping[str, bytes]

    @classmethod
    def of_folder(cls, folder: AnyPath) -> "TokenizerFiles | None":
        """Reads the tokenizer files of a folder; returns None if it has none."""
        more = sorted(each.name for each in (folder / MORE_TEMPLATES.rstrip("/")).glob("*.jinja"))
        names = (*NAMES, *(f"{MORE_TEMPLATES}{name}" for name in more))
        files = {name: (folder / name).read_bytes() for name in names if (folder / name).is_file()}
        return cls(files) if files else None

    def write(self, folder: AnyPath) -> None:
        """Writes the files into a folder, which is created if necessary."""
        for name, data in self.files.items():
            write_file(folder / name, data)
