"""Phi-3 and Phi-4-mini: fused matrices, two lists of factors, partial rotation."""

from typing import Any

from tests.io.families.case import Case


def _longrope(features: int, original: int, **more: Any) -> dict[str, Any]:
    return {
        "head_dim": None,
        "max_position_embeddings": 128,
        "original_max_position_embeddings": original,
        "rope_parameters": {
            "rope_type": "longrope",
            "rope_theta": 10000.0,
            "short_factor": [1 + 0.05 * index for index in range(features)],
            "long_factor": [1.5 + 0.4 * index for index in range(features)],
            "original_max_position_embeddings": original,
            **more,
        },
    }


CASES = (
    Case(
        "phi3",
        "Phi-3-mini and -medium (128K)",
        "long list of factors",
        _longrope(6, 64),
        exported="phi3",
    ),
    Case(
        "phi3",
        "",
        "short list of factors",
        # llama.cpp goes by the context that it allocates, which is 256 tokens here
        _longrope(6, 256) | {"max_position_embeddings": 1024},
        exported="phi3",
    ),
    Case(
        "phi3",
        "Phi-4-mini",
        "tied, part of a head rotated",
        {
            **_longrope(6, 32, partial_rotary_factor=0.75),
            "hidden_size": 64,
            "tie_word_embeddings": True,
        },
        exported="phi3",
    ),
    Case(
        "phi3",
        "Phi-3-mini (4K)",
        "window in all layers",
        {"head_dim": None, "sliding_window": 8, "num_key_value_heads": 4},
        llama_cpp="llama.cpp disregards Phi-3's window",
    ),
)
