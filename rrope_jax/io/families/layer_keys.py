"""Which layers have a sliding window, in the keys of config.json and GGUF that families share."""

from collections.abc import Sequence
from typing import Any

from rrope_jax.io.families.family import Keys
from rrope_jax.model import ModelConfig

# A damaged number must not cause a near-endless list.
_MOST_LAYERS = 2**14
_SLIDING, _FULL = "sliding_attention", "full_attention"
# Keys of GGUF, without their prefix.
_WINDOW, _PATTERN = "attention.sliding_window", "attention.sliding_window_pattern"


def fields(types: Sequence[str], window: int | None) -> dict[str, Any]:
    """The fields `layer_types` and `sliding_window`; the window only where a layer has it."""
    return {"layer_types": tuple(types), "sliding_window": window if _SLIDING in types else None}


def check_count(layers: int) -> None:
    """Raises ValueError if a model has too many layers to list them."""
    if layers > _MOST_LAYERS:
        raise ValueError(f"num_hidden_layers={layers} must be at most {_MOST_LAYERS}")


def listed(value: Any, key: str, layers: int) -> list[Any]:
    """A list of config.json with an entry for each layer, without what is beyond the last one.

    Raises:
      ValueError: it is no list, or too short.
    """
    if not isinstance(value, list | tuple) or len(value) < layers:
        raise ValueError(
            f"{key}={str(value)[:80]} must be a list with an entry for each of the {layers} layers"
        )
    return list(value[:layers])


def periodic(period: Any, key: str, layers: int) -> list[str]:
    """Layers with a window, but for every `period`-th one; `key` is the key that says so.

    Raises:
      ValueError: the period is not a positive integer.
    """
    if not isinstance(period, int) or isinstance(period, bool) or period < 1:
        raise ValueError(f"{key}={str(period)[:80]} must be a positive integer")
    check_count(layers)
    return [_SLIDING if layer % period < period - 1 else _FULL for layer in range(layers)]


QWEN_DEFAULTS: Keys = {
    "use_sliding_window": False,
    "sliding_window": 4096,
    "max_window_layers": 28,
    "layer_types": None,
}


def read_qwen(keys: Keys) -> dict[str, Any]:
    """The fields of a config.json with `use_sliding_window`, defaults included (Qwen2, Qwen3).

    Without it, neither the window nor the number of layers before those with a window has an
    effect.

    Raises:
      ValueError: a key has the wrong type, or names windows that it does not use.
    """
    layers, types = keys["num_hidden_layers"], keys["layer_types"]
    window = keys["sliding_window"] if keys["use_sliding_window"] else None
    if types is not None:
        types = listed(types, "layer_types", layers)
        if _SLIDING in types and window is None:
            raise ValueError(
                "layer_types has layers with a sliding window, but use_sliding_window="
                f"{keys['use_sliding_window']!r} and sliding_window={keys['sliding_window']!r}; "
                "set these, or call the layers full_attention"
            )
        return fields(types, window)
    if window is None:
        return {}
    first = keys["max_window_layers"]
    if not isinstance(first, int) or isinstance(first, bool) or first < 0:
        raise ValueError(f"max_window_layers={str(first)[:80]} must be an integer from 0")
    check_count(layers)
    return fields([_SLIDING if layer >= first else _FULL for layer in range(layers)], window)


def write_qwen(model: ModelConfig) -> dict[str, Any]:
    """The inverse of `read_qwen`."""
    types = model.layer_types_of_all
    return {
        "use_sliding_window": model.sliding_window is not None,
        "sliding_window": model.sliding_window,
        "max_window_layers": types.index(_SLIDING) if _SLIDING in types else len(types),
        "layer_types": list(types),
    }


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
    return fields([_SLIDING if each else _FULL for each in windowed], window)


def write_gguf(model: ModelConfig) -> dict[str, Any]:
    """The inverse of `read_gguf`; empty for a model without windows."""
    if model.sliding_window is None:
        return {}
    windowed = [name == _SLIDING for name in model.layer_types_of_all]
    return {_WINDOW: model.sliding_window, _PATTERN: windowed}
