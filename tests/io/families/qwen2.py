"""Qwen2: biases of queries, keys and values; windows in the last layers where they are used."""

from tests.io.families.case import YARN, Case

CASES = (
    Case(
        "qwen2",
        "Qwen2, Qwen2.5 (0.5B to 3B)",
        "tied, one key head",
        {"tie_word_embeddings": True, "num_key_value_heads": 1, "head_dim": None},
        exported="llama",
    ),
    Case(
        "qwen2",
        "Qwen2.5 (7B to 72B)",
        "untied, YaRN, a window that is not used",
        {
            "tie_word_embeddings": False,
            "use_sliding_window": False,
            "sliding_window": 24,
            "max_window_layers": 2,
            "rope_parameters": YARN,
            "max_position_embeddings": 128,
        },
        exported="llama",
    ),
    Case(
        "qwen2",
        "Qwen2 with its window switched on",
        "windows in the last layers",
        {
            "tie_word_embeddings": False,
            "use_sliding_window": True,
            "sliding_window": 24,
            "max_window_layers": 1,
        },
        llama_cpp="its architecture qwen2 has no windows",
    ),
)
