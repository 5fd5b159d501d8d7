"""Reads the positions of a Hugging Face config.json, of any architecture."""

from collections.abc import Mapping
from typing import Any

from rrope_jax import rope
from rrope_jax.inspection.positions import UNROTATED, Positions, of_layers
from rrope_jax.rope.fields import is_int

_ROTATED = ("full_attention", "sliding_attention", "chunked_attention")
_TEXT = ("text_config", "llm_config", "language_config")


def text_keys(config: Mapping[str, Any]) -> tuple[str | None, Mapping[str, Any]]:
    """The keys of the language model, which a multimodal config has in a group.

    Returns:
      The name of the group, or None if the keys are at the top; and the keys.
    """
    for name in _TEXT:
        group = config.get(name)
        if isinstance(group, Mapping) and "hidden_size" not in config:
            return name, group
    return None, config


def read_config(keys: Mapping[str, Any]) -> Positions:
    """Reads what a config.json says of positions, whether or not `Decoder` has the architecture.

    Args:
      keys: those of the language model, see `text_keys`.

    Raises:
      ValueError: `rope.from_hf` refuses the keys.
    """
    notes: list[str] = []
    context: Any = keys.get("max_position_embeddings")
    layer_types, window = _plan(keys, notes)
    return of_layers(
        rope.from_hf(keys),
        layer_types,
        window,
        context=context if is_int(context) and context > 0 else None,
        original_context=rope.original_context(keys),
        notes=tuple(notes),
    )


def _plan(keys: Mapping[str, Any], notes: list[str]) -> tuple[tuple[str, ...] | None, int | None]:
    """The type of each layer, as far as the names of keys tell, and the window of sliding ones."""
    count: Any = keys.get("num_hidden_layers")
    window: Any = keys.get("sliding_window")
    window = window if is_int(window) and window > 0 else None
    named = keys.get("layer_types")
    if isinstance(named, list) and named and all(isinstance(each, str) for each in named):
        types = list(named)
        notes += [
            f"{types.count(name)} layers are {name}, which is not described here"
            for name in dict.fromkeys(types)
            if name not in _ROTATED
        ]
    elif is_int(count) and count > 0:
        types = ["full_attention"] * count
        if window is not None and keys.get("use_sliding_window") is not False:
            notes.append(
                f"sliding_window={window}, and which layers have that window is not known for this "
                "architecture"
            )
    else:
        return None, None
    rotated = keys.get("no_rope_layers")
    if isinstance(rotated, list) and len(rotated) == len(types):
        types = [kind if flag else UNROTATED for kind, flag in zip(types, rotated, strict=True)]
    return tuple(types), window
