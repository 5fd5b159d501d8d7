"""Rejects configs whose layers have different embeddings, which one RopeSpec cannot express.

The error message shows a call that reads the embedding of some of the layers.
"""

from collections.abc import Mapping
from typing import Any

from rrope_jax.rope.huggingface.keys import OTHER_BASES, HfConfig
from rrope_jax.rope.huggingface.rope_types import DIALECTS
from rrope_jax.rope.spec import RopeSpec

_PER_LAYER = ("no_rope_layers", "no_rope_layer_interval", "layer_rope_theta", *OTHER_BASES)


class Expression(str):
    """Python code that `advice` inserts verbatim; it formats other values with `repr`."""


def advice(hf: HfConfig, **edits: Any) -> str:
    """A `from_hf` call, ready to copy, that reads the embedding of some of the layers.

    Args:
      hf: the config.
      **edits: keys that the call must replace, besides those that differ between layers.
    """
    nested = [hf.keys[dialect] for dialect in DIALECTS if isinstance(hf.keys.get(dialect), Mapping)]
    defaults = {
        "rope_theta": hf.defaults.theta,
        "partial_rotary_factor": hf.defaults.share,
        "head_dim": hf.defaults.head_dim,
        "qk_rope_head_dim": hf.defaults.qk_rope_head_dim,
    }
    edits |= {key: None for key in _PER_LAYER if hf.keys.get(key) is not None}
    edits |= {
        key: value
        for key, value in defaults.items()
        if value not in (None, 1.0)
        and all(holder.get(key) is None for holder in (hf.keys, *nested))
    }
    if hf.keys.get("model_type") is not None:
        edits = {"model_type": None} | edits
    parts = [
        f"{key!r}: {value if isinstance(value, Expression) else repr(value)}"
        for key, value in edits.items()
    ]
    return f"from_hf({{**config, {', '.join(parts)}}})"


def check_layers(hf: HfConfig, spec: RopeSpec) -> None:
    """Raises ValueError if some layers have a different base than `spec`, or no rotation."""
    for key in OTHER_BASES:
        base = hf.keys.get(key)
        if base is not None and base != hf.keys.get("rope_theta"):
            raise ValueError(
                f"{key}={base!r} gives some layers another base and a RopeSpec is one embedding; "
                f"remove it to read that of the other layers: {advice(hf)}"
            )
    others = f"read that of the others with {advice(hf)}"
    bases = hf.keys.get("layer_rope_theta")
    if bases and (not isinstance(bases, list) or any(base != spec.theta for base in bases)):
        raise ValueError(f"layer_rope_theta={bases!r} gives some layers another base; {others}")
    rotated, interval = hf.keys.get("no_rope_layers"), hf.keys.get("no_rope_layer_interval")
    if rotated and not (isinstance(rotated, list) and all(rotated)):
        raise ValueError(
            f"no_rope_layers={rotated!r} leaves layers without rotation (those with a 0); {others}"
        )
    if interval and not rotated:
        raise ValueError(
            f"no_rope_layer_interval={interval!r} leaves layers without rotation; {others}"
        )
