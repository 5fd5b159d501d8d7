"""The description of a model in a checkpoint: everything but the weights."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from rrope_jax.io.tokenizer.files import TokenizerFiles
from rrope_jax.model import ModelConfig
from rrope_jax.rope import RopeSpec
from rrope_jax.rope.fields import is_int

# The key of `extras` for the factor that was folded into the query and key weights on export. The
# rotary embedding of such a model can no longer be replaced.
FOLDED_TEMPERATURE = "folded_temperature"


@dataclasses.dataclass(frozen=True)
class Description:
    """A model without its weights.

    Attributes:
      model: the decoder's config.
      rope: its rotary embedding.
      context: the context length in tokens (`max_position_embeddings`).
      tokenizer: the tokenizer's files; None if the checkpoint has no tokenizer.
      extras: entries of config.json that are carried over unchanged (ids of special tokens), and
        `FOLDED_TEMPERATURE`; the values are JSON-serializable.
      original_context: the context length in tokens before any extension, if the checkpoint names
        it and it differs from `rope.original_context`.
      family: the key of `io.families.table.FAMILIES` that the checkpoint is of, or, in an older
        checkpoint of ours, None. Exports keep it where it can express the model.

    Raises:
      ValueError: a context length is not a positive integer.
    """

    model: ModelConfig
    rope: RopeSpec
    context: int
    tokenizer: TokenizerFiles | None = None
    extras: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    original_context: int | None = None
    family: str | None = None

    def __post_init__(self) -> None:
        if not (is_int(self.context) and self.context >= 1):
            raise ValueError(
                f"context={self.context!r} must be a positive integer: the length, in tokens, that "
                "the model is meant for (max_position_embeddings)"
            )
        original = self.original_context
        if original is not None and not (is_int(original) and original >= 1):
            raise ValueError(
                f"original_context={original!r} must be a positive integer: the length, in tokens, "
                "that the model was trained at before any extension"
            )
        if self.family is not None and not isinstance(self.family, str):
            raise ValueError(
                f"family={self.family!r} must be the name of a model family, such as 'llama'"
            )
