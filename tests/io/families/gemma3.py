"""Gemma 3: windows, two bases, norms on all sides and with an offset."""

from typing import Any

from tests.io.families.case import Case


def _rope(**full: Any) -> dict[str, Any]:
    return {
        "full_attention": {"rope_type": "default", "rope_theta": 1e6, **full},
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
    }


_SIZES: dict[str, Any] = {
    "num_hidden_layers": 7,
    "num_key_value_heads": 1,
    "query_pre_attn_scalar": 16,
    "sliding_window": 24,
}
CASES = (
    Case(
        "gemma3_text",
        "Gemma 3 270M and 1B",
        "tied, one key head, five windows in six layers",
        _SIZES | {"rope_parameters": _rope()},
    ),
    Case(
        "gemma3_text",
        "Gemma 3 4B and 12B, their language models",
        "linear scaling of the full layers",
        _SIZES
        | {
            "num_key_value_heads": 2,
            "rope_parameters": _rope(rope_type="linear", factor=8.0),
            "max_position_embeddings": 512,
        },
    ),
    Case(
        "gemma3_text",
        "Gemma 3 27B, its language model",
        "a scale of its own",
        _SIZES
        | {
            "query_pre_attn_scalar": 12,
            "rope_parameters": _rope(rope_type="linear", factor=8.0),
            "max_position_embeddings": 512,
        },
        llama_cpp="it takes this scale for a model of 62 layers, not for this tiny one",
    ),
    Case(
        "gemma3_text",
        "Gemma 3 with other layers",
        "YaRN, full layers at other places, another base",
        _SIZES
        | {
            "num_hidden_layers": 4,
            "layer_types": ["full_attention", "sliding_attention"] * 2,
            "rope_parameters": {
                **_rope(rope_type="yarn", factor=4.0, original_max_position_embeddings=32),
                "sliding_attention": {"rope_type": "default", "rope_theta": 2e4},
            },
            "max_position_embeddings": 128,
        },
    ),
)
