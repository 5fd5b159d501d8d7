"""`Case`: a tiny model of a family, from which all proofs of the family follow.

A family has a module here with `CASES`, which the tests and the table of docs/models.md find by
themselves. A case has what makes the real models of the family hard to read: heads of another size
than d_model / num_heads, one key head, windows, an extended context.
"""

import dataclasses
import importlib
import pkgutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

# The modules beside those of families; `proofs` needs the peers.
_OTHERS = {"case", "proofs", "table"}

LENGTH = 96
"""Tokens of the sequence that is compared, beyond the window and the context of the sizes below."""

SIZES: Mapping[str, Any] = {
    "vocab_size": 272,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
YARN: Mapping[str, Any] = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 32,
}


@dataclasses.dataclass(frozen=True)
class Case:
    """A tiny model of a family.

    Attributes:
      family: its `model_type`.
      models: real models that are stored so, for the table in the docs.
      note: what is special about this one, in a few words; part of its name in tests.
      keys: of its config.json, over `SIZES`; None leaves a size out.
      llama_cpp: whether llama.cpp has this model; if not, why.
      exported: the family that an export to llama.cpp with resonance YaRN is written as; None if it
        has no list of frequencies there.
    """

    family: str
    models: str
    note: str
    keys: Mapping[str, Any]
    llama_cpp: bool | str = True
    exported: str | None = None

    def __str__(self) -> str:
        return f"{self.family}, {self.note}"

    @property
    def config(self) -> dict[str, Any]:
        """The keys of its config.json."""
        return {
            key: value
            for key, value in {**SIZES, **self.keys}.items()
            if value is not None or key not in SIZES
        }


def all_cases() -> list[Case]:
    """The cases of all families, in the order of their modules' names."""
    names = {module.name for module in pkgutil.iter_modules([str(Path(__file__).parent)])}
    families = sorted(name for name in names - _OTHERS if not name.startswith("test_"))
    modules = [importlib.import_module(f"tests.io.families.{name}") for name in families]
    return [case for module in modules for case in module.CASES]
