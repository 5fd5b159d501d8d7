"""A tokenizer and a folder of text, small enough to follow by hand."""

import gzip
import json
from pathlib import Path

import pytest
import tokenizers

from tests.data_pipeline.samples import SENTENCES, WORDS


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Files of every kind, and two that are none of text; `e.jsonl` has an empty second line."""
    root = tmp_path / "text"
    for name, value in SENTENCES.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = [value] if isinstance(value, str) else [json.dumps({"text": t}) for t in value]
        data = "\n\n".join(lines).encode()
        path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    (root / "picture.png").write_bytes(b"\x89PNG")
    (root / ".hidden.txt").write_text("not for reading")
    return root


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A word tokenizer as Hugging Face saves one; its file asks for truncation and padding."""
    words = {"<unk>": 0, "<s>": 1, "</s>": 2, **{word: 3 + i for i, word in enumerate(WORDS)}}
    inner = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="<unk>"))
    inner.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    inner.add_special_tokens(["<unk>", "<s>", "</s>"])
    inner.post_processor = tokenizers.processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    inner.enable_truncation(2)
    inner.enable_padding(length=9)
    folder = tmp_path_factory.mktemp("tokenizer")
    inner.save(str(folder / "tokenizer.json"))
    config = {"bos_token": "<s>", "eos_token": {"content": "</s>", "special": True}}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder
