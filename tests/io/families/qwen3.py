"""Qwen3, dense: norms of queries and keys."""

from tests.io.families.case import YARN, Case

CASES = (
    Case(
        "qwen3",
        "Qwen3 (0.6B to 4B)",
        "tied, one key head",
        {"tie_word_embeddings": True, "num_key_value_heads": 1},
    ),
    Case(
        "qwen3",
        "Qwen3 (8B to 32B)",
        "untied, YaRN",
        {
            "tie_word_embeddings": False,
            "rope_parameters": YARN,
            "max_position_embeddings": 128,
        },
    ),
)
