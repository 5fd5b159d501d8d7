"""Which layers have a sliding window, in the keys that several families share."""

from typing import Any

from rrope_jax.io.families.family import Keys
from rrope_jax.model import ModelConfig

_WINDOW, _PATTERN = "attention.sliding_window", "attention.sliding_window_pattern"
_NAMES = {True: "sliding_attention", False: "full_attention"}


def read_gguf(keys: Keys, default_period: int) -> dict[str, Any]:
    """The fields `layer_types` and `sliding_window` of a GGUF file, as llama.cpp reads them.

    Args:
      keys: the file's keys without their prefix.
      default_period: of so many layers the last one sees the whole row, where the file has no
        pattern.

    Raises:
      ValueError: the pattern is neither a period nor a list with an entry for each layer.
    """
    window, layers = keys.get(_WINDOW, 0), keys["block_count"]
    pattern = keys.get(_PATTERN, default_period)
    if not window:
        return {}
    if isinstance(pattern, bool):  # the same for all layers
        windowed = [pattern] * layers
    elif isinstance(pattern, int) and pattern >= 0:
        windowed = [pattern == 0 or layer % pattern < pattern - 1 for layer in range(layers)]
    elif isinstance(pattern, list) and len(pattern) == layers:
        windowed = [bool(each) for each in pattern]
    else:
        raise ValueError(
            f"{_PATTERN}={str(pattern)[:80]} must be a period of layers, or a list that says of "
            f"each of the {layers} layers whether it has a window"
        )
    if not any(windowed):
        return {}
    return {"layer_types": tuple(_NAMES[each] for each in windowed), "sliding_window": window}


def write_gguf(model: ModelConfig) -> dict[str, Any]:
    """The inverse of `read_gguf`; empty for a model without windows."""
    if model.sliding_window is None:
        return {}
    windowed = [name == _NAMES[True] for name in model.layer_types_of_all]
    return {_WINDOW: model.sliding_window, _PATTERN: windowed}
