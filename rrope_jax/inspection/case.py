"""What a rule about a runtime looks at: the keys of a file and their meaning for a layer type."""

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any

from rrope_jax.inspection.positions import UNROTATED, Positions
from rrope_jax.rope import RopeSpec, frequencies
from rrope_jax.rope.huggingface.rope_types import DIALECTS


@dataclasses.dataclass(frozen=True)
class Case:
    """One layer type of one file.

    Attributes:
      is_gguf: whether the file is a GGUF file; otherwise it is a config.json.
      model_type: its `model_type` or, in a GGUF file, its architecture.
      keys: its keys.
      layer_type: the type of layer.
      positions: what they mean.
      is_by_name: whether the keys were read by their names alone, as `Decoder` lacks the
        architecture.
    """

    is_gguf: bool
    model_type: str | None
    keys: Mapping[str, Any]
    layer_type: str
    positions: Positions
    is_by_name: bool = False

    @property
    def spec(self) -> RopeSpec | None:
        """The embedding of these layers."""
        return self.positions.by_type[self.layer_type].rope

    @property
    def window(self) -> int | None:
        """The window of these layers."""
        return self.positions.by_type[self.layer_type].window

    @property
    def scaling(self) -> str:
        """The scaling of these layers; `none` for layers without rotation."""
        return "none" if self.spec is None else self.spec.scaling

    @property
    def is_rotated(self) -> bool:
        """Whether these layers rotate queries and keys."""
        return self.layer_type != UNROTATED

    @functools.cached_property
    def parameters(self) -> Mapping[str, Any]:
        """The keys inside `rope_scaling` or `rope_parameters` for these layers."""
        for dialect in DIALECTS:
            group = self.keys.get(dialect)
            if isinstance(group, Mapping) and group:
                nested = group.get(self.layer_type)
                return nested if isinstance(nested, Mapping) else group
        return {}

    @property
    def is_nested(self) -> bool:
        """Whether `rope_parameters` has a group for each layer type."""
        group = self.keys.get("rope_parameters")
        return isinstance(group, Mapping) and any(isinstance(v, Mapping) for v in group.values())

    @property
    def derived_temperature(self) -> float:
        """The attention factor of the scaling without an explicit one."""
        if self.spec is None:
            return 1.0
        return frequencies(dataclasses.replace(self.spec, attention_factor=None)).attention_factor

    @property
    def temperature(self) -> float:
        """The attention factor."""
        return 1.0 if self.spec is None else frequencies(self.spec).attention_factor

    @property
    def longrope_temperature(self) -> float:
        """The factor that Phi-3's code makes of the two contexts, or `long_mscale`."""
        stated = self.parameters.get("long_mscale")
        if stated is not None:
            return float(stated)
        context, original = self.positions.context, self.positions.original_of(self.layer_type)
        if context is None or original is None or context <= original:
            return 1.0
        return math.sqrt(1 + math.log(context / original) / math.log(original))

    @property
    def has_two_lists(self) -> bool:
        """Whether `longrope` has other factors beyond the original context than within it."""
        return (
            self.spec is not None
            and self.spec.scaling == "longrope"
            and self.spec.short_factor != self.spec.long_factor
        )

    @property
    def is_partial(self) -> bool:
        """Whether a part of each head is not rotated."""
        return self.spec is not None and self.spec.rotary_dim < self.spec.head_dim
