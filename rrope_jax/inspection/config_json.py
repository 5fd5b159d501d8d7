"""Reads the positions of a Hugging Face config.json, of any architecture."""

from collections.abc import Callable, Mapping
from typing import Any

from rrope_jax import rope
from rrope_jax.inspection.positions import UNROTATED, Positions, of_layers
from rrope_jax.io.families.table import FAMILIES
from rrope_jax.io.huggingface.config import check_keys, model_of
from rrope_jax.io.huggingface.read import family_of
from rrope_jax.rope.fields import is_int

Keys = Mapping[str, Any]

_ROTATED = ("full_attention", "sliding_attention", "chunked_attention")
_TEXT = ("text_config", "llm_config", "language_config")


def text_keys(config: Keys) -> tuple[str | None, Keys]:
    """The keys of the language model, which a multimodal config has in a group.

    Returns:
      The name of the group, or None if the keys are at the top; and the keys.
    """
    for name in _TEXT:
        group = config.get(name)
        if isinstance(group, Mapping) and "hidden_size" not in config:
            return name, group
    return None, config


def reader_of(keys: Keys) -> tuple[Callable[[Keys], Positions], list[str]]:
    """Chooses how to read a config.json: by its family, or by the names of its keys alone.

    Returns:
      The reader, which raises ValueError for keys that it does not accept; and what there is to say
      of the choice.
    """
    try:
        _of_family(keys)
    except ValueError as error:
        return _by_names, [f"rrope does not run this model ({error}); its keys are read by name"]
    return _of_family, []


def _of_family(keys: Keys) -> Positions:
    """Reads what `Decoder` is made from."""
    family = family_of(keys)
    config = dict(family.defaults) | dict(keys)
    check_keys(family, config)
    model = model_of(family, config)
    return of_layers(
        rope.from_hf(config),
        model.layer_types_of_all,
        model.sliding_window,
        context=_length(config.get("max_position_embeddings")),
        original_context=rope.original_context(config),
    )


def _by_names(keys: Keys) -> Positions:
    """Reads the keys of an architecture that `Decoder` does not have."""
    family = FAMILIES.get(str(keys.get("model_type")))
    keys = keys if family is None else dict(family.defaults) | dict(keys)
    notes: list[str] = []
    layer_types, window = _plan(keys, notes)
    return of_layers(
        rope.from_hf(keys),
        layer_types,
        window,
        context=_length(keys.get("max_position_embeddings")),
        original_context=rope.original_context(keys),
        notes=tuple(notes),
    )


def _length(value: Any) -> int | None:
    return value if is_int(value) and value > 0 else None


def _plan(keys: Keys, notes: list[str]) -> tuple[tuple[str, ...] | None, int | None]:
    """The type of each layer, as far as the names of keys tell, and the window of sliding ones."""
    count, window = _length(keys.get("num_hidden_layers")), _length(keys.get("sliding_window"))
    named = keys.get("layer_types")
    if isinstance(named, list) and named and all(isinstance(each, str) for each in named):
        types = list(named)
        notes += [
            f"{types.count(name)} layers are {name}, which is not described here"
            for name in dict.fromkeys(types)
            if name not in _ROTATED
        ]
    elif count is not None:
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
