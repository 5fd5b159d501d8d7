"""Finds the tokens that end a text in all files of a checkpoint that may name them."""

from collections.abc import Sequence
from typing import Any

from rrope_jax.io import json_text
from rrope_jax.io.description import Description
from rrope_jax.io.tokenizer.files import TokenizerFiles

KEY = "eos_token_id"
GENERATION = "generation_config.json"


def ids_of(value: Any, where: str) -> list[int]:
    """Parses the value of an `eos_token_id` key.

    Args:
      value: an id, a list of ids or None. Negative ids mean no token and are dropped.
      where: the file's name, for error messages.

    Raises:
      ValueError: the value is neither a token id nor a list of them.
    """
    listed = value if isinstance(value, list | tuple) else [] if value is None else [value]
    for each in listed:
        if not isinstance(each, int) or isinstance(each, bool):
            raise ValueError(f"{where}: {KEY}={value!r} must be a token id or a list of them")
    return [each for each in listed if each >= 0]


def generation_ids(files: TokenizerFiles | None) -> list[int]:
    """Returns the ids in generation_config.json, if the tokenizer's files include it.

    Raises:
      ValueError: the file cannot be parsed.
    """
    data = None if files is None else files.files.get(GENERATION)
    if data is None:
        return []
    return ids_of(json_text.parse_object(data, GENERATION).get(KEY), GENERATION)


def end_ids(description: Description, tokenizer_id: int | None = None) -> tuple[int, ...]:
    """Returns all tokens that end a text: from the config, generation config and tokenizer.

    Args:
      description: the checkpoint's description. For GGUF files, its `extras` already include the
        tokens found by key and by spelling.
      tokenizer_id: the tokenizer's own end token, or None.

    Returns:
      Ids without duplicates, most important first.

    Raises:
      ValueError: a file has a value that is not a token id.
    """
    tokenizer: Sequence[int] = [] if tokenizer_id is None else [tokenizer_id]
    config = ids_of(description.extras.get(KEY), "config.json")
    return tuple(dict.fromkeys([*config, *generation_ids(description.tokenizer), *tokenizer]))
