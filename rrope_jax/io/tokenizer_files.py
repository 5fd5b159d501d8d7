"""The files of a tokenizer, carried from checkpoint to checkpoint as they are."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

# What Hugging Face folders hold beside weights and config.json. The last one is read by
# `generate` of transformers, which else would not stop at the right token.
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
    "generation_config.json",
)


@dataclasses.dataclass(frozen=True)
class TokenizerFiles:
    """Files by name, with their bytes.

    Attributes:
      files: names among `NAMES`.
    """

    files: Mapping[str, bytes]

    @classmethod
    def of_folder(cls, folder: Path) -> "TokenizerFiles | None":
        """Those that a folder holds; None where it has none."""
        files = {name: (folder / name).read_bytes() for name in NAMES if (folder / name).is_file()}
        return cls(files) if files else None

    def write(self, folder: Path) -> None:
        """Writes them into a folder, which is made where it does not exist."""
        folder.mkdir(parents=True, exist_ok=True)
        for name, data in self.files.items():
            (folder / name).write_bytes(data)
