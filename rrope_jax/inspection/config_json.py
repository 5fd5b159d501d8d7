"""Reads the positions of a Hugging Face config.json, of any architecture."""

from collections.abc import Callable, Mapping
from typing import Any

from rrope_jax import rope
from rrope_jax.inspection.positions import DESCRIBED, UNROTATED, Positions, of_layers
from rrope_jax.io.huggingface.config import check_keys, model_of
from rrope_jax.io.huggingface.read import family_of
from rrope_jax.model.layer_types import repeat
from rrope_jax.rope.fields import is_int

Keys = Mapping[str, Any]

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

    Raises:
      ValueError: no reader accepts the keys.
    """
    try:
        _of_decoder(keys)
        return _of_decoder, []
    except ValueError as error:
        notes = [f"rrope does not run this model: {error}"]
    try:
        _of_family(keys)
        return _of_family, notes
    except ValueError:
        _by_names(keys)
    return _by_names, [*notes, "its keys are read by their names"]


def _of_decoder(keys: Keys) -> Positions:
    """Reads what `Decoder` is made from."""
    family = family_of(keys)
    config = dict(family.defaults) | dict(keys)
    check_keys(family, config)
    model = model_of(family, config)
    return _positions(config, model.layer_types_of_all, model.sliding_window)


def _of_family(keys: Keys) -> Positions:
    """Reads a model of a known family that `Decoder` does not run, such as a quantized one."""
    family = family_of(keys)
    config = dict(family.defaults) | dict(keys)
    count = _length(config.get("num_hidden_layers"))
    if count is None:
        raise ValueError("num_hidden_layers is missing")
    try:
        plan = family.read(config)
    except KeyError as error:
        raise ValueError(f"it has no {error.args[0]}") from None
    pattern = plan.get("layer_types", ("full_attention",))
    return _positions(config, repeat(pattern, count), plan.get("sliding_window"))


def _by_names(keys: Keys) -> Positions:
    """Reads the keys of an architecture that is not known, as far as their names tell."""
    notes = []
    layer_types, window = None, _length(keys.get("sliding_window"))
    named = keys.get("layer_types")
    if isinstance(named, list) and named and all(isinstance(each, str) for each in named):
        layer_types = tuple(named)
        notes += [
            f"{named.count(name)} layers are {name}, which is not described here"
            for name in dict.fromkeys(named)
            if name not in DESCRIBED
        ]
    elif window is not None and keys.get("use_sliding_window") is not False:
        notes.append(f"sliding_window={window}: which layers have this window is not known")
    rotated = keys.get("no_rope_layers")
    if isinstance(rotated, list) and rotated:
        keys = {**keys, "no_rope_layers": None}  # the embedding is that of the others
        types = layer_types or ("full_attention",) * len(rotated)
        if len(types) == len(rotated):
            pairs = zip(types, rotated, strict=True)
            layer_types = tuple(kind if flag else UNROTATED for kind, flag in pairs)
    return _positions(keys, layer_types, window, tuple(notes))


def _positions(
    keys: Keys,
    layer_types: tuple[str, ...] | None,
    window: int | None,
    notes: tuple[str, ...] = (),
) -> Positions:
    return of_layers(
        rope.from_hf(keys),
        layer_types,
        window,
        context=_length(keys.get("max_position_embeddings")),
        original_context=rope.original_context(keys),
        notes=notes,
    )


def _length(value: Any) -> int | None:
    return value if is_int(value) and value > 0 else None
