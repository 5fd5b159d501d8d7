"""Reads the size of a head, and how much of it is rotated, from a config.json."""

import math
from collections.abc import Mapping
from typing import Any

from rrope_jax.rope.fields import INT32_MAX, is_int, is_number
from rrope_jax.rope.huggingface.keys import HfConfig
from rrope_jax.rope.huggingface.model_types import ModelType


def read_dimensions(hf: HfConfig, share: Any) -> dict[str, Any]:
    """The spec fields `head_dim` and `partial_rotary_factor`.

    Args:
      hf: the config.
      share: its `partial_rotary_factor`; None if it has no such key.

    Raises:
      ValueError: sizes are missing or contradict each other. If `head_dim` alone is invalid, it is
        returned for `RopeSpec` to reject.
    """
    defaults = hf.defaults
    head_dim = _head_dim(hf.keys, defaults)
    if not is_int(head_dim) or not 0 < head_dim <= INT32_MAX:
        return {"head_dim": head_dim}
    rotated = hf.keys.get("qk_rope_head_dim", defaults.qk_rope_head_dim)
    width = hf.keys.get("rotary_dim", defaults.rotary_dim)
    if rotated is not None:
        _check_rotated_part(hf.keys, rotated, share)
        share = 1.0
    elif width is not None:
        share = _share_of_width(width, head_dim, share)
    elif defaults.rotary_dim is not None:
        raise ValueError(
            f"rotary_dim=None: model_type={hf.keys.get('model_type')!r} then rotates more than a "
            "head; set rotary_dim"
        )
    elif share is None:
        share = defaults.share
    return {"head_dim": head_dim, "partial_rotary_factor": share}


def _head_dim(keys: Mapping[str, Any], defaults: ModelType) -> Any:
    rotated = keys.get("qk_rope_head_dim", defaults.qk_rope_head_dim)
    if rotated is not None:  # DeepSeek's heads have their rotated part in a separate array
        return rotated
    if keys.get("head_dim") is not None:
        return keys["head_dim"]
    if defaults.head_dim is not None and "head_dim" not in keys:
        return defaults.head_dim
    hidden_size, num_heads = keys.get("hidden_size"), keys.get("num_attention_heads")
    if hidden_size is None or num_heads is None:
        raise ValueError(
            "head_dim is missing, and so is hidden_size or num_attention_heads; add head_dim (in a "
            "multimodal config these keys are in text_config: pass that)"
        )
    if not (is_int(hidden_size) and is_int(num_heads) and num_heads > 0) or hidden_size % num_heads:
        raise ValueError(
            f"hidden_size={hidden_size!r} must be a multiple of num_attention_heads="
            f"{num_heads!r} where head_dim is not set; add head_dim"
        )
    return hidden_size // num_heads


def _check_rotated_part(keys: Mapping[str, Any], rotated: Any, share: Any) -> None:
    """Checks a share against `qk_rope_head_dim`: of itself, of `head_dim` or of the whole head."""
    if share is None or not is_number(share):
        return
    unrotated, whole = keys.get("qk_nope_head_dim"), keys.get("head_dim")
    wholes = [rotated, whole, rotated + unrotated if is_int(unrotated) else None]
    if share not in [rotated / each for each in wholes if is_int(each) and each > 0]:
        raise ValueError(
            f"partial_rotary_factor={share!r} and qk_rope_head_dim={rotated!r} contradict each "
            "other; remove the former"
        )


def _share_of_width(width: Any, head_dim: int, share: Any) -> float:
    """`width / head_dim`, rounded so that `head_dim` times it is not below `width`."""
    if not (is_int(width) and 0 < width <= head_dim):
        raise ValueError(
            f"rotary_dim={width!r} must be an integer from 2 to head_dim={head_dim!r}: it is the "
            "part of a head that is rotated"
        )
    if share is not None and (not is_number(share) or int(head_dim * share) != width):
        raise ValueError(
            f"partial_rotary_factor={share!r} of head_dim={head_dim!r} is not "
            f"rotary_dim={width!r}; remove the wrong one"
        )
    ratio = float(width / head_dim)
    return ratio if int(head_dim * ratio) == width else math.nextafter(ratio, 2)
