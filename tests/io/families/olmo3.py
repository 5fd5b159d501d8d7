"""OLMo 3: windows in three of four layers, and YaRN in the others."""

from typing import Any

from tests.io.families.case import YARN, Case

_ROPE: dict[str, Any] = {
    "full_attention": dict(YARN),
    "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
}

CASES = (
    Case(
        "olmo3",
        "OLMo 3",
        "YaRN in full layers",
        {
            "head_dim": 12,
            "num_hidden_layers": 5,
            "sliding_window": 8,
            "tie_word_embeddings": False,
            "rope_parameters": _ROPE,
            "max_position_embeddings": 128,
        },
    ),
    Case(
        "olmo3",
        "",
        "another pattern and base",
        {
            "head_dim": 12,
            "sliding_window": 5,
            "layer_types": ["full_attention", "sliding_attention", "sliding_attention"],
            "num_hidden_layers": 3,
            "rope_parameters": {
                **_ROPE,
                "sliding_attention": {"rope_type": "default", "rope_theta": 500.0},
            },
            "max_position_embeddings": 128,
        },
        llama_cpp="llama.cpp has one base for all layers",
    ),
)
