"""Llama 3.x: the shape of Llama 3.2, tied, its scaling by 32."""

from tests.io.families.case import Case

_LLAMA_3_2 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
CASES = (
    Case(
        "llama",
        "Llama 3.2 (and 3, 3.1, 3.3)",
        "tied, llama3 scaling by 32",
        {
            "tie_word_embeddings": True,
            "rope_parameters": _LLAMA_3_2,
            "max_position_embeddings": 2048,
        },
        exported="llama",
    ),
    Case(
        "llama",
        "LLaMA 1 and 2, SmolLM, SmolLM2",
        "one key head",
        {"num_key_value_heads": 1, "tie_word_embeddings": False},
        exported="llama",
    ),
)
