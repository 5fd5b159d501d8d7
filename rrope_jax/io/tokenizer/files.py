"""The files of a tokenizer, carried from checkpoint to checkpoint as they are."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

from rrope_jax.io.target import replace_file

SCORES = "sentencepiece_scores.json"
"""What a tokenizer.json cannot say of a vocabulary with equal scores; see `sentencepiece`."""
MORE_TEMPLATES = "additional_chat_templates/"
"""The folder of chat templates beside the default one, each with its name and `.jinja`."""
# What Hugging Face folders hold beside weights and config.json, and our own file. The last one is
# read by `generate` of transformers, which would not stop at the right token without it.
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
    """Files by name, with their bytes.

    Attributes:
      files: names among `NAMES`, and in `MORE_TEMPLATES`.
    """

    files: Mapping[str, bytes]

    @classmethod
    def of_folder(cls, folder: Path) -> "TokenizerFiles | None":
        """Those that a folder holds; None where it has none."""
        more = sorted(each.name for each in (folder / MORE_TEMPLATES).glob("*.jinja"))
        names = (*NAMES, *(f"{MORE_TEMPLATES}{name}" for name in more))
        files = {name: (folder / name).read_bytes() for name in names if (folder / name).is_file()}
        return cls(files) if files else None

    def write(self, folder: Path) -> None:
        """Writes them into a folder, which is made where it does not exist."""
        folder.mkdir(parents=True, exist_ok=True)
        for name, data in self.files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            replace_file(folder / name, data)
