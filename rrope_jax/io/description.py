"""What a checkpoint says of its model beside the weights."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from rrope_jax.io.tokenizer_files import TokenizerFiles
from rrope_jax.model import ModelConfig
from rrope_jax.rope import RopeSpec


@dataclasses.dataclass(frozen=True)
class Description:
    """A model without its weights.

    Attributes:
      model: the decoder.
      rope: its rotary embedding.
      context: the length, in tokens, that the model is meant for (`max_position_embeddings`).
      tokenizer: what travels along to turn text into tokens; None where there is none.
      extras: JSON-able keys of a config.json that travel along untouched (ids of special tokens).
    """

    model: ModelConfig
    rope: RopeSpec
    context: int
    tokenizer: TokenizerFiles | None = None
    extras: Mapping[str, Any] = dataclasses.field(default_factory=dict)
