"""What a checkpoint says about its model, apart from the weights."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from rrope_jax.io.tokenizer.files import TokenizerFiles
from rrope_jax.model import ModelConfig
from rrope_jax.rope import RopeSpec
from rrope_jax.rope.fields import is_int

# The key of `extras` for the factor that was folded into queries and keys on export. The embedding
# of such a model can no longer be replaced.
FOLDED_TEMPERATURE = "folded_temperature"


@dataclasses.dataclass(frozen=True)
class Description:
    """A model without its weights.

    Attributes:
      model: the decoder.
      rope: its rotary embedding.
      context: the length, in tokens, that the model is meant for (`max_position_embeddings`).
      tokenizer: what travels along to turn text into tokens; None where there is none.
      extras: JSON-able keys of a config.json that travel along untouched (ids of special tokens),
        and `FOLDED_TEMPERATURE`.
      original_context: the length that the model was trained at before any extension, where the
        checkpoint names it and `rope` has another or none.

    Raises:
      ValueError: a context is not a positive integer.
    """

    model: ModelConfig
    rope: RopeSpec
    context: int
    tokenizer: TokenizerFiles | None = None
    extras: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    original_context: int | None = None

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
