"""The tokens that end a text, wherever a checkpoint names them."""

from collections.abc import Sequence
from typing import Any

from rrope_jax.io import json_text
from rrope_jax.io.description import Description
from rrope_jax.io.tokenizer.files import TokenizerFiles

KEY = "eos_token_id"
GENERATION = "generation_config.json"


def ids_of(value: Any, where: str) -> list[int]:
    """The ids that a key names: none, one or a list. Negative ones stand for no token.

    Raises:
      ValueError: the value is no token id and no list of them.
    """
    listed = value if isinstance(value, list | tuple) else [] if value is None else [value]
    for each in listed:
        if not isinstance(each, int) or isinstance(each, bool):
            raise ValueError(f"{where}: {KEY}={value!r} must be a token id or a list of them")
    return [each for each in listed if each >= 0]


def generation_ids(files: TokenizerFiles | None) -> list[int]:
    """Those of a generation_config.json.

    Raises:
      ValueError: it cannot be read.
    """
    data = None if files is None else files.files.get(GENERATION)
    if data is None:
        return []
    return ids_of(json_text.parse_object(data, GENERATION).get(KEY), GENERATION)


def end_ids(description: Description, tokenizer_id: int | None = None) -> tuple[int, ...]:
    """All tokens at which a text ends: of the config, of what is generated, of the tokenizer.

    Args:
      description: of the checkpoint. What a GGUF file names by keys and spellings is in its
        extras.
      tokenizer_id: the end that the tokenizer names.

    Returns:
      Ids, the most important one first.

    Raises:
      ValueError: a file names something other than ids.
    """
    tokenizer: Sequence[int] = [] if tokenizer_id is None else [tokenizer_id]
    config = ids_of(description.extras.get(KEY), "config.json")
    return tuple(dict.fromkeys([*config, *generation_ids(description.tokenizer), *tokenizer]))
