"""The group `config.rope`: fields of all layers, and those of one layer type.

Fields at its top are those of all layers; where a model or checkpoint has an embedding of its own
for layers with a sliding window, they are those of full-attention layers only. Fields in
`full_attention` are those of full-attention layers only, and fields in `sliding_attention` those of
layers with a sliding window only, over what these have otherwise.
"""

import dataclasses
from typing import Annotated, NamedTuple

from rrope_jax.cli.errors import UsageError
from rrope_jax.cli.settings import Fields, SomeOf
from rrope_jax.model import ModelConfig
from rrope_jax.rope import RopeSpec

PATH = "config.rope"
FULL, SLIDING = "full_attention", "sliding_attention"
_OfLayers = Annotated[Fields, SomeOf(RopeSpec, without=(SLIDING,))]


@dataclasses.dataclass(frozen=True)
class LayerFields:
    """The groups within `config.rope`; each has fields of RopeSpec.

    Attributes:
      full_attention: The fields of full-attention layers only.
      sliding_attention: Those of layers with a sliding window only.
    """

    full_attention: _OfLayers
    sliding_attention: _OfLayers


RopeFields = Annotated[Fields, SomeOf(RopeSpec, LayerFields)]
"""The group `config.rope`, which describes several methods or changes a checkpoint's embedding."""


class Groups(NamedTuple):
    """The fields of `config.rope` by the layers they are for.

    Attributes:
      all: Those at the top.
      full, sliding: Those in `full_attention` and `sliding_attention`.
    """

    all: Fields
    full: Fields
    sliding: Fields

    def __bool__(self) -> bool:
        """Whether there is any field."""
        return any(map(len, self))


def split(fields: Fields, path: str = PATH) -> Groups:
    """Returns the fields of a group by the layers they are for.

    Args:
      fields: What the group `config.rope` contains.
      path: The group's name in messages.

    Raises:
      UsageError: A field of full-attention layers has two values.
    """
    flat = {name: value for name, value in fields.items() if name not in (FULL, SLIDING)}
    groups = Groups(flat, fields.get(FULL) or {}, fields.get(SLIDING) or {})
    for name in sorted(groups.full.keys() & flat.keys()):
        if groups.full[name] != flat[name]:
            raise UsageError(
                f"{path}.{FULL}.{name} = {groups.full[name]!r} and {path}.{name} = {flat[name]!r} "
                "are values of one field; remove one of them"
            )
    return groups


def merge(fields: Fields, others: Fields) -> Fields:
    """Returns the fields of a group with those of another one over them."""
    groups = {
        name: {**(fields.get(name) or {}), **(others.get(name) or {})}
        for name in (FULL, SLIDING)
        if name in fields or name in others
    }
    return {**fields, **others, **groups}


def check_layers(groups: Groups, model: ModelConfig, path: str = PATH) -> None:
    """Raises UsageError for fields of layers that a model does not have."""
    for name, fields in ((FULL, groups.full), (SLIDING, groups.sliding)):
        if fields and name not in model.layer_types:
            field = next(iter(fields))
            raise UsageError(
                f"{path}.{name}.{field} = {fields[field]!r}: the model has no {name} layers, only "
                f"{', '.join(dict.fromkeys(model.layer_types))}; set {path}.{field}, or "
                "config.model.layer_types where the command takes it"
            )
